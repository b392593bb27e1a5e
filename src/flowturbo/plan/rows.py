"""The rows of a plan as the sampling loop reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from flowturbo.plan.plan import Plan

__all__ = ["Row", "differences_of", "guided_by", "reused_differences", "rows_of"]

Terms = tuple[tuple[int, float], ...]
TINY = 1e-12  # a weight that is 0 but for rounding


class Row(NamedTuple):
    """Evaluation ``k`` of a plan in Python numbers, which compilers treat as constants.

    A velocity is named by the index ``j`` of its evaluation, and its guidance term, what guidance
    adds to the conditional velocity there, by ``~j``.

    Attributes:
        k: its index.
        evaluator: "model", "conditional" or "refiner".
        time: of the state before it.
        model_time: the time argument of the evaluator.
        to: the time of the state after it.
        update: (j or ~j, weight) of the velocities and guidance terms in the update of the state,
            weights not 0, k last.
        history: (j, model time) of the velocities in the history of a refiner, oldest first.
        frees: the velocities and guidance terms that no later row uses.
        estimate: (~j, weight) of the guidance terms that a conditional evaluation adds to its
            velocity, for an estimate of the guided one.
        keeps_term: whether a later row uses its guidance term.
    """

    k: int
    evaluator: str
    time: float
    model_time: float
    to: float
    update: Terms
    history: tuple[tuple[int, float], ...]
    frees: tuple[int, ...]
    estimate: Terms = ()
    keeps_term: bool = False


def rows_of(plan: Plan) -> tuple[Row, ...]:
    """The rows of ``plan``, in order."""
    model_times = plan.model_times.tolist()
    terms, estimates = _guidance(plan)
    frees = _frees(plan, terms, estimates)
    kept = ((terms != 0) | (estimates != 0)).any(0)
    return tuple(
        Row(
            k=k,
            evaluator=evaluator,
            time=float(plan.times[k]),
            model_time=model_times[k],
            to=float(plan.times[k + 1]),
            update=_named(terms[k]) + tuple((j, w) for j, w in _nonzero(plan.weights[k])),
            history=tuple((j, model_times[j]) for j in plan.seen_by(k) if evaluator == "refiner"),
            frees=frees[k],
            estimate=_named(estimates[k]),
            keeps_term=bool(kept[k]),
        )
        for k, evaluator in enumerate(plan.evaluators)
    )


def reused_differences(
    weights: npt.NDArray[np.float64], evaluators: tuple[str, ...]
) -> npt.NDArray[np.float64]:
    """The guidance weights of a plan that reuses the last difference of the two branches.

    They are ``weights``, with those of conditional evaluations at the last model evaluation before.
    """
    made, last = weights.copy(), 0
    for j, evaluator in enumerate(evaluators):
        if evaluator == "model":
            last = j
        elif evaluator == "conditional":
            made[:, last] += made[:, j]
            made[:, j] = 0
    return made


def differences_of(plan: Plan) -> npt.NDArray[np.float64] | None:
    """The weights of the differences of the branches, (K, K), in the columns of model evaluations.

    None for a plan that does not treat the branches of guidance apart.
    """
    wanted = plan.guidance_weights
    if wanted is None and "conditional" in plan.evaluators:
        wanted = reused_differences(plan.weights, plan.evaluators)
    if wanted is None:
        return None
    return np.where([e == "model" for e in plan.evaluators], wanted, 0.0)


def _guidance(plan: Plan) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The weights of the guidance terms in each update, and in each estimate; (K, K) both.

    The update of row ``k`` is to be ``sum_j W[k, j] v_c,j + (w - 1) sum_j D[k, j] d_j``. Velocities
    are kept guided: exactly at model rows, and at a conditional row ``c`` as the mean over its step
    of what ``D`` adds there, ``v_c + (w - 1) sum_j D[c, j] d_j / step``. The guidance terms supply
    what is missing from the update by these velocities.
    """
    wanted, estimates = differences_of(plan), np.zeros((len(plan), len(plan)))
    if wanted is None:
        return estimates, estimates
    model = np.array([e == "model" for e in plan.evaluators])
    for k in np.flatnonzero([e == "conditional" for e in plan.evaluators]):
        step = plan.times[k + 1] - plan.times[k]
        if step and wanted[k].any():
            estimates[k] = wanted[k] / step
        else:
            estimates[k, np.flatnonzero(model[:k])[-1]] = 1.0
    terms = wanted - np.where(model, plan.weights, 0.0) - plan.weights @ estimates
    terms[np.abs(terms) < TINY] = 0.0
    return terms, estimates


def guided_by(plan: Plan) -> npt.NDArray[np.float64]:
    """The share of each guidance weight that a velocity of the plan carries, (K, K).

    1 for its own at a model row, as `_guidance` estimates it at a conditional one; a refiner's has
    the guidance weight of its own row.
    """
    return _guidance(plan)[1] + np.diag([float(e != "conditional") for e in plan.evaluators])


def _nonzero(row: npt.NDArray[np.float64]) -> list[tuple[int, float]]:
    return [(j, w) for j, w in enumerate(row.tolist()) if w != 0.0]


def _named(row: npt.NDArray[np.float64]) -> Terms:
    return tuple((~j, w) for j, w in _nonzero(row))


def _frees(
    plan: Plan, terms: npt.NDArray[np.float64], estimates: npt.NDArray[np.float64]
) -> list[tuple[int, ...]]:
    """For each row, what no later row uses, so that memory can be freed."""
    last = np.arange(len(plan))
    kept: dict[int, int] = {}
    for k, evaluator in enumerate(plan.evaluators):
        last[np.flatnonzero(plan.weights[k])] = k
        if evaluator == "refiner":
            last[: plan.last_velocity[k] + 1] = k
        kept |= {~int(j): k for j in np.flatnonzero((terms[k] != 0) | (estimates[k] != 0))}
    rows: list[list[int]] = [[] for _ in last]
    for j, k in [*enumerate(last.tolist()), *kept.items()]:
        rows[k].append(j)
    return list(map(tuple, rows))
