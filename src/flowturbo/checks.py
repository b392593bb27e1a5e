"""Checks of arguments: each returns the value, or raises a one-line ``ValueError``.

The line names the argument, its value and what is allowed.

Values of tensors are read only where `can_look` allows it, and on devices other than the CPU only
where documented, because reading them waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from flowturbo.messages import check_keywords, did_you_mean, known_keywords, reason, shown, warn

__all__ = [
    "DTYPES",
    "REALS",
    "can_look",
    "check_keywords",
    "device",
    "did_you_mean",
    "dtype",
    "flag",
    "function",
    "is_list",
    "known_keywords",
    "number",
    "one_of",
    "path",
    "shown",
    "sizes",
    "tensor",
    "warn",
    "whole",
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that networks compute in
REALS = (*DTYPES, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "hip": "cuda", "metal": "mps"}


def whole(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """``value`` as an int in [``least``, ``most``].

    NumPy integers, and 0-dim integer arrays and tensors, are allowed; True and 2.0 are not.
    """
    number = value
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        number = None if isinstance(value, Tensor) and value.is_meta else value.item()
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise ValueError(f"{name}={shown(value)}: must be a whole number{_between(least, most)}")
    number = int(number)
    if not (least is None or number >= least) or not (most is None or number <= most):
        raise ValueError(f"{name}={shown(value)}: must be a whole number{_between(least, most)}")
    return number


def number(
    name: str,
    value: object,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
) -> float:
    """``value`` as a finite float in [``least``, ``most``], or greater than ``above``."""
    try:
        real = isinstance(value, Real) and not isinstance(value, bool)
        number = float(value) if real else math.nan  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    low, high = least is None or number >= least, most is None or number <= most
    if not (math.isfinite(number) and low and high and (above is None or number > above)):
        allowed = _between(least, most) if above is None else f" above {above:g}"
        allowed += f", at most {most:g}" if above is not None and most is not None else ""
        raise ValueError(f"{name}={shown(value)}: must be a finite number{allowed}")
    return number


def flag(name: str, value: object) -> bool:
    """``value``, which must be True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={shown(value)}: must be True or False")
    return value


def path(name: str, value: object) -> Path:
    """``value`` as a path: a non-empty string, or a ``Path``."""
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise ValueError(f"{name}={shown(value)}: must be a path, a text or a pathlib.Path")
    return Path(value)


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Whether ``value`` is a list of something: a sequence or an array, but not a string."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def sizes(name: str, value: object) -> tuple[int, ...]:
    """``value`` as the shape of a tensor."""
    if not is_list(value):
        hint = f"; pass ({value},)" if isinstance(value, int) else ""
        raise ValueError(f"{name}={shown(value)}: must be sizes such as (3, 32, 32){hint}")
    return tuple(whole(f"{name}[{i}]", size, 0, 10**12) for i, size in enumerate(value))


def function(name: str, value: object, parameters: str, *, exactly: bool = True) -> Any:
    """``value``, which must be a function of ``parameters`` ("x, t, cond").

    Unless ``exactly``, it only needs to be callable.
    """
    if not callable(value) or isinstance(value, type):
        hint = did_you_forget(name, value)
        raise ValueError(f"{name}={shown(value)}: must be a function ({parameters}){hint}")
    if type(value).__module__.startswith("diffusers."):
        raise ValueError(
            f"{name}={type(value).__name__}: diffusers calls it with other arguments than "
            f"({parameters}); wrap the network as a field, or make one of a pipeline: "
            "flowturbo.integrations.diffusers.as_field(pipe, prompts)"
        )
    if not exactly or torch.compiler.is_compiling():
        return value
    try:
        taken = signature(value.forward if isinstance(value, nn.Module) else value)
    except (TypeError, ValueError):  # not known for all built-in functions
        return value
    try:
        taken.bind(*parameters.split(", "))
    except TypeError:
        raise ValueError(
            f"{name}={shown(value)}: is called as ({parameters}), and takes {taken}"
        ) from None
    return value


def did_you_forget(name: str, value: object) -> str:
    """A hint for a class or a name that was given in place of the object itself."""
    if isinstance(value, type):
        return "; pass an instance of the class"
    load = {"model": "load", "fallback": "load", "refiner": "load_refiner"}.get(name)
    return f"; pass flowturbo.{load}({shown(value)})" if load and isinstance(value, str) else ""


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """``value``, which must be one of the texts ``allowed``."""
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        known = ", ".join(map(repr, allowed))
        hint = did_you_mean(value, allowed)
        raise ValueError(f"{name}={shown(value)}: must be one of {known}{hint}")
    return value


def device(name: str, value: object) -> torch.device:
    """``value`` as a device that tensors can be put on here, with its index."""
    text = value.lower() if isinstance(value, str) else ""
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value")
        wanted = torch.device(value)  # type: ignore[call-overload]
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
        why = reason(e).rstrip(".")
        raise ValueError(
            f"{name}={shown(value)}: is not available here ({why}); use 'cpu'"
        ) from None


def dtype(name: str, value: object) -> torch.dtype:
    """``value``, which must be a floating point type that networks compute in."""
    if not isinstance(value, torch.dtype) or value not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        raise ValueError(f"{name}={shown(value)}: must be one of {known}")
    return value


def tensor(
    name: str,
    value: object,
    shape: Sequence[object] | None = None,
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
    wanted = "" if shape is None else f" {_sizes(shape)}"
    if not isinstance(value, Tensor):
        how = f"; pass torch.as_tensor({name})" if isinstance(value, np.ndarray) else ""
        raise ValueError(f"{name}={shown(value)}: must be a tensor{wanted}{how}")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise ValueError(f"{name}={shown(value)}: must be a dense tensor; convert it first")
    if shape is not None and not _fits(value.shape, shape):
        raise ValueError(f"{name}={shown(value)}: must be a tensor{wanted}")
    if dtypes is not None and value.dtype not in dtypes:
        known = ", ".join(map(str, dtypes))
        raise ValueError(
            f"{name}={shown(value)}: must be of {known}; convert it with {name}.to(...)"
        )
    if finite and can_look(value) and not bool(value.isfinite().all()):
        raise ValueError(f"{name}={shown(value)}: must be finite, and holds NaN or infinity")
    return value


def can_look(value: Tensor) -> bool:
    """Whether the values of a tensor may be read here.

    They may not if it has none, or while calls are traced, transformed (vmap) or captured in a CUDA
    graph.
    """
    if value.is_meta or torch.compiler.is_compiling() or type(value) not in (Tensor, nn.Parameter):
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return not (value.is_cuda and torch.cuda.is_current_stream_capturing())


def _between(least: float | None, most: float | None) -> str:
    if least is None:
        return "" if most is None else f", at most {_limit(most)}"
    return f" from {_limit(least)}" + ("" if most is None else f" to {_limit(most)}")


def _limit(limit: float) -> str:
    power = int(limit).bit_length()
    return f"2**{power} - {2**power - int(limit)}" if power > 40 else f"{limit}"


def _sizes(shape: Sequence[object]) -> str:
    sizes = ", ".join("..." if s is Ellipsis else str(s) for s in shape)
    return f"({sizes}{',' if len(shape) == 1 else ''})"


def _fits(found: Sequence[int], shape: Sequence[object]) -> bool:
    if shape and shape[-1] is Ellipsis:
        shape = shape[:-1]
        found = found[: len(shape)]
    same = len(found) == len(shape)
    return same and all(isinstance(s, str) or n == s for n, s in zip(found, shape, strict=True))
