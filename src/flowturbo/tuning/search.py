"""The search for a plan: fitted weights, refiners where they help, and a final polish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flowturbo.plan import Plan
from flowturbo.progress import Progress
from flowturbo.tuning.baselines import best_baseline
from flowturbo.tuning.conditional import place_conditional
from flowturbo.tuning.initial_states import MIN_TRAJECTORIES
from flowturbo.tuning.placement import first_gaps, pattern, place_refiners
from flowturbo.tuning.problem import USUAL_SHIFT, Problem
from flowturbo.tuning.reference import Reference

__all__ = ["Budget", "Candidate", "search"]

EARNED = 0.98  # of the error, at most, that conditional evaluations have to leave
NOTED = 0.05  # of an evaluation: what costs less is free


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan may evaluate.

    Attributes:
        full: evaluations of the model, with both branches of guidance.
        conditional: evaluations with one.
        refiners: at most; None for any number.
    """

    full: int
    conditional: int = 0
    refiners: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A candidate plan.

    Attributes:
        plan: the best one.
        nfe: evaluations of the model that cost as much, without conditional ones.
        notes: what was left out and why.
    """

    plan: Plan
    nfe: int
    notes: list[str] = field(default_factory=list)


def search(problem: Problem, budgets: Sequence[Budget], search_times: bool) -> Candidate:
    """The best plan of all budgets, those without conditional evaluations first.

    Without ``search_times``, weights on one grid are fitted and that is all.
    """
    found: list[tuple[Budget, Candidate]] = []
    for budget in budgets if len(problem.fit) else budgets[:1]:
        found.append((budget, _best(problem, budget, search_times)))
    score = lambda pair: problem.score(pair[1].plan)
    full = [pair for pair in found if not pair[0].conditional]
    apart = [pair for pair in found if pair[0].conditional]
    _, best = min(full, key=score)
    if apart:
        budget, other = min(apart, key=score)
        if problem.score(other.plan) < EARNED * problem.score(best.plan):
            best = replace(other, nfe=best.nfe)
        else:
            note = (
                f"conditional evaluations were left out: error {problem.score(other.plan):.4f} "
                f"with {budget.conditional} of {budget.full + budget.conditional}, "
                f"{problem.score(best.plan):.4f} without, on the choosing trajectories"
            )
            best = replace(best, notes=[*best.notes, note])
    return _polished(problem, best) if search_times and len(problem.fit) else best


def _best(problem: Problem, budget: Budget, search_times: bool) -> Candidate:
    """The fitted plan, with refiners where they help; a classical one where rows are few."""
    nfe, most = budget.full, budget.refiners
    if not len(problem.fit):
        plan = best_baseline(problem, nfe)
        total = len(problem.choose) + len(problem.test)
        note = (
            f"{total} trajectories are too few to fit on (at least {MIN_TRAJECTORIES}): "
            f"{plan.name} is the best classical solver on them"
        )
        return Candidate(plan, nfe, [note])
    kinds = ["model"] * nfe
    if budget.conditional:
        kinds = place_conditional(problem, nfe, budget.conditional, search=search_times)
    best = Candidate(_fitted(problem, kinds, search_times), nfe)
    if problem.refiner is None or most == 0:
        return best
    return _with_refiners(problem, best, most, search_times)


def _fitted(problem: Problem, evaluators: Sequence[str], search_times: bool) -> Plan:
    """The best fitted plan with these evaluators."""
    if not search_times:
        return problem.fit_weights(evaluators, USUAL_SHIFT)
    plan = problem.best_fits(evaluators)[0]
    problem.report(Progress("fit weights", 1, 1, plan=plan.name, error=problem.score(plan)))
    return plan


def _with_refiners(
    problem: Problem, best: Candidate, most: int | None, search_times: bool
) -> Candidate:
    """``best``, or a plan with refiners after its evaluations that beats it clearly."""
    found, kinds = [], best.plan.evaluators
    for last in (0, 1):  # refiners after the last evaluation: some end worse than the model
        gaps = first_gaps(len(kinds), last, most)
        if any(gaps):
            gaps = place_refiners(problem, kinds, gaps, most) if search_times else gaps
            found.append(_fitted(problem, pattern(kinds, gaps), search_times))
    winner = found[0]
    if len(found) > 1 and problem.score(found[1]) < 0.97 * problem.score(winner):
        winner = found[1]  # a last refiner call has to earn its cost
    calls = winner.nfe["refiner"]
    cost = calls * problem.refiner_cost
    rival = _error_of_more(problem, best.plan, cost, search_times)
    if problem.score(winner) < 0.95 * rival:
        return replace(best, plan=winner)
    note = (
        f"the refiner was left out: error {problem.score(winner):.4f} with it, {rival:.4f} without"
    )
    if cost >= NOTED:
        note += f" and {cost:.1f} evaluations more, which cost as much as its {calls} calls here"
    return replace(best, notes=[*best.notes, f"{note}, on the choosing trajectories"])


def _error_of_more(problem: Problem, plan: Plan, more: float, search_times: bool) -> float:
    """The error of ``plan`` with ``more`` evaluations, at most twice as many as it has.

    A fraction of an evaluation counts in proportion, on a logarithmic scale.
    """
    whole, part = divmod(min(more, len(plan)), 1.0)

    def error(count: int) -> float:
        kinds = ["model"] * count + list(plan.evaluators)
        return problem.score(_fitted(problem, kinds, search_times) if count else plan)

    found = error(int(whole))
    return found if part < NOTED else float(found ** (1 - part) * error(int(whole) + 1) ** part)


def _polished(problem: Problem, best: Candidate) -> Candidate:
    """``best`` polished on the fitting part and, if the choosing part agrees, on both.

    Fits at other shifts end in other minima: each is followed on few trajectories.
    """
    fits, few = problem.best_fits(best.plan.evaluators), problem.fit.rows(0, problem.few)
    moved = min((problem.polish(p, "few", few, 2) for p in fits), key=problem.score)
    moved = min(moved, problem.polish(moved, "fit", problem.fit, 3), key=problem.score)
    if problem.score(moved) >= problem.score(best.plan):
        note = "times and weights were not moved: no gain on the choosing trajectories"
        return replace(best, notes=[*best.notes, note])
    both = Reference.join([problem.fit, problem.choose])
    return replace(best, plan=problem.polish(moved, "fit and choose", both, 1))
