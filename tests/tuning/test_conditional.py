"""Fits with conditional evaluations: weights, places, and `tune(passes=)`."""

import numpy as np
import pytest
import torch

import flowturbo as ft
from flowturbo.path import shifted
from flowturbo.tuning.conditional import counts_of
from flowturbo.tuning.polish import polish, run, score
from flowturbo.tuning.reference import solve
from flowturbo.tuning.weights import fit_weights

torch.manual_seed(0)
MIX = torch.linalg.qr(torch.randn(6, 6))[0]


def field(x, t, cond):
    """A bent flow, with a difference of the branches that changes slowly."""
    bend = torch.tanh(2 * (x @ MIX) + torch.cos(4 * torch.as_tensor(t)))
    return bend + 0.4 * cond * (1 + 0.3 * torch.as_tensor(t) + 0.1 * torch.tanh(x))


field.null_condition = torch.zeros_like


@pytest.fixture(scope="module")
def given():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 192, 6, generator=generator)


@pytest.fixture(scope="module")
def parts(given):
    reference = solve(field, *given, guidance=3.0, steps=32, batch=192)
    return reference.rows(0, 96), reference.rows(96, 192)


def fitted(pattern, part):
    kinds = ["model" if letter == "F" else "conditional" for letter in pattern]
    return fit_weights(field, part, shifted(len(kinds), 1.0), kinds)


def test_at_equal_passes_conditional_evaluations_fit_better(parts):
    fit, check = parts
    full, _ = fitted("FFFF", fit)
    apart, end = fitted("FFFCC", fit)
    assert full.passes(3) == apart.passes(3) == 8
    torch.testing.assert_close(run(apart, field, fit), end, rtol=1e-4, atol=1e-5)
    errors = [score(run(plan, field, check), check) for plan in (full, apart)]
    assert errors[1] < 0.9 * errors[0]
    reuse = ft.Plan(times=full.times, evaluators=full.evaluators, weights=full.weights)
    assert score(run(reuse, field, check), check) == errors[0]


def test_the_polish_moves_guidance_weights(parts):
    fit, check = parts
    plan, _ = fitted("FFCFC", fit)
    moved = polish(plan, field, fit, iterations=2)
    errors = [score(run(p, field, check), check) for p in (plan, moved)]
    assert errors[1] < 0.9 * errors[0]
    conditional = [e == "conditional" for e in moved.evaluators]
    assert not moved.guidance_weights[:, conditional].any()
    assert not np.allclose(moved.guidance_weights, plan.guidance_weights)


def test_a_refiner_is_fitted_with_the_velocity_that_it_will_see(parts):
    fit, _ = parts

    def refiner(x, t, cond, history):
        return history[-1][1] + 0.1 * torch.tanh(x)

    kinds = ["model", "conditional", "refiner", "model", "conditional"]
    plan, end = fit_weights(field, fit, shifted(5, 1.0), kinds, refiner=refiner)
    torch.testing.assert_close(run(plan, field, fit, refiner), end, rtol=1e-4, atol=1e-5)


def test_counts_of_passes():
    assert counts_of(12) == [(6, 0), (5, 2), (4, 4)]
    assert counts_of(9) == [(4, 1), (3, 3)]
    assert counts_of(4) == [(2, 0)]


def test_tune_by_passes(given):
    noise, cond = given
    plan = ft.tune(field, passes=8, noise=noise, cond=cond, guidance=3.0)
    full = ft.tune(field, nfe=4, noise=noise, cond=cond, guidance=3.0)
    assert plan.passes(3.0) == 8
    assert plan.nfe["conditional"]
    assert plan.info["error"]["rmse"] < full.info["error"]["rmse"]
    assert ft.Plan.from_json(plan.to_json()) == plan


def test_without_a_search_the_conditional_ones_are_last(given):
    noise, cond = given
    part = dict(noise=noise[:64], cond=cond[:64])
    plan = ft.tune(field, passes=7, guidance=3.0, search=False, **part)
    assert plan.evaluators == ("model", "model", "model", "conditional")
    assert not plan.info["notes"]


def test_where_nothing_is_guided_passes_are_evaluations(given):
    noise, cond = given
    plan = ft.tune(field, passes=4, noise=noise[:64], cond=cond[:64], search=False)
    assert plan.nfe == {"model": 4, "conditional": 0, "refiner": 0}


def test_where_it_does_not_pay_it_is_left_out_by_name(given):
    def rough(x, t, cond):  # the difference changes as fast as anything can
        return x.roll(1, 1) + cond * torch.cos(40 * torch.as_tensor(t) + 20 * x)

    rough.null_condition = torch.zeros_like
    noise, cond = given
    plan = ft.tune(rough, passes=6, noise=noise, cond=cond, guidance=3.0)
    if not plan.nfe["conditional"]:
        assert any("conditional evaluations were left out" in n for n in plan.info["notes"])
    assert plan.passes(3.0) <= 6


def test_passes_and_a_budget_are_refused_together():
    with pytest.raises(ValueError, match="passes=8 and budget_ms=5"):
        ft.tune(field, passes=8, budget_ms=5.0)
    with pytest.raises(ValueError, match="passes=3: must be a whole number from 4"):
        ft.tune(field, passes=3)
