r"""Preserving contrast: regression to the mean, undone by a constraint on the fit.

Least squares replace what a sampler cannot reach by a mean: the estimate of least distortion does
not have the best perceptual quality (Blau & Michaeli 2018, The Perception-Distortion Tradeoff,
arXiv 1711.06077). The regression of the final states ``x`` on those of the reference, ``c``,
therefore has a slope below 1, and a white background comes out slightly grey. This is far less than
the error itself, but it is the same everywhere, and image features respond to it first. Fits can be
constrained to a slope of 1,

.. math:: \langle \mathrm{clip}(x), c \rangle = \langle \mathrm{clip}(c), c \rangle,

by a Lagrange multiplier on the weights that determine the final state; ``clip`` is what decoding
does to states, the identity for latents. The constraint asks for a slightly larger slope, since too
small a slope is visible and the excess is not: by two standard errors, since few trajectories
estimate the slope poorly, and by ``MARGIN`` for white backgrounds, because ink, which errors make
fainter, counts in the slope.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flowturbo.plan.checks import LARGEST

__all__ = ["Contrast", "products", "solve_least_squares"]

CONFIDENCE = 2.0  # standard errors
MARGIN = 7e-4  # of the slope, measured on `digits`
ITERATIONS = 8  # to the condition, which clipping makes nonlinear
Limits = tuple[float, float]


@dataclass(frozen=True)
class Contrast:
    """The condition on the final states.

    Attributes:
        end: (N, ...) those of the reference, ``c``.
        limits: range of states, beyond which decoding clips them; None if it does not.
    """

    end: Tensor
    limits: Limits | None = None

    def missing(self, x: Tensor) -> float:
        """By how much the slope of final states ``x`` (N, ...) is below the required one."""
        rows = self._shares(self._clip(self.end) - self._clip(x))
        error = rows.std() / len(rows) ** 0.5 if len(rows) > 1 else 0.0
        return float(rows.mean() + CONFIDENCE * error) + MARGIN

    def slopes(self, x: Tensor, directions: Sequence[Tensor]) -> Tensor:
        """How the slope of ``x`` changes with each of the directions, (len,) float64."""
        unclipped = x == self._clip(x)
        return torch.stack([self._shares(v * unclipped).mean() for v in directions])

    def corrected(self, gram: Tensor, step: Tensor, slopes: Tensor, missing: float) -> Tensor:
        """A step of least squares, corrected at the least cost so that it adds what is missing.

        Args:
            gram: (n, n) of the least squares.
            step: (n,) their solution.
            slopes: (n,) how the slope changes with each number of the step.
            missing: of the slope, before the step.
        """
        across = solve_least_squares(gram, slopes)
        gain = float(slopes @ across)
        if not gain > 0 or not math.isfinite(missing):
            return step
        return step + across * ((missing - float(slopes @ step)) / gain)

    def restored(self, x: Tensor, directions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The least change of final states ``x`` along ``directions`` that restores the contrast.

        Returns:
            Its coefficients, (len,) float64, and the states after it; zeros, and ``x``, where they
            would make weights too large for a plan.
        """
        rows = [v.flatten() for v in directions]
        gram = products(rows, rows)
        gram += 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        total, moved = gram.new_zeros(len(gram)), x
        for _ in range(ITERATIONS):
            missing = self.missing(moved)
            slopes = self.slopes(moved, directions)
            step = self.corrected(gram, torch.zeros_like(total), slopes, missing)
            for a, v in zip(step, directions, strict=True):
                moved = torch.add(moved, v, alpha=float(a))
            total += step
        if not total.abs().max() <= LARGEST / 2:
            return torch.zeros_like(total), x
        return total, moved

    def _clip(self, x: Tensor) -> Tensor:
        return x if self.limits is None else x.clamp(*self.limits)

    def _shares(self, x: Tensor) -> Tensor:
        """The contribution of each row to a slope, times N; (N,) float64, on the CPU."""
        dot = self._dot(x)
        return dot / self._square if self._square else torch.zeros_like(dot)

    def _dot(self, x: Tensor) -> Tensor:
        return (x.double() * self.end).reshape(len(x), -1).sum(1).cpu()

    @cached_property
    def _square(self) -> Tensor:
        return self._dot(self.end).mean()


def solve_least_squares(gram: Tensor, right: Tensor) -> Tensor:
    """The least ``w`` with ``gram @ w`` nearest to ``right``, (n,) float64 on the CPU.

    What ``gram`` does not determine, where it is singular, stays 0, and so does everything of a
    system with numbers that are not finite: its plan fails by its error.
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
