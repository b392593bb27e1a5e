r"""Weights of a plan at given times, by least squares.

Row by row, the fitted sampler's own state is moved as close as its own velocities allow to the
reference at the next time:

    W[k] = argmin_w  sum_i | x_k + sum_j w_j v_j - x_ref(t_{k+1}) |^2  +  ridge * scale * |w - a|^2

over the last ``history`` velocities; ``a`` are the weights of Adams-Bashforth 2, which stay where
the velocities do not determine them (one that is 0, two that are alike). No gradient passes through
the model and no data are needed; later rows see, and correct, errors made earlier. The last row can
be constrained to preserve contrast (`flowturbo.tuning.contrast`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flowturbo.field import Field
from flowturbo.path import Times
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner
from flowturbo.sampling import Step
from flowturbo.tuning.contrast import Contrast, products, solve_least_squares
from flowturbo.tuning.reference import Reference, run

__all__ = ["fit_weights"]

Weights: TypeAlias = npt.NDArray[np.float64]


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
        evaluators: "model" or "refiner" for each of the K evaluations; all "model" by default.
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
    velocities: list[Tensor] = []
    state = reference.noise
    still = Plan(times=times, evaluators=evaluators, weights=np.zeros_like(weights))

    def fit_row(step: Step) -> Tensor:
        nonlocal state
        velocities.append(step.v)
        k = step.index
        used = range(max(0, k + 1 - history), k + 1)
        target = reference.at(float(times[k + 1])) - state
        directions = [velocities[j] for j in used]
        weights[k, used] = w = _least_squares(directions, target, weights[k, used], ridge)
        for v, a in zip(directions, w, strict=True):
            state = torch.add(state, v, alpha=float(a))
        if contrast is not None and k == k_all - 1:
            more, state = contrast.restored(state, directions)
            weights[k, used] += more.numpy()
        return state

    end = run(still, field, reference, refiner, fit_row)
    return Plan(times=times, evaluators=evaluators, weights=weights, name=name), end


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
