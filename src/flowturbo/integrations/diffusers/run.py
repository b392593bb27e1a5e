"""The state of one run of the scheduler, and where a timestep stands in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from flowturbo.integrations.diffusers.grid import number
from flowturbo.integrations.diffusers.tables import rows_from
from flowturbo.plan import Plan

__all__ = ["Run", "floating", "moving_tokens", "places"]


@dataclass
class Run:
    """How far a run is, and what the network has returned so far.

    Attributes:
        plan: of the timesteps that are set, None before.
        timesteps: (K,) as the network is given them.
        sigmas: (K + 1,) the levels of the states.
        begin: where the run starts, if it was set.
        index: the timestep that the next step takes; None before the first.
        running: ``plan`` from where the run started.
        rows: which row of ``running`` each timestep is.
        velocities: by row; replaced, never changed, so that a copy of a run is a run of its own.
        predicted: the clean state that the last step pointed to.
        answer: the refiner's, between the call of the network and the step.
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

    def advance(
        self, timestep: float | Tensor, find: Callable[[float | Tensor], int]
    ) -> tuple[int, Plan, Plan]:
        """The index of the next step, the plan, and the plan that runs; ``find`` says the first.

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
                f"and the next of this run is {k}: none can be left out or done twice; for runs at "
                "once, give each a copy.copy(scheduler)"
            )
        assert self.running is not None
        return k, self.plan, self.running


def floating(timestep: object) -> bool:
    """False for a tensor of whole numbers."""
    return not isinstance(timestep, Tensor) or timestep.is_floating_point()


def places(timestep: object, schedule: Tensor) -> list[int]:
    """Where ``timestep`` stands in ``schedule`` (K,); nowhere if it is not one number.

    Whole numbers in a tensor are timesteps that have lost their fraction, as SkyReels has them.
    """
    if isinstance(timestep, Tensor):
        own, other = (t.untyped_storage().data_ptr() for t in (schedule, timestep))
        if own == other:  # as loops over them have it: no wait for the device
            return [int(timestep.storage_offset())]
    try:
        asked = number("timestep", timestep)
    except ValueError:
        return []
    schedule = schedule if floating(timestep) else schedule.trunc()
    return [int(k) for k in (schedule == asked).nonzero().flatten()]


def moving_tokens(timesteps: Tensor, sample: Tensor, t: Tensor, near: float) -> Tensor:
    """Whether each token of ``sample`` (B, N, C) is at ``t``; else it is clean. As (B, N, 1).

    Args:
        timesteps: (B, N) of the tokens, either of which may be 1.
        sample: the state.
        t: the timestep of the run.
        near: timesteps no farther apart than this are the same.

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
    given = timesteps.to(sample.device, torch.float32)
    here, clean = (given - t).abs() <= near, given.abs() <= near
    other = given[~(here | clean)]
    if other.numel() or (here & clean).any():
        at = f"some at {other[0].item():g}" if other.numel() else f"all at {t.item():g}"
        raise ValueError(
            f"per_token_timesteps, {at}: each must be the timestep, {t.item():g} and above 0, or 0 "
            "of a clean token (a condition of strength 1); for any other take "
            "FlowMatchEulerDiscreteScheduler"
        )
    return here[..., None]
