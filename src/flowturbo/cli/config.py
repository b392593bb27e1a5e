"""Command options made from the fields of the library's configurations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial, wraps
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
import typer

from flowturbo.cli.options import resolve_batch, resolve_dtype, resolve_guidance
from flowturbo.config import attribute_docs

__all__ = ["options_of"]

T = TypeVar("T")
SHORT = {"guidance": "-g", "model": "-m", "num_images": "-n", "number": "-n", "out": "-o"}


def options_of(
    cls: type[Any], *, without: tuple[str, ...] = (), **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of ``cls``, in place of its parameter ``config``.

    Defaults and help are those of the fields: there is one place to change them.

    Args:
        cls: a dataclass.
        without: fields that do not become options; they keep their defaults.
        defaults: other defaults of some fields, where the command has a reason for them.
    """
    hints, docs = get_type_hints(cls), attribute_docs(cls)
    made = {
        f.name: _option(f.name, hints[f.name], defaults.get(f.name, f.default), docs[f.name])
        for f in fields(cls)
        if f.name not in without
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = signature(command)
        annotations = get_type_hints(command, include_extras=True)

        @wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in made}
            command(config=cls(**values), **given)

        parameters: list[Parameter] = []
        for p in own.parameters.values():
            if p.name == "config":
                parameters += made.values()
            else:
                parameters.append(p.replace(annotation=annotations[p.name]))
        run.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters]
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        return run

    return decorate


def _option(name: str, hint: Any, default: Any, doc: str) -> Parameter:
    kinds = [k for k in _kinds(hint) if k is not NoneType]
    flag = name.replace("_", "-")
    names = [f"--{flag}/--no-{flag}" if kinds == [bool] else f"--{flag}"]
    names += [SHORT[name]] if name in SHORT else []
    text = re.sub(r"``(\w+)``", lambda m: f"--{m[1].replace('_', '-')}", doc[0].upper() + doc[1:])
    more: dict[str, Any] = {}
    kind = kinds[0]
    origins = {get_origin(k) for k in kinds}
    if float in kinds and tuple in origins:
        kind, more = Any, {"parser": resolve_guidance, "metavar": "SCALE|LOW-HIGH"}
        default = "{:g}-{:g}".format(*default) if isinstance(default, tuple) else default
    elif int in kinds and Sequence in origins:
        kind, more = Any, {"parser": resolve_batch, "metavar": "N[,N...]"}
        default = str(default)
    elif kind is torch.dtype:
        kind, more = Any, {"parser": resolve_dtype, "metavar": "float32|bfloat16|float16"}
    elif get_origin(kind) is tuple:
        item = get_args(kind)[0]
        kind, more = Any, {"parser": partial(_items, item), "metavar": "A,B,..."}
        default = ",".join(map(str, default))
    elif get_origin(kind) is Literal:
        kind, more = str, {"metavar": "|".join(get_args(kind))}  # the class checks which
    kind = kind | None if NoneType in _kinds(hint) and kind is not Any else kind
    option = typer.Option(*names, help=text, **more)
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _items(kind: Callable[[str], T], text: str) -> tuple[T, ...]:
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list such as 4,6,8") from None


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
