"""Bootstrap intervals against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from flowturbo.stats import interval, resamples, rmse, summary


def test_interval_of_a_mean():
    rng = np.random.default_rng(0)
    low, high = interval(np.mean, rng.normal(2.0, 1.0, 400))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert low < 2 < high


def test_a_statistic_of_samples_resamples_their_rows_together():
    """The ratio of a sample to twice itself is known exactly; unpaired it would not be."""
    rng = np.random.default_rng(1)
    values = rng.lognormal(size=60)
    ratio = lambda a, b: rmse(a) / rmse(b)
    assert interval(ratio, values, 2 * values) == pytest.approx([0.5, 0.5])
    low, high = interval(ratio, values, rng.lognormal(size=60))
    assert high - low > 0.1


def test_a_summary_has_two_statistics_with_intervals():
    errors = np.array([1.0, 2.0, 3.0, 10.0])
    found = summary(errors)
    assert found["rmse"] == pytest.approx(np.sqrt(28.5))
    assert found["median"] == 2.5
    for name in ("rmse", "median"):
        low, high = found[f"{name}_95"]
        assert low <= found[name] <= high
    assert summary(errors) == found
    assert summary(errors, seed=1) != found


def test_rows_are_drawn_with_replacement():
    rows = [*resamples(5, 200)]
    assert len(rows) == 200
    assert all(r.shape == (5,) for r in rows)
    assert {int(i) for r in rows for i in r} == set(range(5))
    assert any(len(set(r.tolist())) < 5 for r in rows)
