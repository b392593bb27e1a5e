"""Where a search puts refiner evaluations."""

from __future__ import annotations

import numpy as np
import torch
from fields import mixture
from tuned import FIELDS_AT_REST, Oracle, initial_noise

import flowturbo as ft

MANY = initial_noise(256)


def test_a_refiner_on_a_field_without_any_error_ends():
    plan = ft.tune(FIELDS_AT_REST["1"], nfe=3, noise=initial_noise(32), refiner=Oracle())
    assert plan.nfe["refiner"] == 0


class Noise(Oracle):
    """A refiner worse than nothing."""

    def __call__(self, x, t, cond, history):
        return torch.sin(1e4 * x)


class Fading(Oracle):
    """A refiner that is of no use near the end."""

    def __call__(self, x, t, cond, history):
        return mixture(x, t) if t < 0.75 else torch.sin(1e4 * x)


def test_refiners_are_placed_where_they_help():
    plan = ft.tune(mixture, nfe=4, refiner=Oracle(), refiner_cost=0, noise=MANY)
    bare = ft.tune(mixture, nfe=4, noise=MANY)
    assert plan.nfe["model"] == 4
    assert plan.nfe["refiner"] >= 2
    assert plan.evaluators[:2] == ("model", "model")
    assert plan.evaluators[-1] == "refiner"  # as good as the model, and one more
    assert plan.info["refiner"] is None  # it has no fingerprint
    assert plan.info["error"]["rmse"] < 0.5 * bare.info["error"]["rmse"]
    fading = ft.tune(mixture, nfe=4, refiner=Fading(), refiner_cost=0, noise=MANY)
    assert fading.nfe["refiner"] > 0
    rows = [row for row in fading.rows if row.evaluator == "refiner"]
    late = [row.k for row in rows if row.time > 0.75]
    assert np.abs(fading.weights[:, late]).max(initial=0) < 1e-3
    assert fading.info["error"]["rmse"] < bare.info["error"]["rmse"]


def test_a_refiner_that_does_not_help_is_left_out_and_noted():
    plan = ft.tune(mixture, nfe=4, refiner=Noise(), refiner_cost=0, noise=MANY)
    assert plan.nfe == {"model": 4, "conditional": 0, "refiner": 0}
    assert "the refiner was left out" in plan.info["notes"][0]


def test_a_refiner_has_to_beat_the_evaluations_that_it_costs():
    few = dict(nfe=4, refiner=Oracle(), noise=initial_noise(64), search=False)
    free = ft.tune(mixture, refiner_cost=0, **few)
    assert free.nfe["refiner"] > 0
    assert ft.tune(mixture, refiner_cost=0.1, **few) == free
    dear = ft.tune(mixture, refiner_cost=1.5, **few)
    assert dear.nfe == {"model": 4, "conditional": 0, "refiner": 0}
    count = free.nfe["refiner"]
    assert f"and {1.5 * count:.1f} evaluations more, which cost as much" in dear.info["notes"][0]


def test_after_two_evaluations_a_refiner_may_end_the_plan():
    plan = ft.tune(mixture, nfe=2, refiner=Oracle(), refiner_cost=0, noise=MANY)
    assert plan.evaluators == ("model", "model", *["refiner"] * plan.nfe["refiner"])
    assert plan.nfe["refiner"] > 0
