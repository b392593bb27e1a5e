"""Checks of arguments: each returns the value, or raises one ``ValueError`` of one line.

The line names the argument, shows its value and says what is allowed. `shown` puts any value into
such a line, and `known_keywords` refuses misspelled keywords with the nearest known name.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "DTYPES",
    "device",
    "did_you_mean",
    "dtype",
    "known_keywords",
    "number",
    "one_of",
    "shown",
    "tensor",
    "whole",
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that networks compute in
OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "hip": "cuda", "metal": "mps"}

C = TypeVar("C", bound=Callable[..., Any])


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """``value`` as an int in [``least``, ``most``].

    Integers of numpy and 0-dim tensors of integers are whole numbers; True and 2.0 are not.
    """
    number = value
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta:
        number = value.item()
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise ValueError(f"{name}={shown(value)}: must be a whole number{_between(least, most)}")
    number = int(number)
    if not (least is None or number >= least) or not (most is None or number <= most):
        raise ValueError(f"{name}={shown(value)}: must be a whole number{_between(least, most)}")
    return number


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
) -> float:
    """``value`` as a finite float in [``least``, ``most``], or greater than ``above``."""
    try:
        real = isinstance(value, Real) and not isinstance(value, bool)
        number = float(value) if real else math.nan
    except OverflowError:
        number = math.inf
    low, high = least is None or number >= least, most is None or number <= most
    if not (math.isfinite(number) and low and high and (above is None or number > above)):
        allowed = _between(least, most) if above is None else f" above {above:g}"
        allowed += f", at most {most:g}" if above is not None and most is not None else ""
        raise ValueError(f"{name}={shown(value)}: must be a finite number{allowed}")
    return number


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """``value``, which must be one of the texts ``allowed``."""
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        known = ", ".join(map(repr, allowed))
        hint = did_you_mean(value, allowed)
        raise ValueError(f"{name}={shown(value)}: must be one of {known}{hint}")
    return value


def device(name: str, value: Any) -> torch.device:
    """``value`` as a device that tensors can be put on here, with its index."""
    text = value.lower() if isinstance(value, str) else ""
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value")
        wanted = torch.device(value)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        kind, colon, index = text.partition(":")
        better = OTHER_NAMES.get(kind) or next(
            iter(get_close_matches(kind, ["cpu", "cuda", "mps"], n=1)), None
        )
        hint = f"; did you mean {better + colon + index!r}?" if better else ""
        raise ValueError(
            f"{name}={shown(value)}: must be a device of PyTorch such as 'cpu', 'cuda' or "
            f"'cuda:0'{hint}"
        ) from None
    if wanted.type == "meta":
        raise ValueError(f"{name}={shown(value)}: holds no values; use 'cpu' or 'cuda'")
    try:
        return torch.empty(0, device=wanted).device
    except Exception as e:  # which one depends on the device
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__).rstrip(".")
        raise ValueError(
            f"{name}={shown(value)}: is not available here ({reason}); use 'cpu'"
        ) from None


def dtype(name: str, value: Any) -> torch.dtype:
    """``value``, which must be a floating point type that networks compute in."""
    if not isinstance(value, torch.dtype) or value not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        raise ValueError(f"{name}={shown(value)}: must be one of {known}")
    return value


def tensor(
    name: str,
    value: Any,
    shape: Sequence[Any] | None = None,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    finite: bool = False,
) -> Tensor:
    """``value``, a dense tensor.

    Args:
        name: of the argument.
        value: what was given.
        shape: sizes, or letters for any size; a last ``...`` stands for any further dimensions.
        dtypes: what is allowed; by default any.
        finite: refuse NaN and infinity, which waits for the device.
    """
    sizes = "" if shape is None else f" {_sizes(shape)}"
    if not isinstance(value, Tensor):
        how = f"; pass torch.as_tensor({name})" if isinstance(value, np.ndarray) else ""
        raise ValueError(f"{name}={shown(value)}: must be a tensor{sizes}{how}")
    if value.layout != torch.strided or value.is_quantized:
        raise ValueError(f"{name}={shown(value)}: must be a dense tensor; convert it first")
    if shape is not None and not _fits(value.shape, shape):
        raise ValueError(f"{name}={shown(value)}: must be a tensor{sizes}")
    if dtypes is not None and value.dtype not in dtypes:
        known = ", ".join(map(str, dtypes))
        raise ValueError(f"{name}={shown(value)}: must be of {known}; convert it with .to(...)")
    if finite and not value.is_meta and not bool(value.isfinite().all()):
        raise ValueError(f"{name}={shown(value)}: must be finite, and holds NaN or infinity")
    return value


def known_keywords(fn: C) -> C:
    """Decorates a public function, or class, to refuse unknown keywords with the nearest known.

    Of a function that takes ``**options`` it checks nothing: such a function knows its options.
    """
    if isinstance(fn, type):
        made: Any = fn
        made.__init__ = known_keywords(made.__init__)
        return fn
    parameters = signature(fn).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return fn
    names = {p.name for p in parameters if p.kind is not Parameter.POSITIONAL_ONLY}
    called = fn.__qualname__.removesuffix(".__init__")

    @wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= names:
            name = next(k for k in kwargs if k not in names)
            known = sorted(names - {"self", "cls"})
            raise ValueError(
                f"{called}({name}={shown(kwargs[name])}): has no argument {name!r}"
                f"{did_you_mean(name, known) or '; it takes ' + ', '.join(known)}"
            )
        return fn(*args, **kwargs)

    return checked  # type: ignore[return-value]


def did_you_mean(value: Any, known: Iterable[str]) -> str:
    """``"; did you mean 'plan'?"`` for a text near one of ``known``, else nothing."""
    near = get_close_matches(value[:100], [*known], n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def shown(value: Any) -> str:
    """Any value in at most 80 letters on one line; of arrays and tensors the shape and type."""
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Short(reprlib.Repr):
    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, Tensor) and (x.ndim or x.is_meta):
            where = "" if x.device.type == "cpu" else f" on {x.device}"
            return f"<tensor {tuple(x.shape)} of {x.dtype}{where}>"
        if isinstance(x, np.ndarray) and x.ndim:
            return f"<array {x.shape} of {x.dtype}>"
        if isinstance(x, int) and x.bit_length() > 128:
            return f"<number of {x.bit_length()} bits>"
        return super().repr1(x, level)


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 60


def _between(least: float | None, most: float | None) -> str:
    if least is None:
        return "" if most is None else f", at most {_plain(most)}"
    return f" from {_plain(least)}" + ("" if most is None else f" to {_plain(most)}")


def _plain(limit: float) -> str:
    power = int(limit).bit_length()
    return f"2**{power} - 1" if power > 40 and limit == 2**power - 1 else f"{limit:,}"


def _sizes(shape: Sequence[Any]) -> str:
    sizes = ", ".join("..." if s is Ellipsis else str(s) for s in shape)
    return f"({sizes}{',' if len(shape) == 1 else ''})"


def _fits(found: Sequence[int], shape: Sequence[Any]) -> bool:
    if shape and shape[-1] is Ellipsis:
        shape = shape[:-1]
        found = found[: len(shape)]
    same = len(found) == len(shape)
    return same and all(isinstance(s, str) or n == s for n, s in zip(found, shape, strict=True))
