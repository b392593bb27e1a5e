"""On-policy states: those a plan visits when it runs with its refiner, labelled by the teacher.

A refiner learns from teacher trajectories, but runs at states that contain its own errors and with
its own velocities in the history. Here the teacher gives the right velocity at those states, as in
DAgger (Ross et al. 2011, arXiv 1011.0686): it is called once per collected state, and not at all in
the training that follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowturbo.field import Field
from flowturbo.plan import Plan
from flowturbo.refiner.binding import History
from flowturbo.refiner.history import VelocityRefiner
from flowturbo.sampling import sample
from flowturbo.training.devices import autocast
from flowturbo.training.initial_states import InitialStateSampler
from flowturbo.training.trajectories import Batch
from flowturbo.types import Condition, Time

__all__ = ["OnPolicyStates", "collect", "rollout_error"]


class OnPolicyStates:
    """Collected states, to draw batches from."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.all = batches[0].map(lambda *parts: torch.cat(parts), *batches[1:])

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        """``n`` of the states, with replacement."""
        rows = torch.randint(len(self.all.x), (n,), generator=generator).to(self.all.x.device)
        return self.all.map(lambda c: c[rows])


@torch.no_grad()
def collect(
    refiner: VelocityRefiner,
    model: Field,
    plan: Plan,
    initial: InitialStateSampler,
    rows: range,
    *,
    batch: int = 64,
    bf16: bool = False,
) -> OnPolicyStates:
    """States at which ``plan`` calls ``refiner``, from ``rows`` of ``initial``, with velocities."""
    batches: list[Batch] = []
    for first in range(rows.start, rows.stop, batch):
        x0, cond, scales = initial.rows(first, min(first + batch, rows.stop))
        recorder = _Recorder(refiner, initial.guided(model, scales), scales)
        with autocast(x0.device, bf16):
            sample(plan, initial.guided(model, scales), x0, cond, refiner=recorder)
        batches += recorder.batches
    return OnPolicyStates(batches)


class _Recorder:
    """A refiner that keeps its inputs and the velocities of the teacher."""

    def __init__(self, refiner: VelocityRefiner, teacher: Field, scales: Tensor) -> None:
        self.refiner, self.teacher, self.scales = refiner, teacher, scales
        self.distinct_times = refiner.distinct_times
        self.batches: list[Batch] = []

    def __call__(self, x: Tensor, t: Time, cond: Condition, history: History) -> Tensor:
        times = dict(history)
        time = float(t)
        if time not in times:  # at that time itself there is nothing to learn
            t_b, t_a, now = (torch.full_like(self.scales, s) for s in [*times, time][-3:])
            v_b, v_a = list(times.values())[-2:]
            v = self.teacher(x, t, cond)
            self.batches.append(Batch(x, now, cond, (t_a, v_a), (t_b, v_b), self.scales, v))
        return self.refiner(x, t, cond, history, self.scales)


def rollout_error(
    refiner: VelocityRefiner, plan: Plan, teacher: Field, x0: Tensor, cond: Condition, exact: Tensor
) -> dict[str, float]:
    """Distance of the final states of ``plan`` to the ``exact`` ones.

    Returns:
        "rmse", the root mean square over all numbers, and "median" over the errors of the images.
    """
    off = (sample(plan, teacher, x0, cond, refiner=refiner) - exact).flatten(1).square().mean(1)
    return {"rmse": float(off.mean().sqrt()), "median": float(off.sqrt().median())}
