"""A plan that starts in the middle, for image-to-image, or ends there, for inversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flowturbo import checks
from flowturbo.path import Times
from flowturbo.plan.builder import Columns, Table
from flowturbo.plan.rows import reused_differences
from flowturbo.plan.solvers import adams

if TYPE_CHECKING:
    from flowturbo.plan.plan import Plan

__all__ = ["end_time", "restricted", "start_time", "truncated"]

ORDER = 3  # largest order of a replaced row: higher ones amplify the noise of rough velocities
GAP = 0.25  # of its times, at least, as a fraction of its step, for the same reason
CONSISTENT = 1e-5  # tolerance of weights that sum to their step, as those of fitted plans do not


def start_time(t: object, times: Times, name: str) -> float:
    """The start time of plan ``name``: ``t``, or a time of the plan within 1e-9 of it.

    Raises:
        ValueError: if ``t`` is outside the plan, or its end.
    """
    return _inside(t, times, name, not_at=times[-1])


def end_time(t: object, times: Times, name: str) -> float:
    """The same of an end time, which is not the plan's start."""
    return _inside(t, times, name, not_at=times[0])


def _inside(t: object, times: Times, name: str, not_at: float) -> float:
    value = checks.number("t", t)
    start, end = times[0], times[-1]
    nearest = float(times[np.abs(times - value).argmin()])
    time = nearest if abs(nearest - value) <= 1e-9 else value
    if not min(start, end) <= time <= max(start, end) or time == not_at:
        raise ValueError(
            f"t={t}: plan {name!r} runs from {start:g} to {end:g}; "
            f"t must lie from {start:g} to {end:g}, and not be {not_at:g}"
        )
    return time


def truncated(t: float, plan: Plan) -> Columns:
    """The columns of ``plan`` up to ``t``; see ``Plan.until``."""
    times, weights, guidance_weights = plan.times, plan.weights, plan.guidance_weights
    direction = np.sign(times[-1] - times[0])
    inside = int((direction * times[1:] <= direction * t).sum())  # rows that end by then
    count = inside if times[inside] == t else inside + 1
    table = Table(float(times[0]))
    for k in range(count):
        table.evaluate(
            plan.evaluators[k],
            model_time=float(plan.model_times[k]),
            last_velocity=plan.last_velocity[k],
        )
        if k < inside:
            table.move(float(times[k + 1]), {j: float(weights[k, j]) for j in range(k + 1)})
        else:
            _extrapolate(table, t, len({times[j] for j in np.flatnonzero(weights[k])}))
    columns = table.columns()
    if guidance_weights is not None:
        made = guidance_weights[:count, :count].copy()
        made[inside:] = reused_differences(columns["weights"], columns["evaluators"])[inside:]
        columns["guidance_weights"] = made
    return columns


def restricted(
    t: float,
    *,
    times: Times,
    evaluators: Sequence[str],
    weights: npt.NDArray[np.float64],
    model_times: Times,
    last_velocity: Sequence[int],
    guidance_weights: npt.NDArray[np.float64] | None,
) -> Columns:
    """The columns of a plan from ``t`` on; see ``Plan.restrict``."""
    direction = np.sign(times[-1] - times[0])
    first = int(np.searchsorted(direction * times[:-1], direction * t, side="left"))
    after = int(np.searchsorted(direction * times[:-1], direction * t, side="right"))
    table = Table(t)
    start = table.evaluate(model_time=float(model_times[after - 1]) if first < after else None)
    index = dict.fromkeys(range(first, after), start)  # of the evaluations kept, in the table
    _extrapolate(table, float(times[after]))
    differences: dict[int, dict[int, float]] = {}  # guidance weights of the rows that stay
    waiting: list[int] = []  # dropped evaluations, replaced by the next one at their time
    for k in range(after, len(evaluators)):
        to = float(times[k + 1])
        uses = [int(j) for j in np.flatnonzero(weights[k])]
        if to == table.time and any(j not in index and j != k for j in uses):
            waiting.append(k)
            continue
        before = index.get(last_velocity[k], len(table.rows) - 1)
        sees = len(set(table.times[: before + 1]))
        if evaluators[k] == "refiner" and sees >= 2:
            new = table.evaluate("refiner", model_time=float(model_times[k]), last_velocity=before)
        else:
            kind = "conditional" if evaluators[k] == "conditional" else "model"
            new = table.evaluate(kind, model_time=float(model_times[k]))
        index.update(dict.fromkeys([*waiting, k], new))
        waiting = []
        whole = abs(weights[k].sum() - (to - times[k])) < CONSISTENT
        if whole and all(j in index for j in uses):
            table.move(to, _gathered(index, uses, weights[k]))
            if guidance_weights is not None:
                used = np.flatnonzero(guidance_weights[k]).tolist()
                if all(j in index for j in used):
                    differences[new] = _gathered(index, used, guidance_weights[k])
        else:
            _extrapolate(table, to, len({times[j] for j in uses}))
    columns = table.columns()
    if guidance_weights is not None:
        made = reused_differences(columns["weights"], columns["evaluators"])
        for k, kept in differences.items():
            made[k] = 0.0
            made[k, list(kept)] = list(kept.values())
        columns["guidance_weights"] = made
    return columns


def _gathered(
    index: Mapping[int, int], used: Sequence[int], weights: npt.NDArray[np.float64]
) -> dict[int, float]:
    """The weights of evaluations by their new index."""
    row: dict[int, float] = {}
    for j in used:
        row[index[j]] = row.get(index[j], 0.0) + float(weights[j])
    return row


def _extrapolate(table: Table, to: float, order: int = 1) -> None:
    """Adams-Bashforth to ``to`` over the latest distinct times, well apart, of the table."""
    points: list[int] = []
    for j in range(len(table.rows) - 1, -1, -1):
        gap = abs(table.times[points[-1]] - table.times[j]) if points else np.inf
        if gap > 0 and gap >= GAP * abs(to - table.time):
            points.append(j)
    adams.extrapolate(table, to, points[: min(order, ORDER)])
