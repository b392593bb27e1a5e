"""Fitting plans to a field: reference trajectories, weights, times, and the search over them."""

from flowturbo.tuning.tune import tune

__all__ = ["tune"]
