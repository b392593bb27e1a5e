"""A plan under construction, row by row.

An evaluation is appended at the time of the state; a move adds weights to the last row. The
correction at the end of one step and the prediction of the next therefore share a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Columns", "Table"]

Columns: TypeAlias = dict[str, Any]
"""Arguments of a `Plan`, by name."""


class Table:
    """A plan under construction; the state is at ``time``."""

    def __init__(self, time: float) -> None:
        self.time = float(time)
        self.times: list[float] = []  # of the state, at each evaluation
        self.model_times: list[float] = []
        self.evaluators: list[str] = []
        self.last_velocity: list[int] = []
        self.rows: list[dict[int, float]] = []

    def evaluate(
        self,
        evaluator: str = "model",
        *,
        last_velocity: int | None = None,
        model_time: float | None = None,
    ) -> int:
        """Append an evaluation at the state, and return its index."""
        index = len(self.rows)
        self.times.append(self.time)
        self.model_times.append(self.time if model_time is None else model_time)
        self.evaluators.append(evaluator)
        self.last_velocity.append(index - 1 if last_velocity is None else last_velocity)
        self.rows.append({})
        return index

    def move(self, to: float, weights: Mapping[int, float]) -> None:
        """Advance the state to time ``to`` by weighted velocities, within the last row."""
        row = self.rows[-1]
        for j, w in weights.items():
            row[j] = row.get(j, 0.0) + w
        self.time = float(to)

    def columns(self) -> Columns:
        """The table as arguments of ``Plan``."""
        weights = np.zeros((len(self.rows), len(self.rows)))
        for k, row in enumerate(self.rows):
            weights[k, list(row)] = list(row.values())
        return {
            "times": [*self.times, self.time],
            "evaluators": tuple(self.evaluators),
            "weights": weights,
            "model_times": self.model_times,
            "last_velocity": tuple(self.last_velocity),
        }
