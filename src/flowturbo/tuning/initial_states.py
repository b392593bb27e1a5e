"""The initial states of a search: noise, conditions and guidance scales, in three parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flowturbo import checks
from flowturbo import noise as random_noise
from flowturbo.field import Field, Wrapper, device_of, unwrapped
from flowturbo.tree import map_condition, slice_condition
from flowturbo.types import Condition, GuidanceRange, GuidanceScale, Time

__all__ = [
    "MIN_TRAJECTORIES",
    "InitialStates",
    "WithNull",
    "check_condition",
    "check_eval_mode",
    "check_field",
    "check_negative",
    "check_noise",
    "initial_states",
    "shape_of",
]

MIN_TRAJECTORIES = 32  # with fewer nothing is fitted
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
NUMBERS = 2**16  # in the states to fit on, by default: small states are cheap


@dataclass(frozen=True)
class InitialStates:
    """N initial states with their conditions and guidance scales.

    Attributes:
        noise: the states, (N, ...).
        cond: the condition of the N rows, or None.
        guidance: a number, or one per row (N,).
        bounds: where the parts to fit on, to choose on and to test on begin and end.
    """

    noise: Tensor
    cond: Condition
    guidance: GuidanceScale
    bounds: tuple[int, int, int, int]

    def __len__(self) -> int:
        return len(self.noise)

    def rows(self, rows: slice) -> tuple[Tensor, Condition, GuidanceScale]:
        """Some of them."""
        return (
            self.noise[rows],
            slice_condition(self.cond, rows),
            slice_condition(self.guidance, rows),
        )


def initial_states(
    model: Field,
    noise: Tensor | None,
    cond: Condition,
    guidance: GuidanceRange,
    *,
    trajectories: int | None,
    search: bool,
    seed: int,
) -> InitialStates:
    """The initial states of `flowturbo.tune`, from its arguments.

    Raises:
        ValueError: if noise or conditions are not as the field takes them.
    """
    if noise is None:
        trajectories = _default_number(model) if trajectories is None else trajectories
        rest = 2 * trajectories if search else trajectories
        bounds = (0, trajectories, trajectories + rest, trajectories + 2 * rest)
        noise, how = _random_noise(model, bounds[-1], seed), f"trajectories={trajectories} takes"
    else:
        more = f", and {MIN_TRAJECTORIES} to fit on"
        noise = check_noise(model, noise, 4, more, trajectories=trajectories)
        how = "noise has"
        n = len(noise)
        bounds = (0, -(-n // 2), -(-3 * n // 4), n)
    n = len(noise)
    if n < MIN_TRAJECTORIES:  # nothing is fitted: all but the test part is there to choose on
        bounds = (0, 0, *bounds[2:])
    generator = torch.Generator().manual_seed(seed)
    if cond is not None:
        cond = check_condition(cond, n, how, noise.device)
    elif hasattr(model, "random_condition"):
        cond = model.random_condition(n, generator)
    scale: GuidanceScale = guidance[0] if isinstance(guidance, tuple) else guidance
    if isinstance(guidance, tuple) and guidance[0] < guidance[1]:
        low, high = guidance
        scale = low + (high - low) * torch.rand(n, generator=generator).to(noise.device)
    return InitialStates(noise, cond, scale, bounds)


def check_field(name: str, field: object) -> None:
    """Raise ``ValueError`` unless ``field`` can be called; the name of a model cannot."""
    if not callable(field):
        how = f"; load it: flowturbo.load({field!r})" if isinstance(field, str) else ""
        raise ValueError(
            f"{name}={checks.shown(field)}: must be a model of flowturbo.load, or a field "
            f"(x, t, cond) -> v{how}"
        )
    checks.function(name, field, "x, t, cond")


def check_eval_mode(name: str, field: object) -> None:
    """Raise ``ValueError`` for a network in training mode, whose velocities may be random."""
    field = unwrapped(field)
    for module in field.modules() if isinstance(field, nn.Module) else ():
        has_weights = next(module.parameters(recurse=False), None) is not None
        if module.training and (has_weights or isinstance(module, DROPOUT)):
            raise ValueError(
                f"{name}={type(field).__name__}: its {type(module).__name__} is in training mode; "
                "call .eval() on the network first"
            )


class WithNull(Wrapper):
    """A field whose null condition is ``null``, of one row."""

    def __init__(self, field: Field, null: Condition) -> None:
        super().__init__(field)
        self._null = null

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """``field(x, t, cond)``."""
        return self.field(x, t, cond)

    def null_condition(self, cond: Condition) -> Condition:
        """The null condition, whatever the condition."""
        return self._null


def check_negative(negative: Condition, device: torch.device) -> Condition:
    """``negative`` with arrays as tensors; refused unless each has one row."""
    return check_condition(negative, 1, "a negative condition has", device)


def _default_number(model: Field) -> int:
    """Trajectories to fit on: many of small states."""
    numbers = math.prod(getattr(model, "shape", (1024,)))
    return min(max(64, NUMBERS // max(1, numbers)), 1024)


def _random_noise(model: Field, n: int, seed: int) -> Tensor:
    first = 1_000_000_000 * (seed + 1)  # far from the seeds of images
    return random_noise.draw(range(first, first + n), shape_of(model), device=device_of(model))


def shape_of(model: Field) -> tuple[int, ...]:
    """The shape of the states of ``model``; ``ValueError`` if it has none."""
    if not hasattr(model, "shape"):
        raise ValueError(
            "noise=None: a field without a shape needs noise of its own; pass a tensor (N, ...)"
        )
    return tuple(model.shape)


def check_noise(
    model: Field, noise: object, least: int, more: str = "", **counts: int | None
) -> Tensor:
    """The caller's noise; half precision becomes float32, as in sampling.

    Args:
        model: the model that takes it.
        noise: the noise to check.
        least: the least number of rows.
        more: what the message adds about the rows.
        counts: numbers of rows that cannot be combined with it, by the names of their arguments.

    Raises:
        ValueError: unless it is (N, ...), finite, ``least`` rows or more, as ``model`` takes it.
    """
    for name, value in counts.items():
        if value is not None:
            raise ValueError(
                f"{name}={value} and noise={checks.shown(noise)}: all rows of noise are used; "
                f"leave {name} out"
            )
    noise = checks.tensor("noise", noise, dtypes=checks.DTYPES, finite=True)
    if not noise.ndim or len(noise) < least or not noise.numel():
        raise ValueError(
            f"noise={checks.shown(noise)}: must be (N, ...) with at least {least} rows{more}"
        )
    shape = getattr(model, "shape", noise.shape[1:])
    if tuple(noise.shape[1:]) != tuple(shape):
        sizes = ", ".join(["N", *map(str, shape)])
        raise ValueError(f"noise={checks.shown(noise)}: this model takes ({sizes})")
    weights = getattr(model, "parameters", None)
    weight = next(weights(), None) if callable(weights) else None
    if weight is not None and weight.device != noise.device:
        raise ValueError(
            f"noise={checks.shown(noise)}: the model is on {weight.device}; pass "
            f"noise.to('{weight.device}')"
        )
    half = noise.dtype in (torch.float16, torch.bfloat16)
    return (noise.float() if half else noise).detach()


def check_condition(cond: Condition, n: int, how: str, device: torch.device) -> Condition:
    """``cond`` with arrays as tensors; refused unless each has a row for each of ``n`` states.

    Args:
        cond: a condition, or None.
        n: number of initial states.
        how: where the number comes from, such as "batch=8 takes".
        device: of the states.
    """
    if isinstance(cond, (list, tuple)) and not any(map(_nested, cond)):
        raise ValueError(
            f"cond={checks.shown(cond)}: a list of labels or numbers is not a condition; pass "
            "model.condition([...]) of a model with a card, or a tensor with a row for each state"
        )

    def row_for_each(c: object) -> object:
        if isinstance(c, np.ndarray):
            try:
                c = torch.as_tensor(c).to(device)
            except TypeError:
                raise ValueError(f"cond={checks.shown(c)}: must hold numbers") from None
        if not isinstance(c, Tensor):
            return c
        if not c.ndim or len(c) != n:
            raise ValueError(f"cond={checks.shown(c)}: {how} {n} rows; must have a row for each")
        if c.device != device:
            raise ValueError(
                f"cond={checks.shown(c)}: the noise is on {device}; pass cond.to('{device}')"
            )
        return c.detach()

    return map_condition(row_for_each, cond)


def _nested(c: object) -> bool:
    return c is None or isinstance(c, (Tensor, np.ndarray, list, tuple, Mapping))
