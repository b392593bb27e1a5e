"""How the rows of a plan are written: one small builder, and the steps of solvers on it.

An evaluation is appended at the time of the state; a move adds weights to the last row. So what
ends one step (a correction) and what begins the next (a prediction) share a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["RUNGE_KUTTA", "Table", "adams", "block", "step"]

# Explicit Runge-Kutta schemes: after each stage, how far into the step the state goes and with
# which weights of the stages so far, from the start of the step (Hairer, Norsett & Wanner,
# Solving Ordinary Differential Equations I, II.1; "ralston3": Ralston 1962).
RUNGE_KUTTA: dict[str, tuple[tuple[float, tuple[float, ...]], ...]] = {
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


class Table:
    """A plan under construction; the state sits at ``time``."""

    def __init__(self, time: float) -> None:
        self.time = float(time)
        self.times: list[float] = []  # of the state, at each evaluation
        self.told: list[float] = []
        self.evaluators: list[str] = []
        self.previous: list[int] = []
        self.rows: list[dict[int, float]] = []

    def evaluate(
        self, evaluator: str = "model", *, previous: int | None = None, told: float | None = None
    ) -> int:
        """Append an evaluation at the state; its index."""
        index = len(self.rows)
        self.times.append(self.time)
        self.told.append(self.time if told is None else told)
        self.evaluators.append(evaluator)
        self.previous.append(index - 1 if previous is None else previous)
        self.rows.append({})
        return index

    def move(self, to: float, weights: Mapping[int, float]) -> None:
        """Carry the state to time ``to`` by the weighted velocities, within the last row."""
        row = self.rows[-1]
        for j, w in weights.items():
            row[j] = row.get(j, 0.0) + w
        self.time = float(to)

    def columns(self) -> dict[str, Any]:
        """The table as arguments of ``Plan``."""
        weights = np.zeros((len(self.rows), len(self.rows)))
        for k, row in enumerate(self.rows):
            weights[k, list(row)] = list(row.values())
        return {
            "times": [*self.times, self.time],
            "evaluators": tuple(self.evaluators),
            "weights": weights,
            "told": self.told,
            "previous": tuple(self.previous),
        }


def step(table: Table, to: float, scheme: str) -> list[int]:
    """One Runge-Kutta step to time ``to``; the indices of its evaluations."""
    start, h = table.time, to - table.time
    stages: list[int] = []
    done: tuple[float, ...] = ()
    for c, a in RUNGE_KUTTA[scheme]:
        stages.append(table.evaluate())
        done += (0.0,) * (len(a) - len(done))
        gain = {j: h * (new - old) for j, new, old in zip(stages, a, done, strict=True)}
        table.move(to if c == 1 else start + c * h, gain)
        done = a
    return stages


def adams(table: Table, to: float, points: Sequence[int]) -> None:
    """Carry the state to ``to`` along the polynomial through the velocities ``points``.

    The points are evaluations at distinct times; the polynomial is integrated exactly (the
    variable-step Adams-Bashforth formula; Hairer, Norsett & Wanner I, III.5).
    """
    h = to - table.time
    nodes = (np.array([table.times[j] for j in points]) - table.time) / h
    powers = np.arange(len(nodes))
    weights = np.linalg.solve(nodes[None, :] ** powers[:, None], h / (powers + 1))
    table.move(to, dict(zip(points, weights.tolist(), strict=True)))


def block(table: Table, letter: str, to: float, last: int | None, *, shipped: bool) -> int:
    """One block of the paper to time ``to``; ``last`` is the velocity handed on by the one before.

    Returns the velocity this block hands on.
    """
    h = to - table.time
    if letter == "E":
        return step(table, to, "euler")[0]
    if letter == "H" or (letter == "P" and last is None):
        return step(table, to, "heun")[1]
    assert last is not None
    if letter == "P":
        table.move(to, {last: h})
        new = table.evaluate()
        table.move(to, {last: -h / 2, new: h / 2})
        return new
    first = table.evaluate("refiner", previous=last)
    table.move(to, {first: h})
    second = table.evaluate("refiner", previous=last if shipped else first)
    table.move(to, {first: -h / 2, second: h / 2})
    return first if shipped else second
