r"""Weights of a plan at given times, by least squares.

Row by row, the fitted sampler's own state is moved as close to the reference at the next time as
its own velocities allow:

    W[k] = argmin_w  sum_i | x_k + sum_j w_j v_j - x_ref(t_{k+1}) |^2  +  ridge * scale * |w - a|^2

over the last ``history`` velocities; ``a`` are the weights of Adams-Bashforth 2, which are kept
where the velocities do not determine them (one that is 0, two that are equal). With conditional
evaluations ``v`` are the conditional velocities, and the last differences of the branches have
weights of their own, fitted together with theirs. No gradient passes through
the model and no data are needed; later rows see, and correct, errors made earlier. The last row can
be constrained to preserve contrast (`flowturbo.tuning.contrast`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flowturbo.field import Field
from flowturbo.path import Times
from flowturbo.plan import Plan, Row
from flowturbo.plan.rows import reused_differences
from flowturbo.refiner.binding import Refiner
from flowturbo.sampling import Evaluate, Velocities, evaluated
from flowturbo.tuning.contrast import Contrast, products, solve_least_squares
from flowturbo.tuning.reference import Reference, run

__all__ = ["fit_weights"]

Weights: TypeAlias = npt.NDArray[np.float64]
DIFFERENCES = 3  # of the branches that a row may use


def fit_weights(
    field: Field,
    reference: Reference,
    times: Times,
    evaluators: Sequence[str] | None = None,
    *,
    refiner: Refiner | None = None,
    history: int = 4,
    ridge: float = 1e-6,
    contrast: Contrast | None = None,
    name: str = "fitted",
) -> tuple[Plan, Tensor]:
    """Fit a plan on ``reference``.

    Args:
        field: the velocity field.
        reference: N reference trajectories.
        times: (K + 1,) the times of the plan, without repeats.
        evaluators: of each of the K evaluations, as in a `Plan`; all "model" by default.
        refiner: for refiner evaluations.
        history: how many of the last velocities a row may use.
        ridge: relative to the mean square of the velocities; for numerical safety.
        contrast: for the last row to preserve; by default plain least squares.
        name: of the plan.

    Returns:
        The plan, and the final states (N, ...) it reaches from the reference's initial states.
    """
    k_all = len(times) - 1
    evaluators = tuple(evaluators or ["model"] * k_all)
    weights = _adams_bashforth(np.asarray(times), history)
    apart = "conditional" in evaluators
    differences = reused_differences(weights, evaluators)
    velocities: list[Tensor] = []  # conditional ones, if the branches have weights of their own
    terms: dict[int, Tensor] = {}  # what guidance adds to them
    still = Plan(times=times, evaluators=evaluators, weights=np.zeros_like(weights))

    def fit_row(
        row: Row, evaluate: Mapping[str, Evaluate], state: Tensor, known: Velocities
    ) -> tuple[Tensor, dict[int, Tensor]]:
        k = row.k
        keeps_term = apart and row.evaluator == "model"
        found = evaluated(row._replace(keeps_term=keeps_term, estimate=()), evaluate, state, known)
        velocities.append(found[k] - found[~k] if ~k in found else found[k])
        if ~k in found:
            terms[k] = found[~k]
        used, shared = [*range(max(0, k + 1 - history), k + 1)], [*terms][-DIFFERENCES:]
        target = reference.at(float(times[k + 1])) - state
        directions = [velocities[j] for j in used] + [terms[j] for j in shared]
        start = np.concatenate([weights[k, used], differences[k, shared]])
        fitted = _least_squares(directions, target, start, ridge)
        for v, a in zip(directions, fitted, strict=True):
            state = torch.add(state, v, alpha=float(a))
        if contrast is not None and k == k_all - 1:
            more, state = contrast.restored(state, directions)
            fitted += more.numpy()
        differences[k] = 0.0
        weights[k, used], differences[k, shared] = np.split(fitted, [len(used)])
        if row.evaluator == "conditional":  # as a refiner sees it
            for j in shared:
                share = float(differences[k, j] / (times[k + 1] - times[k]))
                found[k] = torch.add(found[k], terms[j], alpha=share)
        return state, found

    end = run(still, field, reference, refiner, step=fit_row)
    refined = [e == "refiner" for e in evaluators]
    differences[:, refined] = weights[:, refined]
    plan = Plan(
        times=times,
        evaluators=evaluators,
        weights=weights,
        guidance_weights=differences if terms else None,
        name=name,
    )
    return plan, end


def _adams_bashforth(times: Times, history: int) -> Weights:
    """The weights of Adams-Bashforth 2, or of Euler where a row uses but one velocity, (K, K)."""
    steps = np.diff(times)
    weights = np.diag(steps)
    for k in range(1, len(steps) if history > 1 else 0):
        bend = steps[k] ** 2 / (2 * steps[k - 1])
        weights[k, k - 1 : k + 1] += (-bend, bend)
    return weights


def _least_squares(
    velocities: Sequence[Tensor], target: Tensor, start: Weights, ridge: float
) -> Weights:
    rows = [v.flatten() for v in velocities]
    gram, first = products(rows, rows), torch.from_numpy(start)
    right = products(rows, [target.flatten()])[:, 0] - gram @ first
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return (first + solve_least_squares(damped, right)).numpy()
