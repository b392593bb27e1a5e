"""Messages: values on one line, the nearest known name, warnings at the caller's line.

`known_keywords` refuses misspelled keywords with such a message.
"""

from __future__ import annotations

import reprlib
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

__all__ = ["check_keywords", "did_you_mean", "known_keywords", "reason", "shown", "warn"]

_HOME = str(Path(__file__).parent)

C = TypeVar("C", bound=Callable[..., Any])


def shown(value: object) -> str:
    """Any value in at most 80 characters on one line; arrays and tensors by shape and type."""
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def reason(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class _Short(reprlib.Repr):
    def repr1(self, x: object, level: int) -> str:
        if isinstance(x, Tensor) and x.is_nested:
            return f"<nested tensor of {x.dtype}>"
        if isinstance(x, Tensor) and (x.ndim or x.is_meta):
            where = "" if x.device.type == "cpu" else f" on {x.device}"
            return f"<tensor {tuple(x.shape)} of {x.dtype}{where}>"
        if isinstance(x, np.ndarray) and x.ndim:
            return f"<array {x.shape} of {x.dtype}>"
        if isinstance(x, int) and x.bit_length() > 128:
            return f"<number of {x.bit_length()} bits>"
        if isinstance(x, nn.Module):
            return f"<{type(x).__name__}>"
        if isinstance(x, FunctionType):
            return f"<function {x.__name__}>"
        return super().repr1(x, level)


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 60


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """``"; did you mean 'plan'?"`` for a text near one of ``known``, else nothing."""
    near = get_close_matches(value[:100], [*known], n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def warn(message: str) -> None:
    """A ``UserWarning`` at the line outside this library that led here."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_code.co_filename.startswith(_HOME):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def known_keywords(fn: C) -> C:
    """Decorates a function, or the public methods of a class, to refuse unknown keywords.

    The ``ValueError`` names the nearest known one. Functions with ``**options`` check their own.
    """
    if isinstance(fn, type):
        for name, member in list(vars(fn).items()):
            made_by_class = isinstance(member, classmethod)
            plain = member.__func__ if made_by_class else member
            public = name == "__init__" or not name.startswith("_")
            if public and name != "forward" and isinstance(plain, FunctionType):
                wrapped: Any = known_keywords(plain)
                setattr(fn, name, classmethod(wrapped) if made_by_class else wrapped)
        return fn
    parameters = signature(fn).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return fn
    names = {p.name for p in parameters if p.kind is not Parameter.POSITIONAL_ONLY}

    @wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if kwargs and not kwargs.keys() <= names:  # all that dynamo has to trace
            check_keywords(
                fn.__qualname__.removesuffix(".__init__"), kwargs, names - {"self", "cls"}
            )
        return fn(*args, **kwargs)

    return checked  # type: ignore[return-value]


def check_keywords(called: str, given: Mapping[str, object], known: Collection[str]) -> None:
    """Refuse a keyword of ``called`` that is not ``known``, naming the nearest known one."""
    for name, value in given.items():
        if name not in known:
            names = sorted(known)
            hint = did_you_mean(name, names) or f"; it takes {', '.join(names) or 'none'}"
            raise ValueError(f"{called}({name}={shown(value)}): has no argument {name!r}{hint}")
