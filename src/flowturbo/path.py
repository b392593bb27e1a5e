"""The linear path between noise and data, and grids of times on it.

The one convention of this library (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv
2209.03003): time ``t`` runs from 0 (noise ``x0``) to 1 (data ``x1``), and

    x_t = t*x1 + (1 - t)*x0
    v   = dx/dt = x1 - x0

Only ``flowturbo.integrations`` and ``flowturbo.plan.from_scheduler`` convert from others. A grid of
``n`` steps has ``n + 1`` points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from flowturbo import checks

__all__ = [
    "check_times",
    "interpolate",
    "predicted_data",
    "predicted_noise",
    "shift_times",
    "shifted",
    "uniform",
    "velocity",
]

NEAREST = 1e-9  # distance of points of a shifted grid, as a fraction of its length
Times = npt.NDArray[np.float64]


def _like(t: float | Tensor, x: Tensor) -> float | Tensor:
    """``t``, if one per image, reshaped to broadcast against ``x`` (B, ...)."""
    if isinstance(t, Tensor) and t.ndim == 1:
        return t.reshape(-1, *[1] * (x.ndim - 1))
    return t


def interpolate(x0: Tensor, x1: Tensor, t: float | Tensor) -> Tensor:
    """The state ``t*x1 + (1-t)*x0``, (B, ...), for ``t`` a scalar or (B,) in [0, 1]."""
    t = _like(t, x0)
    return t * x1 + (1 - t) * x0


def velocity(x0: Tensor, x1: Tensor) -> Tensor:
    """The velocity of the straight line from noise ``x0`` to data ``x1``: ``x1 - x0``."""
    return x1 - x0


def predicted_data(x: Tensor, v: Tensor, t: float | Tensor) -> Tensor:
    """The data predicted from a state ``x`` and velocity ``v`` at ``t``: ``x + (1-t)*v``."""
    return x + (1 - _like(t, x)) * v


def predicted_noise(x: Tensor, v: Tensor, t: float | Tensor) -> Tensor:
    """The noise predicted from a state ``x`` and velocity ``v`` at ``t``: ``x - t*v``."""
    return x - _like(t, x) * v


def uniform(steps: int, start: float = 0.0, end: float = 1.0) -> Times:
    """``steps + 1`` equally spaced times from ``start`` to ``end``, in either direction."""
    return shifted(steps, 1.0, start, end)


def shift_times(t: Times, shift: float) -> Times:
    """The times ``t`` in [0, 1], shifted as by ``shifted``; its ``ValueError`` for a bad shift."""
    shift = checks.number("shift", shift, above=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # of extreme shifts, refused in grids
        return t / (1 + (shift - 1) * (1 - t))  # in t, not 1 - t: exact for shift 1


def shifted(steps: int, shift: float, start: float = 0.0, end: float = 1.0) -> Times:
    """A grid with its noise levels ``s = 1 - t`` shifted: ``s' = shift*s / (1 + (shift-1)*s)``.

    ``shift > 1`` spends more of the steps near noise (Esser et al. 2024, arXiv 2403.03206, eq. 23).

    Args:
        steps: the number of intervals, at least 1.
        shift: above 0; 1 leaves the grid uniform. Extreme values, for which points coincide, are
            refused.
        start: time in [0, 1] of the first point.
        end: time in [0, 1] of the last point.

    Returns:
        float64 times, (steps + 1,); both ends are exact.

    Raises:
        ValueError: if an argument is outside its range.
    """
    steps = checks.whole("steps", steps, 1)
    start, end = checks.number("start", start, 0, 1), checks.number("end", end, 0, 1)
    grid = shift_times(np.linspace(0.0, 1.0, steps + 1), shift)
    grid = start + (end - start) * grid if end >= start else end + (start - end) * grid[::-1]
    grid[0], grid[-1] = start, end
    if start != end and not np.abs(np.diff(grid)).min() >= NEAREST * abs(end - start):
        raise ValueError(
            f"shift={shift}: points of {steps} steps nearly coincide; use one nearer 1"
        )
    return check_times(grid)


def check_times(times: Sequence[float] | Times) -> Times:
    """``times`` as float64 (n,), checked: finite, in [0, 1], all ascending or all descending.

    Equal neighbours are allowed (Heun evaluates twice at one time).

    Raises:
        ValueError: if they are not.
    """
    grid = np.array(times, dtype=np.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"times of shape {grid.shape}: a grid needs at least 2 points in one row")
    for k in np.flatnonzero(~((grid >= 0) & (grid <= 1)))[:1]:
        raise ValueError(f"times[{k}]={grid[k]}: all must lie in [0, 1] (0 = noise, 1 = data)")
    steps = np.diff(grid)
    if not ((steps >= 0).all() or (steps <= 0).all()):
        shown = f"{grid[:6].tolist()}{'...' * (len(grid) > 6)}"
        raise ValueError(f"times {shown}: must all ascend or all descend; sort them")
    return grid
