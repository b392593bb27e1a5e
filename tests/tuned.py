"""Noise, fields and a refiner to fit plans with."""

from __future__ import annotations

import torch
from fields import mixture


def initial_noise(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, dtype=torch.float64, generator=generator)


FIELDS_AT_REST = {
    "-x*t": lambda x, t, cond: -x * t,
    "t": lambda x, t, cond: t * torch.ones_like(x),
    "0": lambda x, t, cond: 0 * x,
    "1": lambda x, t, cond: torch.ones_like(x),
    "x": lambda x, t, cond: x,
}


class Oracle:
    """A refiner that knows the velocity: what the best one could do."""

    distinct_times = 2

    def __call__(self, x, t, cond, history):
        return mixture(x, t)
