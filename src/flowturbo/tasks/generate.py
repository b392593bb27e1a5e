"""Pictures from prompts or labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.checks import shown
from flowturbo.images import to_pil
from flowturbo.models.model import Model, text, texts
from flowturbo.plan import Plan, as_plan
from flowturbo.refiner.binding import Refiner, in_guidance_range, needed_refiner
from flowturbo.refiner.checkpoint import REFINER_WEIGHTS, load_refiner
from flowturbo.sampling import Callback, sample
from flowturbo.tree import slice_condition

__all__ = ["check_whole", "generate"]

PLAIN = "AB2:12@1.6"  # for any scale of guidance
NEARLY = 0.01  # the part of the path that a plan may lack at either end, as schedulers' do


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
    """Draw a picture for each prompt; picture ``i`` depends on ``seed + i`` and its prompt alone.

    The noise of a picture is the same bit for bit in any batch; its pixels agree to 1 of 255
    levels, since matrix products round differently with the size of a batch.

    Args:
        model: from `flowturbo.load`.
        prompts: labels or prompts, one a picture; "" is unconditional, and all there is for
            a model without a condition.
        plan: a plan from noise to data, its notation, or the name of one of ``model.plans``; by
            default the card's, or `PLAIN` where that was fitted at another guidance.
        guidance: scale of classifier-free guidance, 1 is off; by default the card's.
        negative: a prompt to guide away from; by default the unconditional one.
        guidance_channels: guide only the first so many channels, see `flowturbo.sample`.
        style: one of ``model.styles``, for all prompts.
        seed: of the first picture, from 0; that of the last is at most 2**63 - 1.
        refiner: for plans with refiner evaluations; by default the one that came with the model.
        batch: most pictures sampled at a time, at least 1.
        callback: called after every evaluation of every batch, see `flowturbo.sample`.

    Returns:
        PIL images, grey or RGB.

    Raises:
        ValueError: before anything is drawn, for a prompt or style the model does not know, a plan
            that is malformed, backward or of a part of the path, a missing refiner, a number out of
            range, or, for a model of latents, an autoencoder that is missing or does not fit; after
            a batch, if its pictures are not finite.
        ImportError: if the autoencoder needs diffusers, and that is missing.
    """
    check_model(model)
    batch = checks.whole("batch", batch, 1)
    if guidance is not None:
        guidance = checks.number("guidance", guidance)
    if negative is not None:
        negative = text("negative", negative)
    if callback is not None:
        checks.function("callback", callback, "step")
    plan = resolve_plan(model, plan, guidance)
    check_whole(plan)
    if refiner is not None:
        checks.function("refiner", refiner, "x, t, cond, history")
    refiner = needed_refiner(plan, resolve_refiner(model, plan, refiner))
    _ = model.codec  # before anything is drawn
    guidance = float(model.defaults["guidance"] if guidance is None else guidance)
    if style is not None:
        prompts = [model.styled(prompt, style) for prompt in texts(prompts)]
    said = texts(prompts)
    cond = _condition(model, said)
    seed = checks.whole("seed", seed, 0, noise.LARGEST_SEED - max(0, len(said) - 1))
    null = None if negative is None else _condition(model, [negative])
    images = []
    for i in range(0, len(said), batch):
        rows = slice_condition(cond, slice(i, i + batch))
        seeds = range(seed + i, seed + min(i + batch, len(said)))
        x0 = noise.draw(seeds, model.shape, device=model.device)
        x1 = sample(
            plan,
            model,
            x0,
            rows,
            guidance=guidance,
            negative=null,
            guidance_channels=guidance_channels,
            refiner=refiner,
            callback=callback,
        )
        if not x1.isfinite().all():
            raise ValueError(
                f"the pictures are not finite: guidance={guidance} is too large for plan "
                f"{plan.name!r} in {x0.dtype}; lower it"
            )
        images += to_pil(model.decode(x1))
    return images


def check_model(model: Any) -> None:
    """Raise ``ValueError`` unless pictures can be drawn from ``model``, which may be wrapped."""
    needed = ("condition", "decode", "defaults", "device", "plans", "shape")
    if isinstance(model, str) or not all(hasattr(model, name) for name in needed):
        load = (
            f"flowturbo.load({shown(model)})" if isinstance(model, str) else "flowturbo.load(...)"
        )
        raise ValueError(
            f"model={shown(model)}: must be a model; pass {load}, or run a field of your own with "
            "flowturbo.sample, or give it a card: flowturbo.Model(field, {'name': ...})"
        )


def check_whole(plan: Plan) -> None:
    """Raise ``ValueError`` unless ``plan`` leads from noise to data, as schedulers' grids do."""
    start, end = plan.times[0], plan.times[-1]
    if start > NEARLY or end < 1 - NEARLY:
        raise ValueError(
            f"plan {plan.name!r} runs from t={start:g} to {end:g}: pictures are drawn from noise, "
            "t=0, to data, t=1; take a plan of the whole path, or run this one on states of your "
            "own with flowturbo.sample"
        )


def _condition(model: Any, prompts: Sequence[str]) -> Tensor | None:
    """The condition of ``prompts``; None for a model that takes none, which draws "" alone."""
    card = getattr(model, "card", {"condition": None})
    if "condition" not in card and not any(prompt.strip() for prompt in prompts):
        return None
    condition: Tensor = model.condition(prompts)
    return condition


def resolve_plan(model: Model, plan: Plan | str | None, guidance: float | None = None) -> Plan:
    """``plan`` itself, the model's of that name, its notation parsed, or the card's default.

    In place of a default that was fitted at another ``guidance`` stands `PLAIN`.
    """
    if plan is None:
        usual = resolve_plan(model, str(model.defaults["plan"]))
        served = guidance is None or in_guidance_range(usual, guidance)
        return usual if served else Plan.parse(PLAIN)
    if not isinstance(plan, str):
        return as_plan(plan)
    if plan in model.plans:
        return model.plans[plan]
    try:
        return Plan.parse(plan)
    except ValueError as e:
        if not model.plans:
            raise
        raise ValueError(f"{e}; or a plan of {model.name!r}: {', '.join(model.plans)}") from None


def resolve_refiner(model: Model, plan: Plan, refiner: Refiner | None) -> Refiner | None:
    """``refiner`` itself, or the one that came with the model where ``plan`` needs it."""
    if refiner is not None or not plan.nfe["refiner"] or model.folder is None:
        return refiner
    if not (model.folder / REFINER_WEIGHTS).is_file():
        return None
    return load_refiner(model.folder, model)
