r"""A solver that its own backward run undoes exactly: BELM of two steps, the leapfrog of any grid.

Wang et al. 2024 (arXiv 2410.07273), with step sizes :math:`h_k` and :math:`r = h_k / h_{k-1}`:

.. math:: x_{k+1} = (1 - r^2)\, x_k + r^2\, x_{k-1} + h_k (1 + r)\, v_k

Solved for :math:`x_{k-1}`, this is the same formula in the other direction. Two neighbouring
states therefore determine the whole run, in both directions, for any field; a run from a single
state begins with an Euler step. It is of order 2 on smooth grids, and only weakly stable: on few,
uneven steps its error is larger than that of Adams-Bashforth.
"""

from __future__ import annotations

import numpy as np

from flowturbo.path import Times
from flowturbo.plan.builder import Table
from flowturbo.plan.solvers.registry import Solver

__all__ = ["SOLVERS"]


def _fill(table: Table, points: Times) -> None:
    steps, last = np.diff(points), np.zeros(len(points))
    for k, h in enumerate(steps):
        table.evaluate()
        move = np.zeros(len(points))
        ratio = h / steps[k - 1] if k else 0.0
        move[k] = h * (1 + ratio)
        move -= ratio**2 * last
        table.move(float(points[k + 1]), {int(j): float(move[j]) for j in np.flatnonzero(move)})
        last = move


SOLVERS = (
    Solver(
        name="BELM",
        title="BELM (reversible)",
        order=2,
        counts="evaluations",
        fill=_fill,
        source="Wang et al. 2024, arXiv 2410.07273",
    ),
)
