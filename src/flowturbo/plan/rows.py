"""The rows of a plan as the sampling loop reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from flowturbo.plan.plan import Plan

__all__ = ["Row", "rows_of"]


class Row(NamedTuple):
    """Evaluation ``k`` of a plan in Python numbers, which compilers treat as constants.

    Attributes:
        k: its index.
        evaluator: "model" or "refiner".
        time: of the state before it.
        model_time: the time argument of the evaluator.
        to: the time of the state after it.
        update: (j, weight) of the velocities in the update of the state, weights not 0, k last.
        history: (j, model time) of the velocities in the history of a refiner, oldest first.
        frees: the velocities that no later row uses.
    """

    k: int
    evaluator: str
    time: float
    model_time: float
    to: float
    update: tuple[tuple[int, float], ...]
    history: tuple[tuple[int, float], ...]
    frees: tuple[int, ...]


def rows_of(plan: Plan) -> tuple[Row, ...]:
    """The rows of ``plan``, in order."""
    model_times, frees = plan.model_times.tolist(), _frees(plan)
    return tuple(
        Row(
            k=k,
            evaluator=evaluator,
            time=float(plan.times[k]),
            model_time=model_times[k],
            to=float(plan.times[k + 1]),
            update=tuple((j, w) for j, w in enumerate(plan.weights[k].tolist()) if w != 0.0),
            history=tuple((j, model_times[j]) for j in plan.seen_by(k) if evaluator == "refiner"),
            frees=frees[k],
        )
        for k, evaluator in enumerate(plan.evaluators)
    )


def _frees(plan: Plan) -> list[tuple[int, ...]]:
    """For each row, the evaluations that no later row uses, so that memory can be freed."""
    last = np.arange(len(plan))
    for k, evaluator in enumerate(plan.evaluators):
        last[np.flatnonzero(plan.weights[k])] = k
        if evaluator == "refiner":
            last[: plan.last_velocity[k] + 1] = k
    rows: list[list[int]] = [[] for _ in last]
    for j, k in enumerate(last.tolist()):
        rows[k].append(j)
    return list(map(tuple, rows))
