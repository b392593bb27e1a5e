"""Reference trajectories against the exact flow."""

from __future__ import annotations

import torch
from fields import gaussian, gaussian_flow, mixture
from tuned import initial_noise

from flowturbo.tuning.reference import solve


def test_reference_is_the_flow_also_between_its_points():
    x0 = initial_noise(16)
    solved = solve(gaussian, x0)
    for t in (0.0, 0.1234, 0.5, 0.987, 1.0):
        torch.testing.assert_close(solved.at(t), gaussian_flow(x0, 0.0, t), rtol=1e-5, atol=1e-5)
    end = solved.states[-1]
    back = solve(gaussian, end, direction="backward")
    torch.testing.assert_close(back.states[-1], x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(solved.reversed().at(0.3), solved.at(0.3))


def test_rows_of_a_reference_are_its_trajectories(reference):
    torch.testing.assert_close(
        reference.rows(10, 20).states[-1], solve(mixture, initial_noise(256)[10:20]).states[-1]
    )
