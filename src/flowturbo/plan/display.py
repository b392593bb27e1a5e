"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flowturbo.plan.rows import differences_of

if TYPE_CHECKING:
    from flowturbo.plan.plan import Plan

__all__ = ["headline", "table"]


def headline(plan: Plan) -> str:
    """Name, evaluations and range of times on one line."""
    counts = " + ".join(f"{n} {name}" for name, n in plan.nfe.items() if n)
    plural = "s" if len(plan) > 1 else ""
    start, end = plan.times[0], plan.times[-1]
    return f"{plan.name}: {counts} evaluation{plural}, t {start:g} to {end:g}"


def table(plan: Plan) -> str:
    """The headline, and a line for each row."""
    cells = [["", "time", "evaluator", "to", "weights"]]
    guidance = differences_of(plan)
    for k, row in enumerate(plan.weights):
        model_time, last = plan.model_times[k], plan.last_velocity[k]
        at = "" if model_time == plan.times[k] else f" (model time {model_time:.6g})"
        weights = "  ".join(f"v{j} {row[j]:+.4f}" for j in np.flatnonzero(row))
        if guidance is not None:
            weights += "".join(f"  d{j} {guidance[k, j]:+.4f}" for j in np.flatnonzero(guidance[k]))
        after = "" if last == k - 1 else f" (after v{last})"
        time, to = f"{plan.times[k]:.4f}{at}", f"{plan.times[k + 1]:.4f}"
        cells.append([str(k), time, plan.evaluators[k] + after, to, weights])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
    return "\n".join([headline(plan), *lines])
