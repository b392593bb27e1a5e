"""What evaluations cost on this machine, and how many a budget buys."""

from __future__ import annotations

from functools import partial
from statistics import median

from torch import Tensor

from flowturbo.field import Field
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner
from flowturbo.sampling import sample
from flowturbo.timing import interleaved
from flowturbo.tuning.search import Budget
from flowturbo.types import Condition, GuidanceScale

__all__ = ["affordable", "time_evaluations"]

LEAST = 0.05  # of the time of two evaluations: differences of short times may be negative
WORTH = 0.8  # of a full evaluation, at most, that a conditional one may cost to be tried


def time_evaluations(
    model: Field,
    refiner: Refiner | None,
    x: Tensor,
    cond: Condition,
    guidance: GuidanceScale,
    repeats: int = 7,
) -> dict[str, float]:
    """Median milliseconds of an evaluation of each kind on the rows ``x``, timed side by side.

    Each is the difference between two plans, one with an evaluation more than the other, so that
    the fixed cost of a sample is not counted. The cost of a refiner is 0 if there is none. A
    "conditional" evaluation has one branch of guidance.
    """
    plans = {"two": Plan.parse("E2"), "three": Plan.parse("E3"), "apart": Plan.parse("AB2:FFC")}
    if refiner is not None:
        plans["refined"] = Plan.parse("E2R1")

    def run(plan: Plan) -> Tensor:
        return sample(plan, model, x, cond, guidance=guidance, refiner=refiner)

    calls = {name: partial(run, plan) for name, plan in plans.items()}
    taken = interleaved(calls, x.device, repeats=repeats, warm_up=1)
    middle = {name: median(ms) for name, ms in taken.items()}
    least = LEAST * middle["two"]
    one = max(middle["three"] - middle["two"], least)
    apart = max(middle["apart"] - middle["two"], least)
    two = max(middle.get("refined", middle["two"]) - middle["two"], 0.0)
    return {"model": one, "conditional": apart, "refiner": two / 2}


def affordable(budget_ms: float, costs: dict[str, float]) -> list[Budget]:
    """What ``budget_ms`` buys: full evaluations, conditional ones if they cost less, and refiners.

    Raises:
        ValueError: if it does not buy two evaluations of the model.
    """
    most = int(budget_ms / costs["model"] + 1e-9)
    if most < 2:
        raise ValueError(
            f"budget_ms={budget_ms:g}: an evaluation takes {costs['model']:.3g} ms here and "
            f"a plan needs two; allow at least {2 * costs['model']:.3g}"
        )
    conditional = costs.get("conditional", costs["model"])
    found = []
    for full in range(most, max(1, most - 3), -1):
        left = budget_ms - full * costs["model"]
        more = int(left / conditional + 1e-9) if conditional < WORTH * costs["model"] else 0
        for c in {0, min(more, full)}:
            spare = left - c * conditional
            refiners = int(spare / costs["refiner"] + 1e-9) if costs["refiner"] else 0
            if full == most or c or refiners:
                found.append(Budget(full=full, conditional=c, refiners=min(refiners, 2 * full)))
    return found
