"""Configuration: frozen dataclasses that check themselves, also given as keywords of a function.

The text of a field, under "Attributes:" in the docstring of its class, is also the help text of its
command line option.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from inspect import Parameter, cleandoc, signature
from typing import Any, TypeVar

from flowturbo.checks import check_keywords, shown

__all__ = ["attribute_docs", "configured"]

T = TypeVar("T")


def configured(cls: type[Any]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Let a function with a parameter ``config`` take the fields of ``cls`` as keywords instead.

    The function always receives a ``config``. ``inspect.signature`` shows the fields.

    Args:
        cls: a dataclass.

    Raises:
        ValueError: when called, if ``config`` is of another class or is combined with fields, or a
            keyword is unknown; names the nearest known one.
    """
    defaults = {f.name: f.default for f in fields(cls)}

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        own = signature(function)
        of_config = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default)
            for name, default in defaults.items()
        ]
        known = [*own.parameters, *defaults]

        @wraps(function)
        def call(*args: Any, **given: Any) -> T:
            check_keywords(function.__name__, given, known)
            options = {name: given.pop(name) for name in list(given) if name in defaults}
            bound = own.bind_partial(*args, **given)
            config = bound.arguments.get("config")
            if config is None:
                config = cls(**options)
            elif not isinstance(config, cls):
                raise ValueError(f"config={shown(config)}: must be a {cls.__name__}, or None")
            elif options:
                raise ValueError(
                    f"config={shown(config)} and {next(iter(options))}=...: give one of them; "
                    "dataclasses.replace(config, ...) changes fields"
                )
            bound.arguments["config"] = config
            return function(*bound.args, **bound.kwargs)

        parameters = own.parameters | {"config": own.parameters["config"].replace(default=None)}
        call.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*parameters.values(), *of_config]
        )
        return call

    return decorate


def attribute_docs(cls: type[Any]) -> dict[str, str]:
    """The texts under "Attributes:" in the docstring of ``cls``, by name, each on one line."""
    _, _, text = cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    section = re.split(r"\n\s*\n", text)[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(doc.split()) for name, doc in entries}
