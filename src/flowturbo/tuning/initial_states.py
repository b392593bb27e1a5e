"""What a search starts from: noises, conditions and scales of guidance, checked, in three parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo import checks
from flowturbo import noise as noises
from flowturbo.field import device_of
from flowturbo.tree import map_condition, slice_condition

__all__ = ["LEAST", "InitialStates", "Scale", "check_condition", "check_field", "initial_states"]

LEAST = 32  # noises without which nothing is fitted
Scale = float | tuple[float, float]


@dataclass(frozen=True)
class InitialStates:
    """Noises (N, ...), their condition, their scale of guidance (a number or (N,)).

    ``cuts`` says where the parts to fit on, to choose on and to test on begin and end.
    """

    noise: Tensor
    cond: Any
    guidance: float | Tensor
    cuts: tuple[int, int, int, int]

    def __len__(self) -> int:
        return len(self.noise)

    def rows(self, rows: slice) -> tuple[Tensor, Any, float | Tensor]:
        """Some of them."""
        return (
            self.noise[rows],
            slice_condition(self.cond, rows),
            slice_condition(self.guidance, rows),
        )


def initial_states(
    model: Any,
    noise: Tensor | None,
    cond: Any,
    guidance: Scale,
    *,
    trajectories: int,
    search: bool,
    seed: int,
) -> InitialStates:
    """What `flowturbo.tune` starts from; its arguments.

    Raises:
        ValueError: if noises or conditions are not as the field takes them.
    """
    if noise is None:
        rest = 2 * trajectories if search else trajectories
        cuts = (0, trajectories, trajectories + rest, trajectories + 2 * rest)
        noise, how = _drawn(model, cuts[-1], seed), f"trajectories={trajectories} takes"
    else:
        noise, how = _checked(model, noise), "noise has"
        n = len(noise)
        cuts = (0, -(-n // 2), -(-3 * n // 4), n)
    n = len(noise)
    if n < LEAST:  # nothing is fitted: all but the test part is there to choose on
        cuts = (0, 0, *cuts[2:])
    generator = torch.Generator().manual_seed(seed)
    if cond is not None:
        cond = check_condition(cond, n, how, noise.device)
    elif hasattr(model, "random_condition"):
        cond = model.random_condition(n, generator)
    scale: float | Tensor = guidance[0] if isinstance(guidance, tuple) else guidance
    if isinstance(guidance, tuple) and guidance[0] < guidance[1]:
        low, high = guidance
        scale = low + (high - low) * torch.rand(n, generator=generator).to(noise.device)
    return InitialStates(noise, cond, scale, cuts)


def check_field(name: str, field: Any) -> None:
    """Raise ``ValueError`` unless ``field`` can be called; a name is not yet a model."""
    if not callable(field):
        how = f"; load it: flowturbo.load({field!r})" if isinstance(field, str) else ""
        raise ValueError(
            f"{name}={checks.shown(field)}: must be a model of flowturbo.load, or a field "
            f"(x, t, cond) -> v{how}"
        )
    checks.function(name, field, "x, t, cond")


def _drawn(model: Any, n: int, seed: int) -> Tensor:
    if not hasattr(model, "shape"):
        raise ValueError(
            "noise=None: a field without a shape needs noise of its own; pass a tensor (N, ...)"
        )
    first = 1_000_000_000 * (seed + 1)  # far from the seeds that pictures are drawn with
    return noises.draw(range(first, first + n), model.shape, device=device_of(model))


def _checked(model: Any, noise: Any) -> Tensor:
    """Noises of the caller's own, half precision in float32, as sampling keeps its states."""
    noise = checks.tensor("noise", noise, dtypes=checks.DTYPES, finite=True)
    if not noise.ndim or len(noise) < 4 or not noise.numel():
        raise ValueError(
            f"noise={checks.shown(noise)}: must be (N, ...) with at least 4 rows, and {LEAST} to "
            "fit on"
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


def check_condition(cond: Any, n: int, how: str, device: torch.device) -> Any:
    """``cond`` with arrays as tensors; refused unless each has a row for each of ``n`` noises.

    Args:
        cond: a condition, or None.
        n: how many noises there are.
        how: what says so, such as "batch=8 takes".
        device: of the noises.
    """
    if isinstance(cond, (list, tuple)) and not any(map(_nested, cond)):
        raise ValueError(
            f"cond={checks.shown(cond)}: a list of labels or numbers is no condition; pass "
            "model.condition([...]) of a model with a card, or a tensor with a row for each noise"
        )

    def row_for_each(c: Any) -> Any:
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


def _nested(c: Any) -> bool:
    return c is None or isinstance(c, (Tensor, np.ndarray, list, tuple, Mapping))
