r"""Polish a plan: Gauss-Newton on the error of the final state, over weights and times together.

Least squares row by row (`flowturbo.tuning.weights`) asks every state on the way to match the
reference; only the last one matters. Here all free numbers ``p`` of the table move together,

    p <- p - (J^T D J + damping * diag)^-1 J^T D r,     r_i = x_K(p) - x_ref,  J = dr/dp,

with ``J`` by finite differences, so the field need not be differentiable, and rows weighted by
``D_ii = |r_i|^(q - 2)``. This lowers the mean of ``|r_i|^q``, which for ``q = 1`` is not dominated
by the few largest errors (iteratively reweighted least squares; damping as in Levenberg-Marquardt).
Steps can be
constrained to preserve contrast, a linear condition (`flowturbo.tuning.contrast`). Evaluations
before the number that moves are replayed, not computed again. Rows at one time, such as
those of a Heun step, move together; the first time and the last stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flowturbo.field import Field
from flowturbo.guidance import guided
from flowturbo.path import Times
from flowturbo.plan import Plan, Row
from flowturbo.plan.checks import LARGEST
from flowturbo.plan.rows import guided_by
from flowturbo.progress import Progress, Report
from flowturbo.refiner.binding import Refiner
from flowturbo.sampling import Evaluate, Velocities, evaluated, update
from flowturbo.tuning.contrast import Contrast, solve_least_squares
from flowturbo.tuning.reference import Reference, error, run
from flowturbo.tuning.weights import DIFFERENCES

__all__ = ["polish", "run", "score"]

MIN_GAP = 1e-3  # between two times
MOST_DAMPING = 10.0
MIN_GAIN = 0.01  # of a step, for another with the slopes of the last


def score(x: Tensor, reference: Reference, power: float = 1.0) -> float:
    """What the search minimises: the power mean of the rows' errors (each an RMS over pixels).

    The mean itself at ``power`` 1, the root mean square at 2; infinite where a row is not finite.
    """
    mean = float((error(x, reference.states[-1]) ** power).mean() ** (1 / power))
    return mean if math.isfinite(mean) else math.inf


def polish(
    plan: Plan,
    field: Field,
    reference: Reference,
    *,
    refiner: Refiner | None = None,
    iterations: int = 4,
    history: int = 4,
    move_times: bool = True,
    power: float = 1.0,
    contrast: Contrast | None = None,
    report: Report | None = None,
) -> Plan:
    """Lower the final error of ``plan`` on ``reference``.

    Args:
        plan: the table to start from, such as a fitted one.
        field: the velocity field.
        reference: the trajectories to fit on.
        refiner: for refiner evaluations.
        iterations: Gauss-Newton steps at most, each about K^2 * history / 2 evaluations of
            the N rows.
        history: how many weights of a row may change, those of the last velocities.
        move_times: also move times, except the first and the last; the times passed to the
            evaluators move along.
        power: of the mean of errors to lower, 1 (robust) to 2 (the root mean square).
        contrast: of the final states, to be preserved.
        report: called after each iteration.

    Returns:
        The plan with the lowest mean on ``reference``, perhaps ``plan`` itself; with other weights
        and times it has no ``info``.
    """
    field = guided(field, reference.guidance)
    unguided = replace(reference, guidance=1.0)
    moves, damping = _moves(plan, history, move_times), 1e-4

    def recorded(plan: Plan) -> tuple[Plan, Tensor, list[Found]]:
        """The plan, made to preserve contrast; its final states, and its velocities."""
        x, calls = _recorded(plan, field, unguided, refiner)
        if contrast is None:
            return plan, x, calls
        used = slice(max(0, len(plan) - history), len(plan))
        more, x = contrast.restored(x, [found[k] for k, found in enumerate(calls)][used])
        weights, differences = plan.weights.copy(), plan.guidance_weights
        weights[-1, used] += more.numpy()
        if differences is not None:
            differences = differences.copy()
            differences[-1] += more.numpy() @ guided_by(plan)[used]
        return replace(plan, weights=weights, guidance_weights=differences), x, calls

    best, x, calls = recorded(plan)
    lowest = score(x, unguided, power)
    for i in range(iterations):
        if not 0 < lowest < math.inf:
            break
        before, tries = lowest, 4
        slopes = [_slope(best, m, field, unguided, refiner, x, calls) for m in moves]
        while tries:
            steps = _solve(slopes, x - unguided.states[-1], damping, power, x, contrast)
            trial = _moved(best, moves, steps)
            new = None if trial is None else recorded(trial)
            reached = lowest if new is None else score(new[1], unguided, power)
            if new is not None and reached < lowest:
                tries = int(reached < (1 - MIN_GAIN) * lowest)  # the slopes may serve once more
                (best, x, calls), lowest = new, reached
                damping /= 10
            else:
                tries -= trial is not None or damping > MOST_DAMPING  # others cost nothing
                damping *= 10
        if report:
            report(Progress("polish", i + 1, iterations, error=lowest))
        if lowest > 0.9 * before:  # what is left fits the trajectories more than the field
            break
    return best


def _recorded(
    plan: Plan,
    field: Field,
    reference: Reference,
    refiner: Refiner | None,
    before: Sequence[Found] = (),
) -> tuple[Tensor, list[Found]]:
    """The final states, and the velocities of all evaluations, the first of them replayed."""
    calls: list[Found] = []

    def step(
        row: Row, evaluate: Mapping[str, Evaluate], x: Tensor, velocities: Velocities
    ) -> tuple[Tensor, Found]:
        if row.k < len(before):
            found = before[row.k]
        else:
            keeps_term = row.evaluator == "model" and plan.guidance_weights is not None
            found = evaluated(row._replace(keeps_term=keeps_term), evaluate, x, velocities)
        calls.append(found)
        return update(row, x, found, velocities), found

    with torch.no_grad():
        return run(plan, field, reference, refiner, step=step), calls


Found = dict[int, Tensor]  # what a row has evaluated
Move = tuple[int, int | None]
"""A row, and the column of a weight, ``~j`` of a guidance weight ``j``, or None for its time."""


def _moves(plan: Plan, history: int, move_times: bool) -> list[Move]:
    size, times = len(plan), plan.times
    weights: list[Move] = [
        (k, j) for k in range(size) for j in range(max(0, k + 1 - history), k + 1)
    ]
    if plan.guidance_weights is not None:
        for k in range(size):
            model = [j for j, e in enumerate(plan.evaluators[: k + 1]) if e == "model"]
            weights += [(k, ~j) for j in model[-DIFFERENCES:]]
    inner = [k for k in range(1, size) if times[k - 1] != times[k] != times[-1]]
    return weights + [(k, None) for k in inner if move_times]


def _moved(plan: Plan, moves: list[Move], steps: Times) -> Plan | None:
    """The plan with every number moved, or None if its times or weights would not be allowed."""
    times, weights, differences = plan.times.copy(), plan.weights.copy(), plan.guidance_weights
    if differences is not None:
        differences = differences.copy()
    for (k, j), step in zip(moves, steps, strict=True):
        if j is None:
            times[plan.times == plan.times[k]] += step
        elif j < 0:
            assert differences is not None
            differences[k, ~j] += step
        else:
            weights[k, j] += step
    gaps = np.diff(times) * np.sign(times[-1] - times[0])
    least = np.minimum(np.abs(np.diff(plan.times)) * (1 - 1e-9), MIN_GAP)
    if differences is not None:
        refined = [e == "refiner" for e in plan.evaluators]
        differences[:, refined] = weights[:, refined]
    largest = max(np.abs(w).max() for w in (weights, differences) if w is not None)
    if not (largest <= LARGEST and (gaps >= least).all()):  # nor NaN
        return None
    model_times = np.clip(times[:-1] + (plan.model_times - plan.times[:-1]), 0, 1)
    return replace(
        plan,
        times=times,
        weights=weights,
        model_times=model_times,
        guidance_weights=differences,
        info={},
    )


def _slope(
    plan: Plan,
    move: Move,
    field: Field,
    reference: Reference,
    refiner: Refiner | None,
    x: Tensor,
    calls: list[Found],
) -> Tensor:
    """How the final states change with one number, (N, ...) per unit."""
    k, j = move
    step = 0.02 * abs(plan.times[-1] - plan.times[0]) / len(plan)
    changed = _moved(plan, [move], np.array([step]))
    if changed is None:
        step = -step
        changed = _moved(plan, [move], np.array([step]))
    if changed is None:
        return torch.zeros_like(x)
    first = k if j is None else k + 1  # evaluation that changes
    last = k - 1 if j is None else k  # row whose step or guidance weights change
    if plan.evaluators[last] == "conditional" and (j is None or j < 0):
        first = last  # its estimate does
    before = calls[:first]
    return (_recorded(changed, field, reference, refiner, before)[0] - x) / step


def _solve(
    slopes: list[Tensor],
    residual: Tensor,
    damping: float,
    power: float,
    x: Tensor,
    contrast: Contrast | None,
) -> Times:
    """The damped Gauss-Newton step, rows weighted by a power of their error."""
    norms = residual.double().reshape(len(residual), -1).square().mean(1).sqrt()
    least = max(0.1 * float(norms.median()), 1e-6 * float(norms.max()))
    row = norms.clamp(min=least) ** (power / 2 - 1)
    shape = [-1, *[1] * (residual.ndim - 1)]
    flat = lambda a: (a.double() * row.reshape(shape)).flatten()
    jacobian = torch.stack([flat(s) for s in slopes])
    gram = jacobian @ jacobian.T
    gram = (gram + damping * torch.diag(gram.diagonal().clamp(min=1e-12))).cpu()
    step = solve_least_squares(gram, -(jacobian @ flat(residual)).cpu())
    if contrast is not None:
        step = contrast.corrected(gram, step, contrast.slopes(x, slopes), contrast.missing(x))
    return step.numpy()  # type: ignore[no-any-return]
