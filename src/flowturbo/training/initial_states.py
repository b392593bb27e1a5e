"""Initial states of a teacher's trajectories: noise, conditions and scales of guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowturbo import noise
from flowturbo.checks import DTYPES, function, number, shown, tensor, whole
from flowturbo.field import Field, device_of
from flowturbo.guidance import Guidance
from flowturbo.models.conditioning import TextCondition
from flowturbo.tree import map_condition
from flowturbo.types import Condition, GuidanceRange

__all__ = ["InitialStateSampler", "guidance_range"]


@dataclass(frozen=True)
class InitialStateSampler:
    """Noise, condition and guidance scale of trajectory ``i``, for any ``i``, always the same.

    Attributes:
        guidance: (lowest, highest) scale; that of each trajectory is uniform between them.
        seed: seed of all random numbers.
        noise: (N, *shape), noise of the first N trajectories, where N may be 0; others have
            standard normal noise.
        cond: conditions, the first N those of ``noise``; other trajectories have one of them at
            random.
    """

    guidance: tuple[float, float]
    seed: int
    noise: Tensor
    cond: Condition

    @classmethod
    def of(
        cls,
        model: Field,
        guidance: GuidanceRange,
        seed: int,
        noise: Tensor | None,
        cond: Condition,
    ) -> InitialStateSampler:
        """The initial states for ``model``, from the caller's arguments or else the model's card.

        Raises:
            ValueError: if these do not determine initial states.
        """
        low, high = guidance_range(guidance)
        seed = whole("seed", seed, 0, 2**23 - 1)
        function("model", model, "x, t, cond")
        shape = getattr(model, "shape", None)
        if noise is None and shape is None:
            raise ValueError("noise=None: the field has no shape; pass noise and cond")
        if noise is not None:
            noise = tensor("noise", noise, ("N", "D", ...), dtypes=DTYPES, finite=True).detach()
            if shape is not None and tuple(noise.shape[1:]) != tuple(shape):
                raise ValueError(
                    f"noise={shown(noise)}: the field's states have the shape {tuple(shape)}"
                )
        if cond is not None:
            _check_rows(cond, None if noise is None else len(noise))
        if cond is None and noise is None and hasattr(model, "random_condition"):
            cond = model.random_condition(4096, torch.Generator().manual_seed(seed))
            if cond is None and isinstance(getattr(model, "conditioning", None), TextCondition):
                name = getattr(model, "name", None)
                raise ValueError(
                    f"model {name!r} takes prompts and its card lists none; "
                    "pass cond=model.condition([...]) of prompts to train on"
                )
        if (low, high) != (1.0, 1.0) and (cond is None or not hasattr(model, "null_condition")):
            what = "no cond is given" if cond is None else "the field has no null_condition(cond)"
            raise ValueError(
                f"guidance={shown(guidance)}: {what}; pass guidance=1 if the field is guided "
                "already, or has no condition"
            )
        if noise is None:
            noise = torch.empty(0, *(shape or ()), device=device_of(model))
        return cls((low, high), seed, noise, cond)

    def rows(self, first: int, last: int) -> tuple[Tensor, Condition, Tensor]:
        """Noise, conditions and scales of trajectories ``first`` to ``last - 1``."""
        given = len(self.noise)
        which, shares = [], []
        for i in range(first, last):
            generator = torch.Generator().manual_seed(noise.mixed(self.seed, 0, i))
            index = int(torch.randint(2**31, (1,), generator=generator))
            which.append(i if i < given else index)
            shares.append(float(torch.rand(1, generator=generator)))
        low, high = self.guidance
        w = low + (high - low) * torch.tensor(shares, device=self.device)
        fresh = range(max(first, given), max(last, given))
        x0 = noise.draw(
            [noise.mixed(self.seed, 1, i) for i in fresh], self.shape, device=self.device
        )
        x0 = torch.cat([self.noise[first:last].to(x0), x0])
        pick = lambda c: c[[i % len(c) for i in which]].to(self.device)
        return x0, None if self.cond is None else map_condition(pick, self.cond), w

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a state."""
        return tuple(self.noise.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.noise.device

    def guided(self, model: Field, scales: Tensor) -> Field:
        """``model`` guided by the scale of each row."""
        return model if self.guidance == (1.0, 1.0) else Guidance(model, scales)


def guidance_range(guidance: object) -> tuple[float, float]:
    """(lowest, highest) of a scale of guidance, or of a range of them."""
    parts = guidance if isinstance(guidance, (tuple, list)) else (guidance, guidance)
    low, high = (number("guidance", w) for w in parts) if len(parts) == 2 else (1.0, 0.0)
    if not low <= high:
        raise ValueError(f"guidance={shown(guidance)}: must be a scale, or (lowest, highest)")
    return low, high


def _check_rows(cond: Condition, rows: int | None) -> None:
    """Refuse conditions that are not tensors of as many rows."""
    found = set()

    def see(c: object) -> None:
        if not isinstance(c, Tensor) or c.ndim == 0:
            raise ValueError(
                f"cond={shown(cond)}: must be a tensor with a row for each condition, or a tuple, "
                "list or dict of such; pass torch.as_tensor(cond), or model.condition([...])"
            )
        found.add(len(c))

    map_condition(see, cond)
    if len(found) != 1 or 0 in found or (rows is not None and found != {rows}):
        wanted = "as many for all, at least 1" if rows is None else f"{rows}, one for each of noise"
        raise ValueError(f"cond of {', '.join(map(str, sorted(found)))} rows: must be {wanted}")
