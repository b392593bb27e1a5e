"""The search over fits, refiners and starts of the polish."""

from fields import mixture
from tuned import initial_noise

import flowturbo as ft
from flowturbo.tuning import problem


def test_the_polish_starts_from_several_fits(monkeypatch):
    """One start ends in a minimum that is twice as high."""
    x0 = initial_noise(1000, seed=1)
    exact = ft.sample("RK4:200", mixture, x0)
    errors = {}
    for starts in (1, 3):
        monkeypatch.setattr(problem, "FINALISTS", starts)
        plan = ft.tune(mixture, nfe=5, noise=initial_noise(256))
        errors[starts] = (ft.sample(plan, mixture, x0) - exact).square().mean(1).sqrt().mean()
    assert errors[3] < 0.7 * errors[1]
