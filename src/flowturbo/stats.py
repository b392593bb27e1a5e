"""Bootstrap intervals over rows: images, trajectories, rounds of timing.

Several samples are resampled by the same rows (a paired bootstrap), so variation that they share
cancels in their ratio or difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from flowturbo.types import JsonObject

__all__ = ["bounds", "interval", "resamples", "rmse", "summary"]

Array: TypeAlias = npt.NDArray[Any]
REPLICATES = 1000


def resamples(n: int, replicates: int = REPLICATES, seed: int = 0) -> Iterator[Array]:
    """The rows (n,) of each replicate, sampled with replacement from 0 to n - 1."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, n, n) for _ in range(replicates))


def bounds(values: Array | list[Array]) -> list[float]:
    """The 95 % interval of replicates: their 2.5th and 97.5th percentiles."""
    return [float(q) for q in np.quantile(values, (0.025, 0.975))]


def interval(
    statistic: Callable[..., Array],
    *samples: npt.ArrayLike,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[float]:
    """The 95 % interval of ``statistic(*samples)``, for samples (N, ...) resampled together."""
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    rows = resamples(len(arrays[0]), replicates, seed)
    return bounds([statistic(*(array[r] for array in arrays)) for r in rows])


def rmse(errors: Array) -> Array:
    """The root mean square of errors (..., N)."""
    return np.sqrt((errors**2).mean(-1))


def summary(errors: Array, seed: int = 0) -> JsonObject:
    """The root mean square and the median of errors (N,), with their 95 % intervals "..._95"."""
    return {
        "rmse": float(rmse(errors)),
        "rmse_95": interval(rmse, errors, seed=seed),
        "median": float(np.median(errors)),
        "median_95": interval(np.median, errors, seed=seed),
    }
