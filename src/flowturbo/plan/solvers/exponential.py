"""UniPC and DPM-Solver++ on the linear path, as the rows of a plan.

Both approximate the predicted data ``D = x + (1-t)*v`` by a polynomial in the logarithm of the
signal-to-noise ratio, ``l(t) = log(t/(1-t))``, and solve the linear part exactly. From ``s`` to
``t``, with ``g = (t-s)/(1-s)`` and ``h = l(t) - l(s)``,

    x_t = (1-g)*x_s + g * (the mean of D(l(s) + r*h) over r in [0, 1], weighted by exp(-(1-r)*h))

In DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) the polynomial interpolates the last ``order``
evaluations. The predictor of UniPC (Zhao et al. 2023, arXiv 2302.04867, with
``B(h) = exp(h) - 1``) does the same; its corrector repeats the step from the same start with the
next evaluation, at the predicted state, as another point. Where the polynomial is a line, both use
1/2 for the mean of ``r``; DPM-Solver++ of order 3 uses half the mean of ``r**2``, as its authors'
code does.

The order increases over the first steps and decreases over the last, as in diffusers; order 1 is
exact at ``t = 1``, where ``l`` is infinite. Backward, from data to noise, noise and data exchange
their roles: the polynomial is that of the predicted noise ``x - t*v``, and order 1 is exact at
``t = 0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from flowturbo.path import Times
from flowturbo.plan.builder import Table
from flowturbo.plan.solvers.registry import Solver

__all__ = ["SOLVERS"]

EARLIEST = 1e-6  # replaces t = 0, whose log-ratio is infinite, as in diffusers' UniPC
Array = npt.NDArray[np.float64]


def _fill(table: Table, points: Times, scheme: str, order: int) -> None:
    """``scheme`` ("UNIPC" or "DPM") of order 2 or 3 over ascending ``points``."""
    n = len(points) - 1
    data = np.zeros((n, n))  # the data predicted by each evaluation, as weights of the velocities
    start = evaluated = np.zeros(n)  # states: at the start of the step, and that of the evaluation
    before: list[int] = []  # earlier evaluations that the polynomial interpolates
    for i in range(n):
        table.evaluate()
        data[i] = evaluated
        data[i, i] += 1 - points[i]
        if scheme == "UNIPC" and i > 0:
            start = _step(points, i - 1, start, data, [i, *before])
        left = n - i if scheme == "UNIPC" or n < 15 or points[i + 1] == 1 else order
        before = [i - j for j in range(1, min(order, i + 1, left))]
        new = _step(points, i, start, data, before, 0.5 if scheme == "DPM" else 1.0)
        gain = new - evaluated
        table.move(points[i + 1], {int(j): float(gain[j]) for j in np.flatnonzero(gain)})
        evaluated = new
        if scheme == "DPM":
            start = new


def _step(
    points: Times, i: int, x: Array, data: Array, others: Sequence[int], second: float = 1.0
) -> Array:
    """The state ``x`` advanced over interval ``i``; ``second`` scales the mean of ``r**2``.

    The polynomial interpolates ``data[i]`` and those of ``others``.
    """
    s, t = points[i : i + 2]
    mean = data[i]
    if others:
        at = np.maximum(points[[i, i + 1, *others]], min(EARLIEST, points[1] / 2))
        ratio = np.log(at / (1 - at))
        h = ratio[1] - ratio[0]
        r = (ratio[2:] - ratio[0]) / h
        means = _means(h, len(r)) * np.array([1.0, second, 1.0])[: len(r)]
        share = np.linalg.solve(np.vander(r, increasing=True).T, means) if len(r) > 1 else 0.5
        mean = mean + share / r @ (data[list(others)] - mean)
    g = (t - s) / (1 - s)
    return (1 - g) * x + g * mean


def _means(h: float, count: int) -> Array:
    """The means of ``r, r**2, ...`` over [0, 1] under weights ``exp(-(1 - r) * h)``."""
    integrals = [-np.expm1(-h) / h]
    for k in range(1, count + 1):
        integrals.append((1 - k * integrals[-1]) / h)
    return np.array(integrals[1:]) / integrals[0]


def _solver(scheme: str, order: int, title: str, source: str) -> Solver:
    return Solver(
        name=f"{scheme}{order}",
        title=title,
        order=2,  # the first and the last steps are of lower order
        counts="steps",
        fill=partial(_fill, scheme=scheme, order=order),
        mirrored=True,
        baseline=True,
        source=source,
    )


SOLVERS = (
    _solver("UNIPC", 2, "UniPC-2", "Zhao et al. 2023, arXiv 2302.04867"),
    _solver("UNIPC", 3, "UniPC-3", "Zhao et al. 2023, arXiv 2302.04867"),
    _solver("DPM", 2, "DPM-Solver++ 2M", "Lu et al. 2022, arXiv 2211.01095"),
    _solver("DPM", 3, "DPM-Solver++ 3M", "Lu et al. 2022, arXiv 2211.01095"),
)
