"""The inputs of an evaluation: noise samples and conditions of its images, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo import noise as random_noise
from flowturbo.evaluate.config import EvaluateConfig
from flowturbo.field import Field, device_of
from flowturbo.models.model import Model
from flowturbo.tree import slice_condition
from flowturbo.tuning.initial_states import check_condition, check_noise, shape_of
from flowturbo.types import Condition

__all__ = ["NUM_IMAGES", "Inputs", "inputs"]

NUM_IMAGES = 5000  # by default
LEAST = 10  # rows of noise


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Noise samples and conditions of ``count`` images.

    Attributes:
        count: number of images.
        shape: of a state.
        device: of the states.
        seed: of the first noise sample.
        noise: the caller's noise samples (count, ...); None if they are drawn by their seeds.
        cond: conditions of the images, one per row.
    """

    count: int
    shape: tuple[int, ...]
    device: torch.device
    seed: int
    noise: Tensor | None
    cond: Condition

    def states(self, rows: slice) -> Tensor:
        """The noise samples of some images."""
        return self.others(rows) if self.noise is None else self.noise[rows]

    def others(self, rows: slice) -> Tensor:
        """The noise samples of seeds ``seed`` + ``rows``; no image has those from ``count`` on."""
        seeds = range(self.seed + rows.start, self.seed + rows.stop)
        return random_noise.draw(seeds, self.shape, device=self.device)

    def conditions(self, rows: slice) -> Condition:
        """The conditions of some images."""
        return slice_condition(self.cond, rows)


def inputs(
    model: Field,
    noise: Tensor | None,
    cond: Condition,
    prompts: Sequence[str | int] | None,
    config: EvaluateConfig,
) -> Inputs:
    """The inputs of an evaluation, from the arguments of `flowturbo.evaluate`.

    Raises:
        ValueError: if the field cannot take them, or they are given twice.
    """
    if noise is None:
        count, how = config.num_images or NUM_IMAGES, "num_images={} takes"
        shape, device = shape_of(model), device_of(model)
    else:
        noise = check_noise(model, noise, LEAST, num_images=config.num_images)
        count, how = len(noise), "noise has"
        shape, device = tuple(noise.shape[1:]), noise.device
    if cond is not None:
        if prompts is not None:
            raise ValueError(
                f"prompts={checks.shown(prompts)} and cond={checks.shown(cond)}: give one of them"
            )
        cond = check_condition(cond, count, how.format(count), device)
    else:
        cond = _condition(model, prompts, count, config.seed)
    return Inputs(count=count, shape=shape, device=device, seed=config.seed, noise=noise, cond=cond)


def _condition(
    model: Field, prompts: Sequence[str | int] | None, count: int, seed: int
) -> Condition:
    """Conditions of ``count`` images: of the prompts, else as the card of ``model`` says."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts!r}: pass a list of them, [{prompts!r}]")
    if prompts is not None:
        if not isinstance(prompts, (list, tuple)):
            raise ValueError(f"prompts={checks.shown(prompts)}: must be a list of them, or None")
        if not prompts:
            raise ValueError("prompts=[]: give at least one, or None to sample them from the card")
        if not isinstance(model, Model):
            raise ValueError(
                f"prompts={checks.shown(prompts)}: a field without a card takes conditions as "
                "cond=...; or give it a card, flowturbo.Model(field, {'name': ...})"
            )
        return model.condition([prompts[i % len(prompts)] for i in range(count)])
    if isinstance(model, Model) and model.conditioning and not model.names:
        raise ValueError(
            f"prompts=None: the card of model {model.name!r} lists none; pass some, or list them "
            'under "labels" or "prompts" of its "condition"'
        )
    if not hasattr(model, "random_condition"):
        return None
    found: Condition = model.random_condition(count, torch.Generator().manual_seed(seed))
    return found
