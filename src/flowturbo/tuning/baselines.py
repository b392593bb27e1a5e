"""The best classical solver at a number of evaluations, which a fitted plan has to beat."""

from __future__ import annotations

from flowturbo.plan import Plan
from flowturbo.plan.solvers import SOLVERS
from flowturbo.progress import Progress
from flowturbo.tuning.problem import SHIFTS, Problem

__all__ = ["best_baseline"]

FIRST_ROWS = 16  # of the choosing part, to rank the solvers by
FINALISTS = 6  # solvers with a shift, compared on all rows


def best_baseline(problem: Problem, nfe: int) -> Plan:
    """Each solver at every shift on a few rows, the best compared on all."""
    names = [
        f"{solver.name}:{nfe if solver.counts == 'evaluations' else nfe // solver.evaluations}"
        for solver in SOLVERS.values()
        if solver.baseline
        if nfe % solver.evaluations == 0
    ]
    names[1:1] = [f"E{nfe}", *([f"H1P{nfe - 2}"] if nfe > 2 else [])]  # ties go to the first
    first = lambda plan: problem.score(plan, FIRST_ROWS)
    plans: list[Plan] = []
    for i, name in enumerate(names, 1):
        shifted = [problem.classical(name, s) for s in SHIFTS]
        best = min(shifted, key=first)
        problem.report(Progress("baselines", i, len(names), plan=best.name, error=first(best)))
        plans += shifted
    return min(sorted(plans, key=first)[:FINALISTS], key=problem.score)
