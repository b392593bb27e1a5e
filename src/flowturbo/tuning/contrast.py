r"""Contrast: what least squares takes from pictures, as a condition that gives it back.

What a sampler cannot reach, least squares replaces by a mean, so the regression of the fitted ends
``x`` on the true ones ``c`` has a slope below 1: white paper comes out a little grey. It is far
less than the error itself, but it is the same everywhere, and features of pictures see it first.
Fits can be held to a slope of 1,

.. math:: \langle \mathrm{clip}(x), c \rangle = \langle \mathrm{clip}(c), c \rangle,

by a Lagrange multiplier on the weights that decide about the end; ``clip`` is what decoding cuts
off, nothing for latents. They are asked for a little more, too little to be seen while a lack of it
is: two standard errors, since few trajectories do not tell the slope well, and ``SPARE``, which
paper needs where ink, that errors make fainter, has its share in the slope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flowturbo.plan.checks import LARGEST

__all__ = ["Contrast", "products", "solved"]

SURE = 2.0  # standard errors
SPARE = 7e-4  # of the slope, measured on `digits`
CLIPPED = 8  # steps to the condition, which clipping bends
Limits = tuple[float, float]


@dataclass(frozen=True)
class Contrast:
    """The condition for ends to reach.

    Attributes:
        end: (N, ...) the true ones, ``c``.
        limits: of states, beyond which decoding clips them; None where it does not.
    """

    end: Tensor
    limits: Limits | None = None

    def missing(self, x: Tensor) -> float:
        """What the slope of ends ``x`` (N, ...) is below what is asked for."""
        rows = self._shares(self._clip(self.end) - self._clip(x))
        error = rows.std() / len(rows) ** 0.5 if len(rows) > 1 else 0.0
        return float(rows.mean() + SURE * error) + SPARE

    def raised(self, x: Tensor, along: Sequence[Tensor]) -> Tensor:
        """How the slope of ``x`` changes with each of the directions ``along``, (len,) float64."""
        seen = x == self._clip(x)
        return torch.stack([self._shares(v * seen).mean() for v in along])

    def kept(self, gram: Tensor, step: Tensor, raised: Tensor, missing: float) -> Tensor:
        """A step of least squares, corrected at the least cost so that it adds what is missing.

        Args:
            gram: (n, n) of the least squares.
            step: (n,) their solution.
            raised: (n,) how the slope changes with each number of the step.
            missing: of the slope, before the step.
        """
        across = solved(gram, raised)
        bends = float(raised @ across)
        if not bends > 0 or not math.isfinite(missing):
            return step
        return step + across * ((missing - float(raised @ step)) / bends)

    def held(self, x: Tensor, along: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What to add of the directions ``along``, (len,) float64, to give ends ``x`` the contrast
        and change them least; and the ends then. Nothing, where it would take weights too large
        for a plan.
        """
        rows = [v.flatten() for v in along]
        gram = products(rows, rows)
        gram += 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        total, moved = gram.new_zeros(len(gram)), x
        for _ in range(CLIPPED):
            missing = self.missing(moved)
            step = self.kept(gram, torch.zeros_like(total), self.raised(moved, along), missing)
            for a, v in zip(step, along, strict=True):
                moved = torch.add(moved, v, alpha=float(a))
            total += step
        if not total.abs().max() <= LARGEST / 2:
            return torch.zeros_like(total), x
        return total, moved

    def _clip(self, x: Tensor) -> Tensor:
        return x if self.limits is None else x.clamp(*self.limits)

    def _shares(self, x: Tensor) -> Tensor:
        """What each row adds to a slope, times their number; (N,) float64, on the CPU."""
        dot = self._dot(x)
        return dot / self._square if self._square else torch.zeros_like(dot)

    def _dot(self, x: Tensor) -> Tensor:
        return (x.double() * self.end).reshape(len(x), -1).sum(1).cpu()

    @cached_property
    def _square(self) -> Tensor:
        return self._dot(self.end).mean()


def solved(gram: Tensor, right: Tensor) -> Tensor:
    """The least ``w`` with ``gram @ w`` nearest to ``right``, (n,) float64 on the CPU.

    What decides nothing, where ``gram`` is singular, stays 0, and so does all of a system whose
    numbers are not finite: its plan fails by its error.
    """
    if not (gram.isfinite().all() and right.isfinite().all()):
        return torch.zeros_like(right)
    return torch.linalg.lstsq(gram, right[:, None], driver="gelsd").solution[:, 0]


def products(a: Sequence[Tensor], b: Sequence[Tensor], chunk: int = 1 << 20) -> Tensor:
    """The products of flat tensors, (len(a), len(b)) float64 on the CPU, a chunk at a time."""
    one, two = torch.stack(tuple(a)), torch.stack(tuple(b))
    total = torch.zeros(len(one), len(two), dtype=torch.float64)
    for i in range(0, one.shape[1], chunk):
        part = one[:, i : i + chunk].double() @ two[:, i : i + chunk].double().T
        total += part.cpu()
    return total
