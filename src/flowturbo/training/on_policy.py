"""The states a plan visits when it runs with its refiner, and how far off it ends.

A refiner learns from teacher trajectories, but runs where its own errors took the state and with
its own velocities in the history. Here the teacher says what would have been right there: it is
called once a collected state, and not at all in the training that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowturbo.checks import shown
from flowturbo.field import Field
from flowturbo.plan import Plan
from flowturbo.refiner.binding import History
from flowturbo.refiner.history import VelocityRefiner
from flowturbo.sampling import sample
from flowturbo.training.loop import autocast
from flowturbo.training.trajectories import Batch, Starts

__all__ = ["OwnStates", "collect", "mixed_plan", "rollout_error"]


def mixed_plan(pattern: str, shift: float = 1.6) -> Plan:
    """Two-step Adams-Bashforth with the evaluators of ``pattern``, M or R each, as "MMRMRMRM".

    Raises:
        ValueError: if it is not such a text, or does not begin with MM.
    """
    letters = pattern.strip().upper() if isinstance(pattern, str) else ""
    if set(letters) - set("MR") or not letters.startswith("MM"):
        raise ValueError(
            f"pattern {shown(pattern)}: must be of M and R and begin with MM ('MMRMRMRM')"
        )
    names = tuple({"M": "model", "R": "refiner"}[letter] for letter in letters)
    plan = Plan.adams_bashforth(len(letters), shift=shift)
    return replace(plan, evaluators=names, name=f"{letters}@{shift:g}")


class OwnStates:
    """Batches put together, to draw from."""

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
    starts: Starts,
    rows: range,
    *,
    batch: int = 64,
    bf16: bool = False,
) -> OwnStates:
    """What ``refiner`` is asked as ``plan`` runs from ``rows`` of ``starts``, with the answers."""
    batches: list[Batch] = []
    for first in range(rows.start, rows.stop, batch):
        x0, cond, scales = starts.rows(first, min(first + batch, rows.stop))
        asked = _Asked(refiner, starts.guided(model, scales), scales)
        with autocast(x0.device, bf16):
            sample(plan, starts.guided(model, scales), x0, cond, refiner=asked)
        batches += asked.batches
    return OwnStates(batches)


class _Asked:
    """A refiner that keeps what it was asked and what the teacher answers."""

    def __init__(self, refiner: VelocityRefiner, teacher: Field, scales: Tensor) -> None:
        self.refiner, self.teacher, self.scales = refiner, teacher, scales
        self.distinct_times = refiner.distinct_times
        self.batches: list[Batch] = []

    def __call__(self, x: Tensor, t: Any, cond: Any, history: History) -> Tensor:
        times = dict(history)
        if t.item() not in times:  # at that time itself there is nothing to learn
            t_b, t_a, now = (torch.full_like(self.scales, s) for s in [*times, t.item()][-3:])
            v_b, v_a = list(times.values())[-2:]
            v = self.teacher(x, t, cond)
            self.batches.append(Batch(x, now, cond, (t_a, v_a), (t_b, v_b), self.scales, v))
        return self.refiner(x, t, cond, history, self.scales)


def rollout_error(
    refiner: VelocityRefiner, plan: Plan, teacher: Field, x0: Tensor, cond: Any, exact: Tensor
) -> dict[str, float]:
    """Distance of the final states of ``plan`` to the ``exact`` ones.

    Returns:
        "rmse", the root mean square over all numbers, and "median" of the images' own.
    """
    off = (sample(plan, teacher, x0, cond, refiner=refiner) - exact).flatten(1).square().mean(1)
    return {"rmse": float(off.mean().sqrt()), "median": float(off.sqrt().median())}
