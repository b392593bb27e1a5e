r"""Weights of a plan at given times, by least squares.

Row by row, the fitted sampler's own state is moved as close as its own velocities allow to the
reference at the next time:

    W[k] = argmin_w  sum_i | x_k + sum_j w_j v_j - x_ref(t_{k+1}) |^2  +  ridge * scale * |w - a|^2

over the last ``history`` velocities; ``a`` are the weights of Adams-Bashforth 2, which stay where
the velocities do not decide (one that is 0, two that are alike). No gradient passes through the
model and no data are needed; errors made earlier are seen, and corrected, by later rows. The last
row can be held to the contrast of what comes out (`flowturbo.tuning.contrast`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo.field import Field
from flowturbo.path import Times
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner
from flowturbo.sampling import Step
from flowturbo.tuning.contrast import Contrast, products, solved
from flowturbo.tuning.reference import Reference, run

__all__ = ["fit_weights"]


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
        reference: N solved trajectories.
        times: (K + 1,) the times of the plan, without repeats.
        evaluators: "model" or "refiner" for each of the K evaluations; all "model" by default.
        refiner: for refiner evaluations.
        history: how many of the last velocities a row may use.
        ridge: relative to the mean square of the velocities; for numerical safety.
        contrast: for the last row to keep; by default least squares decide alone.
        name: of the plan.

    Returns:
        The plan, and the final states (N, ...) it reaches on the reference's noises.
    """
    k_all = len(times) - 1
    evaluators = tuple(evaluators or ["model"] * k_all)
    weights = _plain(np.asarray(times), history)
    velocities: list[Tensor] = []
    before = reference.noise
    still = Plan(times=times, evaluators=evaluators, weights=np.zeros_like(weights))

    def fit_row(step: Step) -> Tensor:
        nonlocal before
        velocities.append(step.v)
        k = step.index
        used = range(max(0, k + 1 - history), k + 1)
        target = reference.at(float(times[k + 1])) - before
        along = [velocities[j] for j in used]
        weights[k, used] = w = _least_squares(along, target, weights[k, used], ridge)
        for v, a in zip(along, w, strict=True):
            before = torch.add(before, v, alpha=float(a))
        if contrast is not None and k == k_all - 1:
            more, before = contrast.held(before, along)
            weights[k, used] += more.numpy()
        return before

    end = run(still, field, reference, refiner, fit_row)
    return Plan(times=times, evaluators=evaluators, weights=weights, name=name), end


def _plain(times: Times, history: int) -> Any:
    """The weights of Adams-Bashforth 2, or of Euler where a row uses but one velocity, (K, K)."""
    steps = np.diff(times)
    weights = np.diag(steps)
    for k in range(1, len(steps) if history > 1 else 0):
        bend = steps[k] ** 2 / (2 * steps[k - 1])
        weights[k, k - 1 : k + 1] += (-bend, bend)
    return weights


def _least_squares(velocities: Sequence[Tensor], target: Tensor, plain: Any, ridge: float) -> Any:
    rows = [v.flatten() for v in velocities]
    gram, start = products(rows, rows), torch.from_numpy(plain)
    right = products(rows, [target.flatten()])[:, 0] - gram @ start
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return (start + solved(damped, right)).numpy()
