"""Comparison of what a plan was fitted to with the pipeline that it runs in.

A plan that was tuned to a pipeline records the fingerprint of its weights, the guidance scale and
the size of its images. Weights are compared when the pipeline is enabled; scale and size are
arguments of its calls, and are compared at the first step of each call.
"""

from __future__ import annotations

import weakref
from math import prod

from torch import Tensor, nn

from flowturbo import checks
from flowturbo.digests import fingerprint
from flowturbo.integrations.diffusers.families import Family
from flowturbo.integrations.diffusers.hook import pooled_of, scale_asked
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner, in_guidance_range, scales_text
from flowturbo.types import Pipeline, ReadOnlyJson, Scheduler

__all__ = ["Fit", "check_fit", "refit", "warn_of_weights", "weights_of"]


def weights_of(network: nn.Module | None) -> str | None:
    """The fingerprint of a network's weights; None where they cannot be read.

    That is the case with sequential offloading, which leaves them on no device, and for some
    quantized weights.
    """
    if network is None:
        return None
    try:
        return fingerprint(network)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None


def refit(plan: Plan, guidance: float | None = None, size: str | None = None) -> str:
    """The command that fits such a plan to a pipeline, by default at the same scale and size."""
    fitted = plan.info.get("guidance", (1.0, 1.0))
    low, high = fitted if guidance is None else (guidance, guidance)
    height, width = plan.info["pipeline"]["size"]
    parts = ["flowturbo tune --pipeline PATH --prompts FILE"]
    if plan.nfe["conditional"]:
        parts.append(f"--passes {plan.passes(2)}")
    else:
        parts.append(f"--nfe {plan.nfe['model']}")
    parts.append(f"--guidance {low:g}" if low == high else f"--guidance {low:g}-{high:g}")
    parts.append(f"--size {size or f'{width}x{height}'}")
    if plan.nfe["refiner"]:
        parts.append("--refiner REFINER")
    return " ".join([*parts, "-o FOLDER"])


def check_fit(
    plan: Plan, refiner: Refiner | None, network: nn.Module | None, family: Family | None
) -> None:
    """Raise ``ValueError`` if a refiner cannot take the states or conditions of a network."""
    if refiner is None or family is None:
        return
    made, here = plan.info.get("pipeline", {}).get("network"), type(network).__name__
    if made is not None and made != here:
        raise ValueError(
            f"plan {plan.name!r} has a refiner for the latents of a {made}, and the network is a "
            f"{here}; train one for it: flowturbo train-refiner --pipeline PATH --prompts FILE"
        )
    if not (wanted := pooled_of(refiner)):
        return
    config = getattr(network, "config", {})
    size = config.get("pooled_projection_dim", wanted) if family.pooled else None
    if size != wanted:
        has = "has none" if size is None else f"has one of {size}"
        raise ValueError(
            f"the refiner sees a pooled vector of {wanted} numbers, and this {family.name} {has}; "
            "train one for it: flowturbo train-refiner --pipeline PATH --prompts FILE"
        )


def warn_of_weights(plan: Plan, pipe: Pipeline, network: nn.Module | None) -> None:
    """Warn if ``plan`` was fitted to other weights than those of ``pipe``."""
    made = plan.info.get("fingerprint") if "pipeline" in plan.info else None
    if made is None:
        return
    about = plan.info["pipeline"]
    here = weights_of(network)
    if here == made:
        return
    found = f"are {here}" if here else "cannot be read"
    checks.warn(
        f"plan {plan.name!r} was fitted to the weights {made} of {about.get('base_model')!r} "
        f"({about.get('dtype')}), and those of this {type(pipe).__name__} {found}, as after fine-"
        "tuning, with a LoRA or in another precision: its error here is not known; fit one with "
        + refit(plan)
    )


class Fit:
    """Compares the calls of a pipeline with what its plan was fitted to.

    Args:
        pipe: the enabled pipeline.
        plan: with what ``as_field`` says about its pipeline in its ``info``.
        family: of the network, if it is known.
    """

    def __init__(self, pipe: Pipeline, plan: Plan, family: Family | None) -> None:
        self._pipe, self._plan, self._family = weakref.ref(pipe), plan, family
        self._about: ReadOnlyJson = plan.info["pipeline"]

    def __deepcopy__(self, memo: object) -> Fit:
        return self

    def check(self, scheduler: Scheduler, sample: Tensor) -> None:
        """Warn at the first step of a call if its size or guidance scale differs."""
        plan, (height, width) = self._plan, self._about["size"]
        if sample[0].numel() != prod(self._about["state"]):
            checks.warn(
                f"plan {plan.name!r} was fitted at {width}x{height} pixels, and this call has "
                f"states {tuple(sample.shape[1:])} of another size: its error here is not known; "
                f"fit one with {refit(plan, size='WIDTHxHEIGHT')}"
            )
        scale = self._scale(scheduler)
        if scale is not None and not in_guidance_range(plan, scale):
            fitted = scales_text(*plan.info["guidance"])
            checks.warn(
                f"plan {plan.name!r} was fitted at guidance {fitted}, and this call has "
                f"{scale:g}: its error here is not known; fit one with {refit(plan, scale)}"
            )

    def _scale(self, scheduler: Scheduler) -> float | None:
        """The guidance scale of the call that runs ``scheduler``, if it is known."""
        asked = scale_asked(self._pipe(), scheduler)
        call = self._about["call"]
        if asked is None or "guidance_scale" not in call or "true_cfg_scale" in call:
            return None
        scale = self._family.scale if self._family is not None else None
        return float(scale(asked) if scale is not None else asked)
