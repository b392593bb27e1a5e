"""Weights fitted by least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fields import constant, mixture
from tuned import FIELDS_AT_REST, initial_noise

import flowturbo as ft
from flowturbo.path import shifted
from flowturbo.tuning.polish import polish, run, score
from flowturbo.tuning.reference import solve
from flowturbo.tuning.weights import fit_weights


def test_weights_of_a_constant_velocity_are_the_steps():
    """Every row then moves by exactly its step, whatever it uses."""
    solved = solve(constant, initial_noise(8))
    times = shifted(4, 1.6)
    plan, end = fit_weights(constant, solved, times)
    np.testing.assert_allclose(plan.weights.sum(1), np.diff(times), rtol=1e-5)
    torch.testing.assert_close(end, solved.states[-1], rtol=1e-5, atol=1e-5)


def test_first_row_is_the_least_squares_solution(reference):
    times = shifted(3, 1.0)
    plan, _ = fit_weights(mixture, reference, times)
    v = mixture(reference.noise, 0.0)
    move = reference.at(times[1]) - reference.noise
    assert plan.weights[0, 0] == pytest.approx(float((v * move).sum() / v.square().sum()), 1e-4)


def test_fitted_plan_beats_what_it_was_fitted_from_on_fresh_noise(reference):
    fresh = solve(mixture, initial_noise(200, seed=1))
    ab2 = score(run(ft.Plan.parse("AB2:5@1.6"), mixture, fresh), fresh)
    plan, end = fit_weights(mixture, reference, shifted(5, 1.6))
    torch.testing.assert_close(run(plan, mixture, reference), end)
    fitted = score(run(plan, mixture, fresh), fresh)
    polished = score(run(polish(plan, mixture, reference), mixture, fresh), fresh)
    assert fitted < 0.5 * ab2
    assert polished < 0.6 * fitted


def test_rows_use_their_last_velocities_only(reference):
    plan, _ = fit_weights(mixture, reference, shifted(6, 1.0), history=2)
    assert not np.tril(plan.weights, -2).any()


def test_weights_that_velocities_do_not_determine_are_those_of_adams_bashforth():
    times = shifted(4, 1.6)
    plain = ft.Plan.adams_bashforth(4, times=times)
    for name in "01":
        plan, _ = fit_weights(
            FIELDS_AT_REST[name], solve(FIELDS_AT_REST[name], initial_noise(8)), times
        )
        np.testing.assert_allclose(plan.weights, plain.weights, atol=1e-4)
