"""FlowEdit in the loop of a pipeline (Kulikov et al. 2025, arXiv 2412.08629, algorithm 1).

The pipeline runs a batch of 2*N states: those of the N images edited so far, ``x + z - image``,
with the target prompts, and those of the original images with the same noise, ``z``, with the
source prompts. Since the update of a row is linear, ``x - image`` is the difference of the two
halves after it, and the states of the next row follow from that. The branch of the source prompts
is unguided: in their rows, the unconditional branch gets the output of the conditional one, ``c +
w*(c - c) = c``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowturbo.integrations.diffusers.families import Family
from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler
from flowturbo.plan import Plan
from flowturbo.tasks.fields import noised_afresh
from flowturbo.types import JsonObject, Pipeline, ReadOnlyJson

__all__ = ["FlowEdit"]


class FlowEdit:
    """The states of a run, as its callback, and the hooks of its network.

    Args:
        plan: the plan that runs.
        image: latents (N, C, H, W).
        seeds: of their noise.
        form: converts latents to the form that the pipeline takes.
        family: of the network.
        scheduler: of the run.
    """

    def __init__(
        self,
        plan: Plan,
        image: Tensor,
        seeds: Sequence[int],
        form: Callable[[Tensor], Tensor],
        family: Family,
        scheduler: FlowTurboScheduler,
    ) -> None:
        self._plan, self._image, self._seeds, self._form = plan, image, seeds, form
        self._family, self._scheduler = family, scheduler
        self._first: dict[object, Tensor] = {}  # of two calls, the output of the first
        self.hooks = (
            ("register_forward_pre_hook", self._unguided_input),
            ("register_forward_hook", self._unguided_output),
        )

    def first(self) -> Tensor:
        """The states of the first row, (2*N, ...)."""
        z = self._noised(0)
        return torch.cat([z, z])

    def __call__(self, pipe: Pipeline, k: int, t: Tensor, kept: JsonObject) -> JsonObject:
        """The states of the row after ``k``; at the end the edited ones, (N, ...)."""
        target, source = kept["latents"].chunk(2)
        moved = target - source
        if k == len(self._plan) - 1:
            return {"latents": self._form(self._image).to(moved) + moved}
        z = self._noised(k + 1).to(moved)
        return {"latents": torch.cat([z + moved, z])}

    def _noised(self, k: int) -> Tensor:
        return self._form(noised_afresh(self._image, float(self._plan.times[k]), self._seeds))

    def _unguided_input(
        self, _: object, args: Sequence[Any], kwargs: ReadOnlyJson
    ) -> tuple[Sequence[Any], ReadOnlyJson]:
        """Guidance that the network takes (FLUX.1) is off, 1, in the rows of the source."""
        scale = kwargs.get("guidance")
        if scale is None:
            return args, kwargs
        n = len(self._image)
        return args, {**kwargs, "guidance": torch.cat([scale[:n], torch.ones_like(scale[n:])])}

    def _unguided_output(self, _: object, args: object, kwargs: object, output: Any) -> Any:
        """``output`` with the conditional branch of the source's rows in both branches."""
        n, v = len(self._image), output[0]
        if self._family.conditional == "calls":
            step = self._scheduler.step_index
            if step not in self._first:
                self._first = {step: v}
            else:
                v = torch.cat([v[:n], self._first[step][n:]])
        elif len(v) == 4 * n:
            order = [*range(4 * n)]
            if self._family.conditional == "first":
                order[3 * n :] = order[n : 2 * n]
            else:
                order[n : 2 * n] = order[3 * n :]
            v = v[order] if isinstance(v, Tensor) else [v[i] for i in order]
        return (v, *output[1:])
