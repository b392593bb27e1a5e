"""Plans that preserve contrast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fields import mixture
from tuned import initial_noise

import flowturbo as ft
from flowturbo.path import shifted
from flowturbo.tuning.contrast import Contrast
from flowturbo.tuning.polish import polish, run, score
from flowturbo.tuning.reference import solve
from flowturbo.tuning.weights import fit_weights


def slope(x: torch.Tensor, true: torch.Tensor, limits: tuple[float, float]) -> float:
    """Of the regression of clipped ends on the true ones, over that of the true ones clipped."""
    seen = lambda a: (a.clamp(*limits) * true).sum()
    return float(seen(x) / seen(true))


@pytest.mark.parametrize("limits", [None, (-1.5, 1.5)])
def test_fits_keep_the_contrast_that_least_squares_lower(reference, limits):
    true, clip = reference.states[-1], limits or (-torch.inf, torch.inf)
    held = Contrast(true, limits)
    free, end = fit_weights(mixture, reference, shifted(3, 1.6))
    assert slope(end, true, clip) < 0.999
    plan, kept = fit_weights(mixture, reference, shifted(3, 1.6), contrast=held)
    assert held.missing(kept) == pytest.approx(0, abs=1e-4)
    assert slope(kept, true, clip) >= 1
    np.testing.assert_array_equal(plan.weights[:-1], free.weights[:-1])
    moved = polish(plan, mixture, reference, iterations=2, contrast=held)
    x = run(moved, mixture, reference)
    assert slope(x, true, clip) >= 1
    assert score(x, reference) < score(kept, reference)


def test_contrast_of_a_tuned_plan_holds_on_fresh_noise():
    fresh = solve(mixture, initial_noise(2000, seed=1))
    found = {}
    for contrast in (False, True):
        plan = ft.tune(mixture, nfe=3, noise=initial_noise(512), preserve_contrast=contrast)
        assert plan.info["contrast"] is contrast
        x, true = run(plan, mixture, fresh), fresh.states[-1]
        found[contrast] = float((x * true).sum() / true.square().sum())
    assert found[False] < 1 < found[True]
