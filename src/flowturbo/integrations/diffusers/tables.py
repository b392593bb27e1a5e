"""The plan of a run: from a configuration, or a solver on the pipeline's noise levels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from flowturbo.path import Times
from flowturbo.plan import Plan
from flowturbo.plan.rows import differences_of
from flowturbo.plan.solvers import SOLVERS as NAMED

__all__ = [
    "SOLVERS",
    "branches_apart",
    "check_length",
    "needs_hook",
    "on_grid",
    "plan_of",
    "rows_from",
]

# one evaluation for each step of the pipeline
SOLVERS = (*(s.name for s in NAMED.values() if s.evaluations == 1 and not s.extra), "E")


def plan_of(value: object) -> Plan | None:
    """The plan of a configuration's entry: a plan, its notation, its JSON, or None.

    Raises:
        ValueError: if it is none of these, or a plan from data to noise.
    """
    if value is None or isinstance(value, Plan):
        plan = value
    elif isinstance(value, str):
        plan = Plan.parse(value)
    elif isinstance(value, Mapping):
        plan = Plan.from_json(json.dumps(dict(value)))
    else:
        raise ValueError(f"plan={value!r}: must be a Plan, its notation, its JSON, or None")
    if plan is not None and plan.times[0] > plan.times[-1]:
        raise ValueError(f"plan {plan.name!r} runs from data to noise; pipelines run the other way")
    return plan


def on_grid(solver: str, times: Times, model_times: Times | None = None) -> Plan:
    """``solver`` on the points ``times`` (n + 1,); ``model_times`` (n,) as those of a plan.

    Raises:
        ValueError: if there is no such solver.
    """
    count = len(times) - 1
    if solver not in SOLVERS:
        raise ValueError(
            f"solver={solver!r}: must be one of {', '.join(SOLVERS)}; for any other pass plan=..."
        )
    plan = Plan.parse(f"E{count}" if solver == "E" else f"{solver}:{count}", times=times)
    if model_times is None or np.array_equal(model_times, plan.model_times):
        return plan
    return replace(plan, model_times=model_times)


def needs_hook(plan: Plan) -> bool:
    """Whether some evaluations of a plan are not those of the pipeline, with all its branches."""
    return bool(plan.nfe["refiner"]) or branches_apart(plan)


def branches_apart(plan: Plan) -> bool:
    """Whether a plan treats the branches of guidance apart."""
    return differences_of(plan) is not None


def check_length(plan: Plan, count: int, hooked: bool, guider: bool = False) -> None:
    """Refuse a plan that does not have ``count`` evaluations, or lacks a hook or guider it needs.

    Raises:
        ValueError: as described; says what to do.
    """
    if count != len(plan):
        parts = " and ".join(f"{n} of the {name}" for name, n in plan.nfe.items() if n)
        raise ValueError(
            f"num_inference_steps={count}, and plan {plan.name!r} has {len(plan)} evaluations "
            f"({parts}): pass num_inference_steps={len(plan)}, or take another plan"
        )
    kind = "refiner" if plan.nfe["refiner"] else "conditional"
    if needs_hook(plan) and not hooked and not (guider and kind == "conditional"):
        fix = {
            "refiner": "call enable(pipe, plan=..., refiner=...)",
            "conditional": "call enable(pipe, plan=...), or if it is modular, pass guider=True",
        }[kind]
        raise ValueError(
            f"plan {plan.name!r} has {plan.nfe[kind]} {kind} evaluations, and the pipeline is not "
            f"enabled for them; {fix}"
        )


def rows_from(plan: Plan, index: int, running: Plan) -> dict[int, int]:
    """The row of ``running``, ``plan`` restricted, of each timestep from ``index`` on.

    A run that starts in the middle of a step needs fewer evaluations than there are timesteps left;
    of several timesteps at one time, the last are used, and the others are skipped.
    """
    rows, row = {}, len(running) - 1
    for k in range(len(plan) - 1, index - 1, -1):
        if row >= 0 and plan.times[k] == running.times[row]:
            rows[k] = row
            row -= 1
    assert row < 0, "each row of a restricted plan stands at a time of the plan"
    return rows
