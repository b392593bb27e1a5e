"""Images from prompts or labels."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.checks import shown
from flowturbo.images import to_pil
from flowturbo.models.model import Model
from flowturbo.models.prompts import as_prompt, as_prompts
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner
from flowturbo.refiner.resolve import resolve
from flowturbo.sampling import Callback, sample
from flowturbo.sampling_checks import NotFinite
from flowturbo.tree import slice_condition

__all__ = ["check_model", "check_whole", "condition_of", "decoded", "generate"]

END_GAP = 0.01  # of the path, that a plan may lack at either end, as those of schedulers do


@checks.known_keywords
def generate(
    model: Model,
    prompts: Sequence[str | int],
    *,
    plan: Plan | str | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    guidance_channels: int | None = None,
    style: str | None = None,
    seed: int = 0,
    refiner: Refiner | None = None,
    batch: int = 64,
    callback: Callback | None = None,
) -> list[Image.Image]:
    """Generate an image for each prompt; image ``i`` depends only on ``seed + i`` and its prompt.

    The initial noise of an image is the same bit for bit in any batch; its pixels agree to within 1
    of 255 levels, since matrix products round differently with the size of a batch.

    Args:
        model: from `flowturbo.load`.
        prompts: labels or prompts, one per image; "" is unconditional, and the only one that a
            model without a condition takes.
        plan: a plan from noise to data, its notation, or the name of one of ``model.plans``; by
            default the card's, or `flowturbo.refiner.resolve.FALLBACK_PLAN` if that was fitted at
            another guidance scale.
        guidance: scale of classifier-free guidance, 1 is off; by default the card's.
        negative: a prompt to guide away from; by default the unconditional one.
        guidance_channels: guide only this many channels, from the first on; see `flowturbo.sample`.
        style: one of ``model.styles``, for all prompts.
        seed: of the first image, from 0; that of the last is at most 2**63 - 1.
        refiner: for plans with refiner evaluations; by default the one that came with the model.
        batch: largest number of images sampled at a time, at least 1.
        callback: called after every evaluation of every batch, see `flowturbo.sample`.

    Returns:
        PIL images, grey or RGB.

    Raises:
        ValueError: before anything is sampled, for a prompt or style the model does not know, a
            plan that is malformed, backward or covers only part of the path, a missing refiner, a
            number out of range, or, for a latent model, an autoencoder that is missing or does not
            fit; after a batch, if its images are not finite.
        ImportError: if the autoencoder needs diffusers, and that is missing.
    """
    check_model(model)
    batch = checks.whole("batch", batch, 1)
    if guidance is not None:
        guidance = checks.number("guidance", guidance)
    if negative is not None:
        negative = as_prompt("negative", negative)
    if callback is not None:
        checks.function("callback", callback, "step")
    used = resolve(model, plan, guidance, refiner)
    check_whole(used.plan)
    _ = model.codec  # refused before anything is sampled
    wanted = as_prompts(prompts)
    if style is not None:
        wanted = [model.styled(prompt, style) for prompt in wanted]
    cond = condition_of(model, wanted)
    seed = checks.whole("seed", seed, 0, noise.LARGEST_SEED - max(0, len(wanted) - 1))
    null = None if negative is None else condition_of(model, [negative])
    images = []
    for i in range(0, len(wanted), batch):
        rows = slice_condition(cond, slice(i, i + batch))
        seeds = range(seed + i, seed + min(i + batch, len(wanted)))
        x0 = noise.draw(seeds, model.shape, device=model.device)
        x1 = sample(
            used.plan,
            model,
            x0,
            rows,
            guidance=used.guidance,
            negative=null,
            guidance_channels=guidance_channels,
            refiner=used.refiner,
            callback=callback,
        )
        images += decoded(model, x1, used.plan, used.guidance)
    return images


def decoded(model: Model, x1: Tensor, plan: Plan, guidance: float) -> list[Image.Image]:
    """The images of final states; `NotFinite`, a ``ValueError``, if they are not finite."""
    if not x1.isfinite().all():
        raise NotFinite(
            f"the images are not finite: guidance={guidance} is too large for plan {plan.name!r} "
            f"in {x1.dtype}; lower it"
        )
    return to_pil(model.decode(x1))


def check_model(model: object) -> None:
    """Raise ``ValueError`` unless ``model``, which may be wrapped, can generate images."""
    if type(model).__module__.startswith("diffusers."):
        raise ValueError(
            f"model={type(model).__name__}: must be a model from flowturbo.load; a pipeline of "
            "diffusers runs plans by flowturbo.integrations.diffusers.enable, and edits by "
            "flowturbo.integrations.diffusers.edit"
        )
    needed = ("condition", "decode", "defaults", "device", "plans", "shape")
    if isinstance(model, str) or not all(hasattr(model, name) for name in needed):
        load = (
            f"flowturbo.load({shown(model)})" if isinstance(model, str) else "flowturbo.load(...)"
        )
        raise ValueError(
            f"model={shown(model)}: must be a model; pass {load}, or run a field of your own with "
            "flowturbo.sample, or give it a card: flowturbo.Model(field, {'name': ...})"
        )
    shape = tuple(getattr(model, "shape", ()))
    if len(shape) != 3:
        raise ValueError(
            f"model={shown(model)}: its states are {shape}, and images are (C, H, W); "
            "sample it with flowturbo.sample"
        )


def check_whole(plan: Plan) -> None:
    """Raise ``ValueError`` unless ``plan`` leads from noise to data, as schedulers' grids do."""
    start, end = plan.times[0], plan.times[-1]
    if start > END_GAP or end < 1 - END_GAP:
        raise ValueError(
            f"plan {plan.name!r} runs from t={start:g} to {end:g}, and images are generated from "
            "noise, t=0, to data, t=1; take a plan of the whole path, or run this one on states of "
            "your own with flowturbo.sample"
        )


def condition_of(model: Model, prompts: Sequence[str]) -> Tensor | None:
    """The condition of ``prompts``; None for a model that takes none, which takes "" alone."""
    if model.conditioning is None and not any(prompt.strip() for prompt in prompts):
        return None
    return model.condition(prompts)
