"""Reference trajectories: the ODE of a field solved on a fine grid, once, to fit plans to.

States and velocities are kept on the fine grid; between its points the state is the cubic that
matches both (Hermite), so a plan may be fitted on any times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flowturbo.field import Field
from flowturbo.guidance import guided
from flowturbo.path import Times
from flowturbo.plan import Plan
from flowturbo.progress import Progress, Report
from flowturbo.refiner.binding import Refiner, needed_refiner, prepare_refiner
from flowturbo.sampling import Step, evaluators, sample, step
from flowturbo.sampling import run as run_rows
from flowturbo.tree import map_condition, slice_condition
from flowturbo.types import Condition, GuidanceScale

__all__ = ["Reference", "error", "fine", "run", "solve"]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """N reference trajectories.

    Attributes:
        times: (M + 1,) the fine grid, ascending or descending.
        states: (M + 1, N, ...) at these times.
        velocities: (M + 1, N, ...), guided, at these times.
        cond: the condition of the N rows, or None.
        guidance: scale of guidance: a number, or one per row (N,).
        back: in a round trip, the plan that continues from the states that another reaches.
    """

    times: Times
    states: Tensor
    velocities: Tensor
    cond: Condition
    guidance: GuidanceScale
    back: Plan | None = None

    def __len__(self) -> int:
        return self.states.shape[1]

    @property
    def noise(self) -> Tensor:
        """The states at the first time, (N, ...)."""
        return self.states[0]

    def at(self, t: float) -> Tensor:
        """The states at time ``t`` within the grid, (N, ...)."""
        sign = 1.0 if self.times[-1] > self.times[0] else -1.0
        i = int(np.searchsorted(sign * self.times, sign * t, side="right")) - 1
        i = min(max(i, 0), len(self.times) - 2)
        h = self.times[i + 1] - self.times[i]
        u = (t - self.times[i]) / h
        x, v = self.states[i : i + 2], self.velocities[i : i + 2]
        return (
            (1 + 2 * u) * (1 - u) ** 2 * x[0]
            + u**2 * (3 - 2 * u) * x[1]
            + h * u * (1 - u) ** 2 * v[0]
            - h * u**2 * (1 - u) * v[1]
        )

    def reversed(self) -> Reference:
        """The same trajectories run the other way: inversion."""
        return replace(
            self,
            times=self.times[::-1].copy(),
            states=self.states.flip(0),
            velocities=self.velocities.flip(0),
        )

    def round_trips(self, back: Plan) -> Reference:
        """Round trips of the final states, unguided: a plan leads away and ``back`` returns."""
        ends = self.states[-1:].repeat(2, *[1] * (self.states.ndim - 1))
        times = np.array([back.times[-1], back.times[0]])
        still = torch.zeros_like(ends)
        return replace(self, times=times, states=ends, velocities=still, guidance=1.0, back=back)

    @classmethod
    def join(cls, parts: Sequence[Reference]) -> Reference:
        """The rows of all parts as one."""
        first = parts[0]
        scales = [p.guidance for p in parts]
        join = lambda *c: torch.cat(c) if isinstance(c[0], Tensor) else c[0]
        return replace(
            first,
            states=torch.cat([p.states for p in parts], dim=1),
            velocities=torch.cat([p.velocities for p in parts], dim=1),
            cond=map_condition(join, *(p.cond for p in parts)),
            guidance=torch.cat(scales) if isinstance(scales[0], Tensor) else scales[0],  # type: ignore[arg-type]
        )

    def rows(self, start: int, end: int) -> Reference:
        """The trajectories ``start`` to ``end``."""
        return replace(
            self,
            states=self.states[:, start:end],
            velocities=self.velocities[:, start:end],
            cond=slice_condition(self.cond, slice(start, end)),
            guidance=slice_condition(self.guidance, slice(start, end)),
        )


def solve(
    field: Field,
    noise: Tensor,
    cond: Condition = None,
    *,
    guidance: GuidanceScale = 1.0,
    steps: int = 64,
    substeps: int = 1,
    direction: str = "forward",
    batch: int = 64,
    report: Report | None = None,
) -> Reference:
    """Solve the ODE from ``noise`` (N, ...) by classic Runge-Kutta started Adams-Bashforth 4.

    Args:
        field: the velocity field.
        noise: the states to start from, (N, ...).
        cond: the condition of the N rows.
        guidance: scale of guidance, a number or (N,).
        steps: intervals of the grid that is kept, at least 8.
        substeps: steps in each, of one evaluation, the first three of four.
        direction: "forward", or "backward" from data.
        batch: rows solved at a time.
        report: called after each batch.

    Raises:
        ValueError: if a velocity is not finite, naming the time.
    """
    plan = fine(steps * substeps, direction)
    points = [*range(0, 12, 4), *range(12, len(plan))]  # the evaluations at points of the grid
    kept = points[::substeps]
    parts: list[tuple[Tensor, Tensor]] = []
    for i in range(0, len(noise), batch):
        rows = slice(i, i + batch)
        parts.append(
            _record(
                plan,
                kept,
                field,
                noise[rows],
                slice_condition(cond, rows),
                slice_condition(guidance, rows),
            )
        )
        if report:
            report(Progress("reference trajectories", min(i + batch, len(noise)), len(noise)))
    states, velocities = (torch.cat(p, dim=1) for p in zip(*parts, strict=True))
    times = plan.times[[*kept, len(plan)]]
    return Reference(
        times=times, states=states, velocities=velocities, cond=cond, guidance=guidance
    )


def fine(steps: int, direction: str = "forward") -> Plan:
    """The plan that `solve` runs: ``steps`` intervals in ``steps + 9`` evaluations."""
    u = np.linspace(0, 1, steps + 1) if direction == "forward" else np.linspace(1, 0, steps + 1)
    # closer at both ends, where v bends most: a third of the error that even times leave on digits
    grid = u - 0.3 * np.sin(2 * np.pi * u) / (2 * np.pi)
    return Plan.adams_bashforth(steps + 9, 4, "runge-kutta", times=grid, direction=direction)


def _record(
    plan: Plan,
    kept: Sequence[int],
    field: Field,
    x: Tensor,
    cond: Condition,
    guidance: GuidanceScale,
) -> tuple[Tensor, Tensor]:
    """States and velocities at the evaluations ``kept`` and at the end."""
    states, velocities = [x], []
    index = set(kept)

    def record(step: Step) -> None:
        _check_finite(step.v, plan.model_times[step.index], guidance)
        if step.index in index:
            velocities.append(step.v)
        if step.index + 1 in index or step.index + 1 == step.total:
            states.append(step.x)

    end = sample(plan, field, x, cond, guidance=guidance, callback=record)
    with torch.no_grad():
        last = guided(field, guidance)(end, end.new_full((), plan.times[-1]), cond)
    if not last.isfinite().all():  # 0/0 there, if the network predicts the data or the noise
        last = _extrapolated(plan.times[[*kept[-3:], -1]], velocities[-3:])
    return torch.stack(states), torch.stack([*velocities, last.to(end.dtype)])


def _extrapolated(times: Times, velocities: Sequence[Tensor]) -> Tensor:
    """The quadratic through ``velocities`` at the first three of ``times``, at the fourth."""
    *known, at = times
    weights = [np.prod([(at - s) / (t - s) for s in known if s != t]) for t in known]
    return sum((float(w) * v for w, v in zip(weights, velocities, strict=True)), torch.tensor(0.0))


@torch.no_grad()
def run(
    plan: Plan,
    field: Field,
    reference: Reference,
    refiner: Refiner | None = None,
    *,
    step: Callable[..., tuple[Tensor, dict[int, Tensor]]] = step,
) -> Tensor:
    """The final states of ``plan`` from the initial states of ``reference``, (N, ...).

    In a round trip ``reference.back`` continues from there.

    ``step`` runs a row, as `flowturbo.sampling.step` does.

    As `flowturbo.sample`, but a state that is not finite is returned, not refused: a plan that
    diverges on this field is one bad candidate among others.
    """
    field = guided(field, reference.guidance)
    refiner = needed_refiner(plan, refiner)
    if refiner is not None:
        refiner = prepare_refiner(plan, field, refiner)
    evaluate = evaluators(field, refiner, reference.cond, plan.rows)
    end = run_rows(plan.rows, evaluate, reference.noise, step=step)
    back = reference.back
    if back is None:
        return end
    return run_rows(back.rows, evaluators(field, None, reference.cond, back.rows), end)


def _check_finite(v: Tensor, t: float, guidance: GuidanceScale) -> None:
    if not v.isfinite().all():
        raise ValueError(
            f"the field returned a velocity that is not finite at t={t:.4g}, guidance="
            f"{_range(guidance)}: its velocities must be finite from t=0 to 1, both ends included"
        )


def _range(scale: GuidanceScale) -> str:
    if not isinstance(scale, Tensor):
        return f"{scale:g}"
    return f"{float(scale.min()):g} to {float(scale.max()):g}"


def error(x: Tensor, reference: Tensor) -> Tensor:
    """Root mean square difference of each row, (N,), in float64."""
    return (x - reference).double().reshape(len(x), -1).square().mean(1).sqrt()
