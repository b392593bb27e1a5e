"""Adams-Bashforth: one evaluation per step, extrapolated from the last ones.

iPNDM uses the weights of equal steps on any grid (Liu et al. 2022, arXiv 2202.09778; without its
Runge-Kutta start, Zhang and Chen 2022, arXiv 2204.13902): it is of order 2 where step sizes change
little, and amplifies errors less than Adams-Bashforth where they change much.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from flowturbo.path import Times
from flowturbo.plan.builder import Table
from flowturbo.plan.solvers import runge_kutta
from flowturbo.plan.solvers.registry import Solver

__all__ = ["SOLVERS", "extrapolate"]

EQUAL = (  # weights of the latest velocity and those before it, on equal steps
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
START = {2: "midpoint", 3: "ralston3", 4: "rk4"}  # as many stages as its order


def extrapolate(table: Table, to: float, points: Sequence[int]) -> None:
    """Advance the state to ``to`` along the polynomial through the velocities ``points``.

    The points are evaluations at distinct times; the polynomial is integrated exactly (the
    variable-step Adams-Bashforth formula; Hairer, Norsett & Wanner I, III.5).
    """
    h = to - table.time
    nodes = (np.array([table.times[j] for j in points]) - table.time) / h
    powers = np.arange(len(nodes))
    weights = np.linalg.solve(nodes[None, :] ** powers[:, None], h / (powers + 1))
    table.move(to, dict(zip(points, weights.tolist(), strict=True)))


def _fill(table: Table, points: Times, order: int, first: int) -> None:
    """Steps of ``order``, after ``first`` Runge-Kutta steps or steps of increasing order."""
    known: list[int] = []  # the velocities at grid points
    for i, to in enumerate(points[1:]):
        if i < first:
            known.append(runge_kutta.step(table, to, START[order])[0])
        else:
            known.append(table.evaluate())
            extrapolate(table, to, known[-order:])


def _solvers(order: int) -> list[Solver]:
    source = "Hairer, Norsett & Wanner I, III.5"
    steps = order - 1
    return [
        Solver(
            name=f"AB{order}",
            title=f"Adams-Bashforth {order}",
            order=2,  # its first steps are of lower order
            counts="evaluations",
            fill=partial(_fill, order=order, first=0),
            baseline=order == 2,
            source=source,
        ),
        Solver(
            name=f"AB{order}RK",
            title=f"Adams-Bashforth {order} after {steps} Runge-Kutta step{'s' * (steps > 1)}",
            order=order,
            counts="evaluations",
            fill=partial(_fill, order=order, first=steps),
            extra=steps * steps,
            source=source,
        ),
    ]


def _fill_ipndm(table: Table, points: Times) -> None:
    for i, to in enumerate(points[1:]):
        table.evaluate()
        h = to - table.time
        table.move(to, {i - j: h * w for j, w in enumerate(EQUAL[min(i, 3)])})


IPNDM = Solver(
    name="IPNDM",
    title="iPNDM",
    order=2,  # its first steps are of lower order
    counts="evaluations",
    fill=_fill_ipndm,
    source="Zhang and Chen 2022, arXiv 2204.13902",
)
SOLVERS = (*_solvers(2), *_solvers(3), *_solvers(4), IPNDM)
