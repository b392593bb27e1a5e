"""The linear path and its grids."""

import numpy as np
import pytest
import torch

from flowturbo.path import (
    check_times,
    interpolate,
    predicted_data,
    predicted_noise,
    shifted,
    uniform,
    velocity,
)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, torch.tensor(0.3), torch.tensor([0.1, 0.5, 0.9])])
def test_the_path_and_its_inverse(t):
    x0, x1 = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    x, v = interpolate(x0, x1, t), velocity(x0, x1)
    assert torch.allclose(predicted_data(x, v, t), x1)
    assert torch.allclose(predicted_noise(x, v, t), x0)


def test_noise_at_zero_data_at_one_and_velocity_between():
    x0, x1 = torch.randn(2, 3, 5, dtype=torch.float64)
    assert torch.equal(interpolate(x0, x1, 0.0), x0)
    assert torch.equal(interpolate(x0, x1, 1.0), x1)
    slope = (interpolate(x0, x1, 0.6) - interpolate(x0, x1, 0.4)) / 0.2
    assert torch.allclose(slope, velocity(x0, x1))


def test_time_per_image_is_each_image_alone():
    x0, x1, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    together = interpolate(x0, x1, t)
    for i in range(3):
        assert torch.equal(together[i], interpolate(x0[i], x1[i], t[i]))


def test_uniform_grid():
    assert uniform(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert uniform(9).tolist() == np.linspace(0, 1, 10).tolist()
    assert uniform(4, 1.0, 0.0).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert uniform(2, 0.4).tolist() == pytest.approx([0.4, 0.7, 1])


def test_shifted_grid_is_the_formula_on_noise_levels():
    sigma = np.linspace(1, 0, 9)
    expected = 1 - 3 * sigma / (1 + 2 * sigma)
    np.testing.assert_allclose(shifted(8, 3.0), expected, atol=1e-15)
    np.testing.assert_allclose(shifted(8, 3.0, 1, 0), expected[::-1], atol=1e-15)
    assert np.diff(shifted(8, 3.0))[0] < np.diff(shifted(8, 3.0))[-1]  # more steps near noise
    np.testing.assert_allclose(shifted(8, 1 / 3), 1 - shifted(8, 3.0)[::-1], atol=1e-15)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, 0), (0.3, 0.9), (0.9, 0.3)])
def test_ends_are_exact_and_points_ordered(start, end):
    for shift in (0.2, 1, 1.6, 50):
        grid = shifted(7, shift, start, end)
        assert len(grid) == 8
        assert (grid[0], grid[-1]) == (start, end)
        assert (np.diff(grid) * (end - start) > 0).all()


@pytest.mark.parametrize("steps", [0, -1])
def test_bad_steps(steps):
    with pytest.raises(ValueError, match=f"steps={steps}"):
        shifted(steps, 1.0)


@pytest.mark.parametrize("shift", [0, -1, float("nan"), float("inf")])
def test_bad_shift(shift):
    with pytest.raises(ValueError, match="shift="):
        shifted(4, shift)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.5], "at least 2"),
        ([[0, 1]], "at least 2"),
        ([0, 1.1], r"in \[0, 1\]"),
        ([-0.1, 1], r"in \[0, 1\]"),
        ([0, float("nan")], r"in \[0, 1\]"),
        ([0, 0.6, 0.5], "ascend"),
    ],
)
def test_bad_times(times, message):
    with pytest.raises(ValueError, match=message):
        check_times(times)


def test_equal_neighbours_are_allowed():
    assert check_times([0, 0.5, 0.5, 1]).tolist() == [0, 0.5, 0.5, 1]
    assert check_times([1, 0.5, 0.5]).dtype == np.float64


@pytest.mark.parametrize("shift", [1e300, 1e-300, 1e12, 1e-12])
def test_a_shift_that_makes_points_coincide_is_refused(shift):
    with pytest.raises(ValueError, match="use one nearer 1"):
        shifted(8, shift)
