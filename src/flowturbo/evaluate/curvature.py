"""How a model's prediction changes along its sampling trajectories.

FlowTurbo (Zhao et al., NeurIPS 2024, arXiv 2409.18128, figure 2) compares the curvatures of the
predictions of models while they sample: the velocity of flow models is stable, while the noise that
a diffusion model predicts is not, which is why a light refiner can stand in for the former. The
paper gives no formula. Here, with ``p(t)`` the prediction on the reference trajectory and ``size``
the root mean square of ``|p|`` over its times,

    rate(t)   = |dp/dt| / size                 per unit of time,
    change(t) = integral of the rate from the first time to t.

Both are 0 for a straight trajectory run at constant speed; for a rotation ``v = w*J*x`` the rate is
``w`` and the change is the angle turned, in radians. (Relative to ``|p(t)|`` itself, neither would
be finite for the noise, which a perfect model of a smooth density predicts to be 0 at the data.)
The integral of ``|dp/dt|`` does not depend on the parametrisation of time. It does depend on what
counts as the prediction, so there are two, each from the same states and velocities:

- "velocity": ``v`` against the time ``t`` of the linear path;
- "noise": ``x - t*v`` against the time ``u`` of a diffusion model (`flowturbo.models.diffusion`).

A flow model is sampled in the first, a diffusion model in the second. Compared in the same one, two
perfect models of the same data would be equal, since both fields would be the same.

A refiner has to correct the error of skipping an evaluation: of repeating the last prediction, as
the paper's refiner does at the start, or of extrapolating the last two linearly.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flowturbo.field import Field
from flowturbo.guidance import guided
from flowturbo.models.diffusion import to_linear
from flowturbo.path import predicted_noise
from flowturbo.tuning.reference import Reference
from flowturbo.types import JsonObject

__all__ = ["PREDICTIONS", "Prediction", "change", "gap_errors", "mean", "predictions", "rate"]

Prediction = Literal["velocity", "noise"]
PREDICTIONS: tuple[Prediction, ...] = ("velocity", "noise")


def predictions(
    field: Field, reference: Reference, kind: Prediction, steps: int, batch: int = 64
) -> tuple[Tensor, Tensor]:
    """The predictions of ``field`` on solved trajectories at equally spaced times.

    Args:
        field: the field that ``reference`` was solved with, unguided.
        reference: N trajectories from noise to data, guided by its scale.
        kind: "velocity", or "noise"; the clock goes with it.
        steps: intervals of time, at least 2.
        batch: rows evaluated at a time.

    Returns:
        Times (steps + 1,) of the clock of ``kind``, from 0 to 1, float64; and predictions
        (steps + 1, N, ...) there.

    Raises:
        ValueError: if an argument is not as described.
    """
    if kind not in PREDICTIONS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(PREDICTIONS)}")
    if steps < 2:
        raise ValueError(f"steps={steps}: a rate of change needs at least 2")
    if reference.times[-1] < reference.times[0]:
        raise ValueError("reference runs from data to noise: solve it forward")
    clock = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    found = []
    with torch.no_grad():
        for i in range(0, len(reference), batch):
            part = reference.rows(i, i + batch)
            velocity = guided(field, part.guidance)
            rows = []
            for t in (clock if kind == "velocity" else to_linear(clock)).tolist():
                x = part.at(t)
                v = velocity(x, x.new_full((), t), part.cond)
                rows.append(v if kind == "velocity" else predicted_noise(x, v, t))
            found.append(torch.stack(rows))
    return clock, torch.cat(found, dim=1)


def rate(times: Tensor, values: Tensor) -> Tensor:
    """The relative rate of change of each trajectory, (M + 1, N), per unit of time.

    By central differences of second order, one-sided at both ends.

    Args:
        times: (M + 1,), ascending, M at least 2.
        values: (M + 1, N, ...), predictions at them.
    """
    slope = torch.gradient(values, spacing=(times.to(values),), dim=0, edge_order=2)[0]
    slope, size = (a.double().flatten(2).norm(dim=2) for a in (slope, values))
    return slope / size.square().mean(0).sqrt()


def change(times: Tensor, rates: Tensor) -> Tensor:
    """The rates (M + 1, N) summed over time from the first on (trapezoids), (M + 1, N)."""
    return torch.cat([torch.zeros_like(rates[:1]), torch.cumulative_trapezoid(rates, times, dim=0)])


def gap_errors(values: Tensor, gap: int) -> dict[str, Tensor]:
    """The relative error of skipping an evaluation, of each trajectory.

    The last time is left out: samplers have arrived there, and trained predictions are poor.

    Args:
        values: (M + 1, N, ...), predictions at equally spaced times.
        gap: how many of the M intervals lie between a prediction and the next, below M/2.

    Returns:
        "reuse": of the prediction one gap before; "extrapolate": of the line through those one and
        two gaps before. Each (N,): the root mean square error over the times available to both,
        relative to the root mean square of the prediction.

    Raises:
        ValueError: if there are no such times.
    """
    last = len(values) - 2
    if not 1 <= gap <= last // 2:
        raise ValueError(f"gap={gap}: must be from 1 to {last // 2} with {last + 1} intervals")
    values = values[:-1]
    now, before, earlier = values[2 * gap :], values[gap:-gap], values[: -2 * gap]
    square = lambda a: a.double().square().transpose(0, 1).flatten(1).sum(1)
    whole = square(now)
    return {
        "reuse": (square(now - before) / whole).sqrt(),
        "extrapolate": (square(now - 2 * before + earlier) / whole).sqrt(),
    }


def mean(values: Tensor) -> JsonObject:
    """The mean over the last axis, of N > 1 trajectories, and half its 95 % interval.

    "mean" and "half", 1.96 standard errors: numbers, or lists of numbers along the other axis.
    """
    a = values.double()
    half = 1.96 * a.std(-1) / a.shape[-1] ** 0.5
    return {"mean": a.mean(-1).tolist(), "half": half.tolist()}
