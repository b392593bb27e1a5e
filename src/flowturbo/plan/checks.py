"""Checks of the columns of a plan, each of which returns a copy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from flowturbo.checks import shown
from flowturbo.path import Times, check_times
from flowturbo.types import JsonObject, ReadOnlyJson

__all__ = [
    "EVALUATORS",
    "LIMIT",
    "evaluators",
    "guidance_weights",
    "info",
    "last_velocity",
    "model_times",
    "numbers",
    "times",
    "weights",
]

EVALUATORS = {"model": "F", "conditional": "C", "refiner": "R"}
"""Their letters in the notation: full, conditional, refiner."""
_EVALUATORS = "'model', 'conditional' or 'refiner'"
LIMIT = 2000  # evaluations of one plan: its table is dense, and 32 MB then
LARGEST = 1e4  # weight: it amplifies the rounding of float32 to 6e-4, less than a grey level


def times(values: object) -> Times:
    """The times of a plan: a grid of length above 0."""
    grid = numbers("times", values)
    if grid.size > LIMIT + 1:
        raise ValueError(f"{grid.size} times: a plan has at most {LIMIT} evaluations")
    grid = check_times(grid)
    if grid[0] == grid[-1]:
        raise ValueError(f"times, all {grid[0]}: must lead from one time to another")
    return grid


def model_times(values: object, times: Times) -> Times:
    """The time argument of each evaluator, (n,) in [0, 1]; by default that of its state."""
    if values is None:
        return times[:-1].copy()
    array = numbers("model_times", values, (len(times) - 1,))
    for k in np.flatnonzero((array < 0) | (array > 1))[:1]:
        raise ValueError(f"model_times[{k}]={array[k]}: must lie in [0, 1] (0 = noise, 1 = data)")
    return array


def guidance_weights(
    values: object, weights: npt.NDArray[np.float64], evaluators: Sequence[str]
) -> npt.NDArray[np.float64] | None:
    """Weights of the differences of the branches, which only model evaluations have."""
    if values is None:
        return None
    matrix = _triangle("guidance_weights", values, len(evaluators))
    for j, evaluator in enumerate(evaluators):
        want = weights[:, j] if evaluator == "refiner" else 0.0
        if evaluator != "model" and not np.array_equal(matrix[:, j], want + 0 * matrix[:, j]):
            allowed = "those of weights" if evaluator == "refiner" else "0"
            raise ValueError(
                f"guidance_weights[:, {j}]={shown(matrix[:, j].tolist())}: must be {allowed} where "
                f"the evaluation is {evaluator!r}"
            )
    return matrix


def weights(values: object, n: int) -> npt.NDArray[np.float64]:
    """A lower-triangular (n, n) matrix."""
    return _triangle("weights", values, n)


def _triangle(name: str, values: object, n: int) -> npt.NDArray[np.float64]:
    matrix = numbers(name, values, (n, n))
    above = np.argwhere(np.triu(matrix, 1))
    if len(above):
        k, j = above[0]
        raise ValueError(
            f"{name}[{k}][{j}]={matrix[k, j]}: row {k} cannot use evaluation {j}, which comes "
            "after it; the matrix must be lower triangular"
        )
    for k, j in np.argwhere(np.abs(matrix) > LARGEST)[:1]:
        raise ValueError(
            f"{name}[{k}][{j}]={matrix[k, j]:.3g}: must be from -{LARGEST:g} to {LARGEST:g}; "
            "use a lower order, or times that are more even"
        )
    return matrix


def numbers(name: str, values: object, shape: tuple[int, ...] | None = None) -> Times:
    """``values`` as a new float64 array of ``shape``, finite; refused if they are anything else."""
    if isinstance(values, (list, tuple)) and _holds_bool(values):
        raise ValueError(f"{name}: must hold numbers only, not bool")
    try:
        array = np.asarray(values)
    except Exception:  # rows of unequal length, tensors without values, other objects
        raise ValueError(
            f"{name}={shown(values)}: must be an array of numbers, all rows of one length"
        ) from None
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}={shown(values)}: must hold numbers only, not {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape}: {shape[0] + 1} times need shape {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}={shown(values)}: must be finite, without NaN")
    return array.astype(np.float64) + 0.0  # -0.0 becomes 0.0, so that equal plans hash alike


def evaluators(values: Sequence[str], n: int) -> tuple[str, ...]:
    """One name for each of ``n`` evaluations, the first "model"."""
    if not isinstance(values, Sequence):
        raise ValueError(f"evaluators={shown(values)}: must be {n} of {_EVALUATORS}")
    evaluators = (values,) if isinstance(values, str) else tuple(values)
    if len(evaluators) != n:
        raise ValueError(f"{len(evaluators)} evaluators: {n + 1} times need {n}")
    for k, name in enumerate(evaluators):
        if not isinstance(name, str) or name not in EVALUATORS:
            raise ValueError(f"evaluators[{k}]={shown(name)}: must be {_EVALUATORS}")
    if evaluators[0] != "model":
        raise ValueError(
            f"evaluators[0]={evaluators[0]!r}: must be 'model'; the others need a velocity"
        )
    return evaluators


def last_velocity(values: Sequence[int] | None, evaluators: Sequence[str]) -> tuple[int, ...]:
    """The last known velocity of each row; only a refiner row may use an older one."""
    default = tuple(range(-1, len(evaluators) - 1))
    if values is None:
        return default
    if not isinstance(values, Sequence) or len(values) != len(default):
        raise ValueError(f"last_velocity={shown(values)}: must be one per evaluation")
    for k, j in enumerate(values):
        if isinstance(j, bool) or not isinstance(j, (int, np.integer)):
            raise ValueError(f"last_velocity[{k}]={shown(j)}: must be a whole number")
        if j != k - 1 and not (evaluators[k] == "refiner" and 0 <= j < k):
            allowed = f"from 0 to {k - 1}" if evaluators[k] == "refiner" else f"{k - 1}"
            raise ValueError(f"last_velocity[{k}]={j}: must be {allowed} for a {evaluators[k]} row")
    return tuple(int(j) for j in values)


def info(info: ReadOnlyJson) -> ReadOnlyJson:
    """A read-only copy of ``info`` after a round trip through JSON; known entries are checked."""
    if not isinstance(info, Mapping):
        raise ValueError(f"info={shown(info)}: must be a mapping")
    try:
        text = json.dumps(dict(info), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"info: must be a JSON object: {error}") from None
    from flowturbo.plan.io import read_info

    return Info(read_info(text))


class Info(JsonObject):
    """A read-only dictionary that, unlike a mapping proxy, can be serialized as JSON."""

    def _refuse(self, *args: object, **named: object) -> NoReturn:
        raise TypeError("the info of a plan cannot be changed; see Plan.with_info")

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[object, ...]:
        return Info, (dict(self),)


def _holds_bool(values: Sequence[object]) -> bool:
    return any(
        _holds_bool(v) if isinstance(v, (list, tuple)) else isinstance(v, (bool, np.bool_))
        for v in values
    )
