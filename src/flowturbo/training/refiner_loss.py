"""The loss of a velocity refiner, and its errors on trajectories held out.

The loss is the mean square of the refiner's velocity minus the teacher's. That of each row is
divided by its squared change under linear extrapolation, plus a tenth of the batch mean of these,
so that small gaps count as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from flowturbo.refiner.history import VelocityRefiner
from flowturbo.training.trajectories import Batch, Trajectories
from flowturbo.types import JsonObject

__all__ = ["LazySource", "VelocityRegression", "held_out_errors", "relative_error"]


class Source(Protocol):
    """What batches are drawn from."""

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        """``n`` rows."""
        ...


class LazySource:
    """A source that is made when it is first drawn from: not at all by a run that has ended."""

    def __init__(self, make: Callable[[], Source]) -> None:
        self.make = cache(make)

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        """``n`` rows."""
        return self.make().batch(n, generator)


class VelocityRegression:
    """The objective: an equal part of each batch from each source.

    Args:
        network: the refiner.
        sources: to draw batches from.
        export: writes the averaged refiner, with a record of how it was trained.
    """

    def __init__(
        self,
        network: VelocityRefiner,
        sources: Sequence[Source],
        export: Callable[[VelocityRefiner, JsonObject], None],
    ) -> None:
        self.network, self.sources, self.export = network, sources, export

    def draw(self, n: int, generator: torch.Generator) -> list[Batch]:
        """A batch of each source."""
        rows = max(1, n // len(self.sources))
        return [s.batch(rows, generator) for s in self.sources]

    def loss(
        self, forward: Callable[..., Tensor], batch: list[Batch], device: torch.device
    ) -> Tensor:
        """The mean over the sources."""
        return torch.stack([relative_error(forward, b.to(device)) for b in batch]).mean()

    def preview(self, network: VelocityRefiner, step: int) -> None:
        """Nothing to see."""


def relative_error(forward: Callable[..., Tensor], b: Batch) -> Tensor:
    """The loss of a batch."""
    square = lambda a: a.square().flatten(1).mean(1)
    off = square(forward(b.x, b.t, b.cond, [b.b, b.a], b.guidance) - b.v)
    change = square(b.step)
    # fields that are constant in time change by nothing
    return (off / (change + 0.1 * change.mean()).clamp(min=1e-12)).mean()


@torch.no_grad()
def held_out_errors(
    refiner: VelocityRefiner, trajectories: Trajectories, rows: int = 256
) -> dict[str, dict[str, float]]:
    """Mean squares of the predicted velocity minus the teacher's, on trajectories held out.

    Returns:
        for gaps of up to 3 steps and of all sizes trained on, the errors of the refiner, of
        repeating the last velocity, and of linear extrapolation.
    """
    errors = {}
    for gap in sorted({min(3, trajectories.gap), trajectories.gap}):
        b = trajectories.batch(rows, torch.Generator().manual_seed(0), gap=gap, held_out=True)
        b = b.to(next(refiner.parameters()).device)
        last = b.a[1]
        guesses = {
            "refiner": refiner.predict(b.x, b.t, b.cond, b.a, b.b, b.guidance),
            "last velocity": last,
            "linear extrapolation": last + b.step,
        }
        off = {name: float((guess - b.v).square().mean()) for name, guess in guesses.items()}
        errors[f"mean square, gaps of 1 to {gap} steps"] = off
    return errors
