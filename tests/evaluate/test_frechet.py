"""The Frechet distance against closed forms and the textbook formula."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from flowturbo.evaluate.frechet import Moments, frechet_distance, relative_difference


def gaussian(mean, factor, n=64, seed=0):
    """Points whose mean and unbiased covariance are ``mean`` and ``factor factor^T`` exactly."""
    d = len(mean)
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(x - x.mean(0)).Q * (n - 1) ** 0.5
    return q @ factor.T + mean


def test_diagonal_gaussians_have_a_closed_form():
    m1, m2 = torch.tensor([[0.0, 1, -2], [1.5, 0, 3]], dtype=torch.float64)
    s1, s2 = torch.tensor([[1.0, 0.2, 4], [2.0, 0.0, 0.5]], dtype=torch.float64)
    found = frechet_distance(gaussian(m1, s1.diag()), gaussian(m2, s2.diag(), seed=1))
    assert found == pytest.approx(float((m1 - m2).square().sum() + (s1 - s2).square().sum()), 1e-10)


def test_commuting_covariances_have_a_closed_form():
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)).double()).Q
    s1, s2 = torch.linspace(0.1, 2, 8).double(), torch.linspace(3, 0.01, 8).double()
    zero = torch.zeros(8).double()
    found = frechet_distance(gaussian(zero, q * s1), gaussian(zero, q * s2, seed=1))
    assert found == pytest.approx(float((s1 - s2).square().sum()), 1e-10)


def test_equals_the_formula_with_a_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 20)), rng.normal(size=(200, 20)) @ rng.normal(size=(20, 20)) + 1
    s1, s2 = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    found = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_features():
    x = torch.randn(20, 100, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(400, rel=1e-9)
    assert frechet_distance(x, 3 * x) == pytest.approx(
        float(4 * (x.var(0).sum() + x.mean(0).square().sum())), rel=1e-9
    )


def test_moments_do_not_depend_on_batches():
    x = 100 + torch.randn(101, 7, generator=torch.Generator().manual_seed(0)).double()
    moments = Moments()
    for part in [x[:0], *x.split(10)]:
        moments.add(part)
    assert moments.count == 101
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance, x.T.cov(), rtol=1e-10, atol=1e-12)
    assert frechet_distance(moments, x) == pytest.approx(0, abs=1e-9)


def randn(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


def test_relative_difference_is_that_of_the_distances():
    real, b = randn(300, 6, 0) + 0.5, randn(200, 6, 1)
    a = 1.1 * b
    found = relative_difference(a, b, real, resamples=50)
    ratio = frechet_distance(a, real) / frechet_distance(b, real)
    assert found["relative"] == pytest.approx(ratio - 1)
    assert found["relative_95"][0] < found["relative"] < found["relative_95"][1]
    assert found == relative_difference(a, b, Moments(real), resamples=50)
    assert found != relative_difference(a, b, real, resamples=50, seed=1)


def test_what_pairs_share_is_not_in_the_interval():
    real, b = randn(300, 6, 0) + 0.5, randn(200, 6, 1)
    width = lambda a: -np.subtract(*relative_difference(a, b, real, resamples=50)["relative_95"])
    assert width(b) == pytest.approx(0, abs=1e-9)
    assert width(b + 0.01 * randn(200, 6, 2)) < 0.1 * width(randn(200, 6, 3))


def test_the_interval_is_as_wide_as_estimates_differ():
    real, found = randn(2000, 4, 0) + 0.5, []
    for seed in range(40):
        b = randn(200, 4, 10 + seed)
        a = 1.05 * b + 0.1 * randn(200, 4, 1000 + seed)
        found.append(relative_difference(a, b, real, resamples=40, seed=seed))
    spread = np.std([f["relative"] for f in found])
    half = np.mean([np.subtract(*f["relative_95"][::-1]) for f in found]) / 2
    assert half == pytest.approx(1.96 * spread, rel=0.35)


def test_replicates_agree_with_the_distance_of_the_rows_repeated():
    from flowturbo.evaluate.frechet import _factor, _Resampled

    x, real = randn(40, 8, 0), Moments(randn(50, 8, 1) @ randn(8, 8, 2))
    counts = torch.from_numpy(np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40)))
    found = _Resampled(x, real, _factor(real.covariance))(counts.double())
    expected = frechet_distance(x.repeat_interleave(counts, 0), real)
    assert found == pytest.approx(expected, rel=1e-6)


def test_refuses():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="shapes must be equal"):
        relative_difference(x, x[:3], x)
    with pytest.raises(ValueError, match="resamples=1"):
        relative_difference(x, x, x + 1, resamples=1)
    with pytest.raises(ValueError, match="the reference itself"):
        relative_difference(x + 1, x, x)
    with pytest.raises(ValueError, match="must be of one kind"):
        frechet_distance(x, torch.randn(4, 2))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(x, x[:1])
    with pytest.raises(ValueError, match="not finite"):
        Moments(x / 0)
    with pytest.raises(ValueError, match=r"must be \(B, 3\)"):
        Moments(x).add(torch.randn(4, 2))
