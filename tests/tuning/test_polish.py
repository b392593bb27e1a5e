"""Weights and times moved by Gauss-Newton."""

from __future__ import annotations

import numpy as np
import pytest
from fields import mixture
from tuned import Oracle

import flowturbo as ft
from flowturbo.tuning.polish import polish, run, score


@pytest.mark.parametrize("text", ["H2", "H1P2", "H1P1R1", "[H1P1R1]x2", "RK4:1", "H1"])
def test_plans_whose_times_repeat_are_polished(reference, text):
    few = reference.rows(0, 64)
    plan, refiner = ft.Plan.parse(text), Oracle() if "R1" in text else None
    made = polish(plan, mixture, few, refiner=refiner, iterations=1)
    before, after = (score(run(p, mixture, few, refiner), few) for p in (plan, made))
    assert after < 0.8 * before
    same = lambda p: [[bool(a == b) for a in p.times] for b in p.times]
    assert same(made) == same(plan)
    assert made.times[[0, -1]].tolist() == plan.times[[0, -1]].tolist()
    if len(set(plan.times)) > 2:
        assert (made.times != plan.times).any()


def test_polishing_keeps_model_times_and_drops_info(reference):
    few = reference.rows(0, 64)
    times = np.linspace(0, 1, 5)
    columns = dict(
        times=times,
        model_times=[0.0, 0.24, 0.5, 0.75],
        evaluators=("model", "model", "refiner", "refiner"),
        weights=np.diag(np.diff(times)),
        last_velocity=(-1, 0, 1, 1),
    )
    plan = ft.Plan(**columns)
    made = polish(plan, mixture, few, refiner=Oracle(), iterations=1)
    assert made != plan
    assert made.last_velocity == plan.last_velocity
    np.testing.assert_allclose(made.model_times - made.times[:-1], [0, -0.01, 0, 0], atol=1e-12)
