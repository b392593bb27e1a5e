"""The classical solvers that a fit has to beat."""

import dataclasses
from types import SimpleNamespace

import pytest

from flowturbo.plan import Plan
from flowturbo.plan.solvers import SOLVERS
from flowturbo.tuning.baselines import best_baseline
from flowturbo.tuning.problem import SHIFTS


@pytest.mark.parametrize("nfe", [5, 6])
def test_baselines_have_the_evaluations_of_the_plan_at_all_shifts(monkeypatch, nfe):
    monkeypatch.setitem(SOLVERS, "MID", dataclasses.replace(SOLVERS["MID"], baseline=True))
    plans: list[Plan] = []
    score = lambda plan, rows=None: plans.append(plan) or float(len(plan.name))
    classical = lambda name, shift: Plan.parse(name, shift=shift)
    problem = SimpleNamespace(classical=classical, report=lambda progress: None, score=score)
    best_baseline(problem, nfe)
    assert {plan.nfe["model"] for plan in plans} == {nfe}
    assert any(plan.name.startswith("MID") for plan in plans) == (nfe == 6)
    first = {plan.name for plan in plans if plan.name.startswith("UNIPC2")}
    assert len(first) == len(SHIFTS)
