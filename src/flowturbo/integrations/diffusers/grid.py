r"""The noise levels of flow pipelines.

If the pipeline passes none, they are ``linspace(1, 1/n, n)``. One shift is applied, once,

.. math:: \sigma' = \frac{f \sigma}{1 + (f - 1) \sigma},

with ``f`` the ``shift`` of the configuration or, where it depends on the image size, ``exp(mu)``
(``mu`` if ``time_shift_type`` is "linear"; Esser et al. 2024, arXiv 2403.03206, eq. 23). The levels
are then stretched to end at ``terminal``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsFloat

import numpy as np

from flowturbo.path import Times

__all__ = ["noise_levels", "number", "numbers", "shortened"]


def numbers(name: str, values: object) -> Times:
    """A list, array or tensor of numbers as float64 (n,), n at least 1.

    Raises:
        ValueError: if it is not.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    try:
        array = np.asarray(listed, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{name}={listed}: must be a list of finite numbers, at least one")
    return array


def shortened(values: Iterable[object]) -> str:
    """A list of numbers for an error message, the middle of a long one elided."""
    shown = [f"{value:g}" for value in values]
    if len(shown) > 8:
        shown[4:-2] = ["..."]
    return f"[{', '.join(shown)}]"


def number(name: str, value: object, low: float = -np.inf, high: float = np.inf) -> float:
    """``value`` as a float between ``low`` and ``high``, both exclusive.

    Raises:
        ValueError: if it is not.
    """
    try:
        result = float(value) if isinstance(value, SupportsFloat) else np.nan
    except (TypeError, ValueError, RuntimeError):  # the last, of a tensor of several
        result = np.nan
    if not low < result < high:
        limits = "" if np.isinf(low) else f" above {low:g}"
        limits += "" if np.isinf(high) else f" and below {high:g}"
        raise ValueError(f"{name}={value!r}: must be one finite number{limits}")
    return result


def noise_levels(sigmas: Times, factor: float, terminal: float | None) -> Times:
    """``sigmas`` (n,) shifted by ``factor`` and, with ``terminal``, stretched to end there.

    Raises:
        ValueError: unless they descend within (0, 1].
    """
    if sigmas.max() > 1 or sigmas.min() <= 0 or not (np.diff(sigmas) < 0).all():
        raise ValueError(
            f"sigmas={shortened(sigmas)}: must descend within (0, 1], no two equal; the 0 at "
            "the end is added"
        )
    shifted = factor * sigmas / (1 + (factor - 1) * sigmas)
    rest = 1 - shifted
    if terminal and rest[-1] > 0:  # a single level of 1 stays
        shifted = 1 - rest * (1 - terminal) / rest[-1]
    return shifted
