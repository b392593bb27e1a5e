"""The best classical solver at a number of evaluations: what a fitted plan has to beat."""

from __future__ import annotations

from flowturbo.plan import Plan
from flowturbo.plan.solvers import SOLVERS
from flowturbo.progress import Progress
from flowturbo.tuning.problem import FIRST_SHIFT, Problem, best_shift

__all__ = ["best_baseline"]

FIRST_ROWS = 16  # of the choosing part, to rank the solvers by


def best_baseline(problem: Problem, nfe: int) -> Plan:
    """Each solver at its best shift on a few rows, the best three compared on all."""
    direction = problem.direction
    names = [
        f"{solver.name}:{nfe}"
        for solver in SOLVERS.values()
        if solver.baseline and not (solver.forward_only and direction == "backward")
    ]
    names[1:1] = [f"E{nfe}", *([f"H1P{nfe - 2}"] if nfe > 2 else [])]  # ties go to the first
    plans: list[Plan] = []
    for i, name in enumerate(names, 1):
        make = lambda s, name=name: Plan.parse(name, shift=s, direction=direction)
        error = lambda s, make=make: problem.score(make(s), FIRST_ROWS)
        plans.append(make(best_shift(error, FIRST_SHIFT)))
        problem.report(
            Progress(
                "baselines", i, len(names), plan=plans[-1].name,
                error=problem.score(plans[-1], FIRST_ROWS),
            )
        )  # fmt: skip
    plans.sort(key=lambda plan: problem.score(plan, FIRST_ROWS))
    return min(plans[:3], key=problem.score)
