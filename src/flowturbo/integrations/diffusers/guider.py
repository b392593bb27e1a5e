"""A guider of Modular Diffusers that omits the unconditional branch where a plan does.

A modular pipeline asks its guider which branches of guidance to evaluate, and passes the guided
velocity to its scheduler. With `FlowTurboScheduler(plan=..., guider=True)` the two run a plan
together: the scheduler has the table, and the guider passes it the guidance term ``v - v_c`` of
each model evaluation, and adds the table's estimate to each conditional one (`flowturbo.plan.Row`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from flowturbo.checks import shown
from flowturbo.integrations.diffusers._shim import ClassifierFreeGuidance, GuiderOutput
from flowturbo.integrations.diffusers.run import cropped, places
from flowturbo.integrations.diffusers.thread import running
from flowturbo.sampling import weighted_sum

if TYPE_CHECKING:
    from flowturbo.plan import Row

__all__ = ["FlowTurboGuider"]


class FlowTurboGuider(ClassifierFreeGuidance):  # type: ignore[misc]
    """Classifier-free guidance by the plan of a ``FlowTurboScheduler(plan=..., guider=True)``.

        pipe.update_components(
            scheduler=FlowTurboScheduler.from_config(pipe.scheduler, plan="AB2:FFCFC", guider=True),
            guider=FlowTurboGuider(guidance_scale=4.5),
        )

    Both are saved as JSON by ``save_pretrained``. The options are those of
    ``ClassifierFreeGuidance``. The guider's scheduler is the one that set timesteps in this thread.
    Like every guider it holds the state of a step, so each thread needs its own.
    """

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """Called by the pipeline before each evaluation.

        Raises:
            ValueError: if ``timestep`` is not one of the scheduler that this thread runs.
        """
        super().set_state(step, num_inference_steps, timestep)
        scheduler = running()
        if scheduler is None or not places(timestep, scheduler.timesteps):
            raise ValueError(
                f"timestep={shown(timestep)}: not of a FlowTurboScheduler of this thread; call "
                "pipe.update_components(scheduler=FlowTurboScheduler.from_config(pipe.scheduler, "
                "plan=..., guider=True))"
            )
        self._scheduler: Any = scheduler

    @property
    def num_conditions(self) -> int:
        """Branches to evaluate: 1 at conditional evaluations, and without guidance."""
        return 1 if self._conditional_row else int(super().num_conditions)

    @property
    def _conditional_row(self) -> Row | None:
        """The row of the next step, if it is a conditional one."""
        row: Row | None = self._scheduler.next_row
        return row if row is not None and row.evaluator == "conditional" else None

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided output of the network, from the outputs of its branches (B, ...)."""
        scheduler, row = self._scheduler, self._conditional_row
        v = scheduler.sign * pred_cond
        if row is None:
            scheduler.output = (v, True)
            return super().forward(pred_cond, pred_uncond)
        known = scheduler.velocities
        v = cropped(v, next(iter(known.values())))
        scheduler.answer = weighted_sum(v, row.estimate if self._is_cfg_enabled() else (), known)
        pred = (scheduler.sign * scheduler.answer).to(pred_cond.dtype)
        # as both, so that a pipeline that gives one the norm of the other changes nothing
        return GuiderOutput(pred=pred, pred_cond=pred, pred_uncond=None)
