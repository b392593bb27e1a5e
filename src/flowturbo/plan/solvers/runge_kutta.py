"""Explicit Runge-Kutta schemes: several evaluations per step, none kept between steps."""

from __future__ import annotations

from functools import partial

from flowturbo.path import Times
from flowturbo.plan.builder import Table
from flowturbo.plan.solvers.registry import Solver

__all__ = ["SOLVERS", "step"]

# For each stage, the time of the next state as a fraction of the step, and the weights of the
# stages so far from the start of the step (Hairer, Norsett & Wanner, Solving Ordinary Differential
# Equations I, II.1; "ralston3": Ralston 1962).
SCHEMES: dict[str, tuple[tuple[float, tuple[float, ...]], ...]] = {
    "euler": ((1, (1,)),),
    "heun": ((1, (1,)), (1, (1 / 2, 1 / 2))),
    "midpoint": ((1 / 2, (1 / 2,)), (1, (0, 1))),
    "ralston3": ((1 / 2, (1 / 2,)), (3 / 4, (0, 3 / 4)), (1, (2 / 9, 1 / 3, 4 / 9))),
    "rk4": (
        (1 / 2, (1 / 2,)),
        (1 / 2, (0, 1 / 2)),
        (1, (0, 0, 1)),
        (1, (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    ),
    "rk38": (
        (1 / 3, (1 / 3,)),
        (2 / 3, (-1 / 3, 1)),
        (1, (1, -1, 1)),
        (1, (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
    ),
}


def step(table: Table, to: float, scheme: str) -> list[int]:
    """One step of a scheme to time ``to``; the indices of its evaluations."""
    start, h = table.time, to - table.time
    stages: list[int] = []
    done: tuple[float, ...] = ()
    for c, a in SCHEMES[scheme]:
        stages.append(table.evaluate())
        done += (0.0,) * (len(a) - len(done))
        gain = {j: h * (new - old) for j, new, old in zip(stages, a, done, strict=True)}
        table.move(to if c == 1 else start + c * h, gain)
        done = a
    return stages


def _fill(table: Table, points: Times, scheme: str) -> None:
    for to in points[1:]:
        step(table, to, scheme)


def _solver(name: str, title: str, order: int, scheme: str, source: str) -> Solver:
    return Solver(
        name=name,
        title=title,
        order=order,
        counts="steps",
        evaluations=len(SCHEMES[scheme]),
        fill=partial(_fill, scheme=scheme),
        source=source,
    )


SOLVERS = (
    _solver("MID", "midpoint", 2, "midpoint", "Hairer, Norsett & Wanner I, II.1"),
    _solver("RK4", "Runge-Kutta 4", 4, "rk4", "Hairer, Norsett & Wanner I, II.1"),
    _solver("RK38", "Kutta's 3/8 rule", 4, "rk38", "Hairer, Norsett & Wanner I, II.1"),
)
