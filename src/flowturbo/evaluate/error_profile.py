"""Where along the trajectory a plan loses its error.

Row ``k`` of a plan produces a state at ``t_{k+1}``. It is compared with the reference trajectory
from the same noise in two ways: at that time, and propagated to the end by solving the ODE exactly
from there, ``F_k``. The contribution of the row is the difference of two such ends,
``F_k - F_{k-1}``: the transported local error of Hairer, Norsett and Wanner (Solving Ordinary
Differential Equations I, section II.3, "Lady Windermere's fan"). These differences add up to the
error of the plan, so the part of each along that error,

    <F_k - F_{k-1}, F_K> / |F_K|,

is how much of the error the row causes, or cancels if it is below 0, and the parts add up to the
error. Rows of one step, such as predictor and corrector, may cancel each other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.field import Field
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner
from flowturbo.sampling import Step, sample
from flowturbo.stats import Array, interval, rmse, summary
from flowturbo.tuning.reference import Reference, error
from flowturbo.types import JsonObject

__all__ = ["check_whole", "profile"]


def profile(
    plan: Plan,
    field: Field,
    reference: Reference,
    refiner: Refiner | None = None,
    *,
    batch: int = 64,
) -> list[JsonObject]:
    """The error of ``plan`` after each of its rows.

    It costs the evaluations of the plan and, for each row, those left on the reference's grid.

    Args:
        plan: from noise to data.
        field: the field that ``reference`` was solved with, unguided.
        reference: N trajectories from noise to data, guided by its scale.
        refiner: for plans that need one.
        batch: rows sampled at a time.

    Returns:
        For each row "row", "evaluator", "time", "to" and errors, root mean squares over pixels and
        trajectories in the unit of the state, each with its 95 % bootstrap interval "..._95":
        "state", of the state at time "to"; "propagated", the same propagated to the end exactly;
        "local", of what the row adds to "propagated"; and "part", its part of the plan's error.

    Raises:
        ValueError: if ``plan`` does not run from noise to data, or as `flowturbo.sample` does.
    """
    check_whole(plan)
    parts = [
        _errors(plan, field, reference.rows(i, i + batch), refiner)
        for i in range(0, len(reference), batch)
    ]
    state, propagated, local, along = (
        torch.cat(p, dim=1).cpu().numpy() for p in zip(*parts, strict=True)
    )
    return [
        {
            "row": row.k,
            "evaluator": row.evaluator,
            "time": row.time,
            "to": row.to,
            **_named("state", state[row.k]),
            **_named("propagated", propagated[row.k]),
            **_named("local", local[row.k]),
            **_part(along[row.k], propagated[-1]),
        }
        for row in plan.rows
    ]


def check_whole(plan: object) -> None:
    """The ``ValueError`` for anything but a plan from noise to data."""
    if not isinstance(plan, Plan):
        raise ValueError(
            f"plan={checks.shown(plan)}: must be a flowturbo.Plan or its notation, such as 'AB2:6'"
        )
    start, end = float(plan.times[0]), float(plan.times[-1])
    if end < start:
        raise ValueError(f"plan {plan.name!r} runs from data to noise: take a forward plan")
    if not start < 0.05 < 0.95 < end:
        raise ValueError(
            f"plan {plan.name!r} runs from t={start:g} to {end:g}: take one that runs from noise "
            "(0) to data (1), as the reference solution does"
        )


def _errors(
    plan: Plan, field: Field, reference: Reference, refiner: Refiner | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each row and trajectory (K, N): three errors, and <F_k - F_{k-1}, F_K> per pixel."""
    steps: list[Step] = []
    scale = reference.guidance
    sample(
        plan,
        field,
        reference.noise,
        reference.cond,
        guidance=scale,
        refiner=refiner,
        callback=steps.append,
    )
    end = reference.states[-1]
    state = torch.stack([error(s.x, reference.at(s.time)) for s in steps])
    ends = [_propagate(field, s, reference) - end for s in steps[:-1]] + [steps[-1].x - end]
    off = torch.stack([torch.zeros_like(end), *ends]).double().flatten(2)
    added, size = off.diff(dim=0), lambda a: a.square().mean(2).sqrt()
    return state, size(off[1:]), size(added), (added * off[-1]).mean(2)


def _propagate(field: Field, step: Step, reference: Reference) -> Tensor:
    """The state of ``step`` solved to the end, on the remaining points of the reference's grid."""
    end = float(reference.times[-1])
    if step.time >= end:
        return step.x
    rest = reference.times[reference.times > step.time + 1e-6]
    grid = np.array([step.time, *rest]) if len(rest) > 3 else np.linspace(step.time, end, 5)
    solver = Plan.adams_bashforth(len(grid) + 8, 4, "runge-kutta", times=grid)
    return sample(solver, field, step.x, reference.cond, guidance=reference.guidance)


def _named(name: str, errors: Array) -> JsonObject:
    found = summary(errors)
    return {name: found["rmse"], f"{name}_95": found["rmse_95"]}


def _part(along: Array, final: Array) -> JsonObject:
    """The part of the root mean square error, with its bootstrap interval; both arguments (N,)."""
    share = lambda a, f: a.mean(-1) / np.maximum(rmse(f), 1e-300)
    return {"part": float(share(along, final)), "part_95": interval(share, along, final)}
