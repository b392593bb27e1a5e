"""The state of one run of the scheduler: which timestep is next, and the update of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flowturbo.integrations.diffusers.grid import number
from flowturbo.integrations.diffusers.tables import rows_from
from flowturbo.path import predicted_data
from flowturbo.plan import Plan, Row
from flowturbo.refiner.binding import History
from flowturbo.sampling import update

__all__ = ["Run", "floating", "moving_tokens", "places"]


@dataclass
class Run:
    """Progress of a run, and the velocities that later steps need.

    Attributes:
        plan: that of the timesteps that are set, None before.
        timesteps: (K,) of the network.
        sigmas: (K + 1,) the noise levels of the states.
        begin: index of the first timestep, if it was set.
        index: of the timestep that the next step takes; None before the first.
        running: ``plan`` restricted to start at the first timestep of the run.
        rows: the row of ``running`` for each timestep.
        velocities: by row; replaced, never changed, so that a copy of a run is independent of it.
        predicted: the clean state predicted at the last step.
        answer: the velocity of a refiner or of a conditional evaluation, between the call of the
            network and the step.
        output: likewise, the network's first output as velocities, and whether the conditional
            branch is in the first half of a batch of both.
    """

    plan: Plan | None = None
    timesteps: Tensor = field(default_factory=lambda: torch.empty(0))
    sigmas: Tensor = field(default_factory=lambda: torch.empty(0))
    begin: int | None = None
    index: int | None = None
    running: Plan | None = None
    rows: dict[int, int] = field(default_factory=dict)
    velocities: dict[int, Tensor] = field(default_factory=dict)
    predicted: Tensor | None = None
    answer: Tensor | None = None
    output: tuple[Tensor, bool] | None = None

    @property
    def name(self) -> str:
        """Of the plan."""
        return "" if self.plan is None else self.plan.name

    def begin_step(self, timestep: float | Tensor, find: Callable[[float | Tensor], int]) -> int:
        """The index of the next step; ``find`` looks up that of the first.

        Raises:
            ValueError: if no timesteps are set, all are done, or ``timestep`` is not the next.
        """
        if self.plan is None:
            raise ValueError("step before set_timesteps: no timesteps are set; call that first")
        found = places(timestep, self.timesteps)
        index = isinstance(timestep, (int, np.integer))
        if index or not (floating(timestep) or found):
            raise ValueError(
                f"timestep={timestep}: whole numbers are not supported, they look like an index; "
                "pass one of scheduler.timesteps"
            )
        if self.index is None:
            k = find(timestep) if self.begin is None else self.begin
            self.index, self.running = k, self.plan.restrict(float(self.plan.times[k]))
            self.rows = rows_from(self.plan, k, self.running)
        k = self.index
        if k >= len(self.plan):
            raise ValueError(f"all {k} steps are done; call set_timesteps for another run")
        if found and k not in found:
            raise ValueError(
                f"timestep={number('timestep', timestep):g} is number {found[0]} of the timesteps, "
                f"and the next of this run is {k}: none can be skipped or repeated; for concurrent "
                "runs, give each a copy.copy(scheduler)"
            )
        return k

    def _row(self, k: int) -> Row | None:
        """The row of timestep ``k``; None if it is skipped by a start in the middle of a step."""
        row = self.rows.get(k)
        return None if row is None or self.running is None else self.running.rows[row]

    @property
    def next_row(self) -> Row | None:
        """Of the running plan; None if the next timestep is skipped."""
        return self._row(self.index or 0)

    def refiner_input(self) -> tuple[float, History] | None:
        """If the next row is a refiner's: its time, and (time, velocity) pairs, oldest first."""
        row = self.next_row
        if row is None or row.evaluator != "refiner":
            return None
        return row.model_time, [(t, self.velocities[j]) for j, t in row.history]

    def update(self, k: int, x: Tensor, v: Tensor) -> Tensor:
        """The state after timestep ``k``, from ``x`` and the velocity ``v`` at it."""
        assert self.plan is not None
        self.predicted = predicted_data(x, v, float(self.plan.times[k]))
        row = self._row(k)
        if row is not None:
            found = {row.k: v}
            if row.keeps_term and self.output is not None:
                found[~row.k] = v - _conditional(*self.output, v)
            x = update(row, x, found, self.velocities)
            kept = {**self.velocities, **found}
            self.velocities = {j: u for j, u in kept.items() if j not in row.frees}
        self.index, self.answer, self.output = k + 1, None, None
        return x


def _conditional(output: Tensor, first: bool, v: Tensor) -> Tensor:
    """The conditional branch of a network's ``output``, like the guided velocity ``v``."""
    n = len(v)
    return cropped(output[half_of(n, first)] if len(output) == 2 * n else output, v)


def half_of(n: int, first: bool) -> slice:
    """One half of a batch of ``2*n`` rows."""
    return slice(n) if first else slice(n, 2 * n)


def cropped(x: Tensor, like: Tensor) -> Tensor:
    """``x`` cut to the size of ``like`` along each axis, in its dtype."""
    return x[tuple(slice(size) for size in like.shape)].to(like.dtype)


def floating(timestep: object) -> bool:
    """False for a tensor of whole numbers."""
    return not isinstance(timestep, Tensor) or timestep.is_floating_point()


def places(timestep: object, schedule: Tensor) -> list[int]:
    """The indices of ``timestep`` in ``schedule`` (K,); none if it is not one number.

    Whole numbers in a tensor are timesteps that were truncated, as in SkyReels.
    """
    if isinstance(timestep, Tensor):
        own, other = (t.untyped_storage().data_ptr() for t in (schedule, timestep))
        if own == other:  # an element of it, as in a loop: no wait for the device
            return [int(timestep.storage_offset())]
    try:
        asked = number("timestep", timestep)
    except ValueError:
        return []
    schedule = schedule if floating(timestep) else schedule.trunc()
    return [int(k) for k in (schedule == asked).nonzero().flatten()]


def moving_tokens(timesteps: Tensor, sample: Tensor, t: Tensor, near: float) -> Tensor:
    """Whether each token of ``sample`` (B, N, C) is at ``t`` (else it is clean), as (B, N, 1).

    Args:
        timesteps: (B, N) of the tokens; either size may be 1.
        sample: the state.
        t: the timestep of the run.
        near: timesteps closer than this are equal.

    Raises:
        ValueError: if the shapes do not fit, or a token is neither at ``t`` nor clean, at 0.
    """
    shape, tokens = tuple(timesteps.shape), tuple(sample.shape[:-1])
    if (
        len(shape) != 2
        or len(tokens) != 2
        or any(n not in (1, m) for n, m in zip(shape, tokens, strict=True))
    ):
        raise ValueError(
            f"per_token_timesteps of shape {shape}: must be one for each token of a sample "
            f"(B, N, C), here {tuple(sample.shape)}"
        )
    timesteps = timesteps.to(sample.device, torch.float32)
    here, clean = (timesteps - t).abs() <= near, timesteps.abs() <= near
    other = timesteps[~(here | clean)]
    if other.numel() or (here & clean).any():
        at = f"some at {other[0].item():g}" if other.numel() else f"all at {t.item():g}"
        raise ValueError(
            f"per_token_timesteps, {at}: each must be the timestep, {t.item():g} and above 0, or 0 "
            "for a clean token (a condition of strength 1); for anything else use "
            "FlowMatchEulerDiscreteScheduler"
        )
    return here[..., None]
