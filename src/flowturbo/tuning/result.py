"""The plan that is returned: the one found or, if fitting did not pay, the best baseline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from flowturbo._version import __version__
from flowturbo.field import fingerprint_of
from flowturbo.plan import Plan
from flowturbo.stats import summary
from flowturbo.tuning.baselines import best_baseline
from flowturbo.tuning.problem import DIVERGED, Problem
from flowturbo.tuning.search import Candidate
from flowturbo.types import GuidanceRange, JsonObject

__all__ = ["result"]


def result(problem: Problem, found: Candidate, guidance: GuidanceRange, seed: int) -> Plan:
    """The better of ``found`` and the best baseline on the test part, with both errors as info.

    Raises:
        ValueError: if neither stays finite.
    """
    best, baseline, notes = found.plan, best_baseline(problem, found.nfe), [*found.notes]
    errors = {p: problem.test_errors(p) for p in {best, baseline}}
    if min(e.max() for e in errors.values()) >= DIVERGED:
        raise ValueError(
            f"nfe={found.nfe}: no plan of so few evaluations stays finite on this field; allow more"
        )
    end = problem.test.states[-1]
    rounding = torch.finfo(end.dtype).eps * float(end.double().square().mean().sqrt())
    gain = errors[baseline].mean() - errors[best].mean()
    if best.digest != baseline.digest and gain <= 10 * rounding:
        notes.append(
            f"fitting did not pay on the test trajectories (mean error "
            f"{errors[best].mean():.4f}, {baseline.name} {errors[baseline].mean():.4f})"
        )
        best = baseline
    rmse = summary(errors[best])["rmse"]
    if problem.reference_error > 0.1 * rmse:
        notes.append(
            f"the reference solution is not accurate: solved twice as finely it moves by "
            f"{problem.reference_error:.4f}, and the error of the plan is {rmse:.4f}; is the field "
            "rough in time, or random?"
        )
    median = {p: float(np.median(e)) for p, e in errors.items()}
    if median[best] > median[baseline]:
        notes.append(
            f"its mean error is lower than that of {baseline.name}, its median is not "
            f"({median[best]:.4f}, {baseline.name} {median[baseline]:.4f})"
        )
    errors_of = {
        "error": summary(errors[best]),
        "baseline": {"name": baseline.name, **summary(errors[baseline])},
        "reference_error": problem.reference_error,
        "notes": notes,
    }
    about, back = _provenance(problem, best, guidance, seed) | errors_of, problem.test.back
    if back is not None:
        about |= {"inverts": back.name, "image_guidance": about["guidance"], "guidance": [1.0, 1.0]}
        if best.digest != baseline.digest:
            best = replace(best, name=f"inverse of {back.name}")
    return best.with_info(about)


def _provenance(problem: Problem, best: Plan, guidance: GuidanceRange, seed: int) -> JsonObject:
    """What a plan was fitted to."""
    parts = {"fit": problem.fit, "choose": problem.choose, "test": problem.test}
    refiner = problem.refiner if best.nfe["refiner"] else None
    return {
        "made_by": f"flowturbo {__version__} tune",
        "model": _text(problem.field, "name"),
        "fingerprint": fingerprint_of(problem.field),
        "refiner": _text(refiner, "fingerprint"),
        "guidance": list(guidance) if isinstance(guidance, tuple) else [guidance, guidance],
        "trajectories": {name: len(part) for name, part in parts.items()},
        "seed": seed,
        "contrast": problem.contrast,
        **getattr(problem.field, "plan_info", {}),  # of a pipeline
    }


def _text(owner: object, name: str) -> str | None:
    found = getattr(owner, name, None)
    return None if found is None else str(found)
