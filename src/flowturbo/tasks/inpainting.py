r"""Inpainting and removal: part of an image is repainted, the rest does not change.

After every row of the plan the known part of the state is replaced by the source at the noise level
of that time (Song et al. 2021, arXiv 2011.13456, on the linear path), with one noise sample for the
whole run; at the end the known pixels are pasted back. With ``quality="high"`` the velocity is also
moved down the gradient of the predicted image's error in the known part (Chung et al. 2023, arXiv
2209.14687), which takes about twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor
from torch.nn import functional

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.field import CountCalls, Field
from flowturbo.guidance import guided
from flowturbo.images import on_page, to_pil
from flowturbo.models.model import Model
from flowturbo.path import interpolate
from flowturbo.plan import Plan
from flowturbo.refiner.binding import warn_on_mismatch
from flowturbo.refiner.resolve import resolve_refiner
from flowturbo.sampling import Callback, Step, sample
from flowturbo.tasks.editing import PLAN, forward, full_plan
from flowturbo.tasks.fields import Corrected
from flowturbo.tasks.generate import decoded
from flowturbo.tasks.objects import object_mask
from flowturbo.tasks.sources import (
    Box,
    Edited,
    ImageInput,
    Job,
    Prompts,
    Size,
    job,
    prompt_texts,
    read_images,
)

__all__ = ["Mask", "inpaint", "remove"]

Mask: TypeAlias = ImageInput | npt.NDArray[np.generic] | Tensor | Sequence[Sequence[float]]
"""White or 1 where an image is repainted: an image, a path, or an array or list (H, W)."""


@checks.known_keywords
def inpaint(
    model: Model,
    image: ImageInput | Sequence[ImageInput],
    mask: Mask,
    prompt: Prompts,
    *,
    plan: Plan | str | None = PLAN,
    guidance: float | None = None,
    quality: Literal["standard", "high"] = "standard",
    feather: float = 0.0,
    style: str | None = None,
    seed: int = 0,
    size: Size = "input",
    callback: Callback | None = None,
) -> Edited:
    """Repaint the masked part of an image, given a prompt; other pixels are not changed.

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, or several of one size.
        mask: white or 1 where to repaint, of the size of the image; grey is blended, and
            transparent pixels are kept. One mask for all images.
        prompt: what the whole image should show, or several.
        plan: a plan from noise to data, its notation, or the name of one of ``model.plans``; None
            is the card's.
        guidance: scale of classifier-free guidance, 1 is off; by default the card's.
        quality: "high" also follows the gradient of the error in the known part.
        feather: pixels of the image over which the edge of the mask is blurred inward.
        style: one of ``model.styles``, for all prompts.
        seed: of the first image's noise; image ``i`` has ``seed + i``.
        size: "input", put back into the original image, or "model", the size of the model's images.
        callback: called after every evaluation, see `flowturbo.sample`; a state that it returns is
            replaced in the known part like any other.

    Returns:
        A list of PIL images with ``evaluations`` and ``passes``.

    Raises:
        ValueError: if an argument is not as described, the mask is empty or of another size, an
            image is not readable, or the model does not know a prompt.
    """
    checks.one_of("quality", quality, ("standard", "high"))
    originals = read_images("image", image)
    hole = _read_mask(mask, originals, feather)
    work = job(
        model, originals, prompt, style=style, guidance=guidance, seed=seed, size=size,
        around=hole.getbbox(),
    )  # fmt: skip
    return _inpainted(work, hole, forward(model, plan, 0.0, guidance), quality, callback)


@checks.known_keywords
def remove(
    model: Model,
    image: ImageInput | Sequence[ImageInput],
    mask: Mask | None = None,
    prompt: Prompts = "",
    *,
    box: Sequence[int] | None = None,
    click: Sequence[int] | None = None,
    plan: Plan | str | None = PLAN,
    guidance: float = 1.0,
    feather: float = 0.0,
    style: str | None = None,
    seed: int = 0,
    size: Size = "input",
    callback: Callback | None = None,
) -> Edited:
    """Remove what a mask or a box covers, or the object at a click.

    With a prompt for what *remains*, the model paints the hole without guidance, since with
    guidance, or without a prompt, it would paint a new object. If there is no prompt, the hole is
    filled with the colours around it, and the arguments for the model have no effect.

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, or several of one size.
        mask: white or 1 on the object, as for `inpaint`.
        prompt: what remains; "" fills the hole with colours instead, without the model.
        box: (left, top, right, bottom) in pixels of the image, instead of a mask.
        click: (x, y), a pixel of the object from the top left of the one image, upright, instead
            of a mask: `flowturbo.tasks.objects` finds the object, with ``flowturbo[edit]``.
        plan: as for `inpaint`.
        guidance: scale of classifier-free guidance, 1 is off.
        feather: pixels of the image over which the edge of the mask is blurred inward.
        style: one of ``model.styles``, for all prompts.
        seed: of the first image's noise.
        size: "input", put back into the original image, or "model", the size of the model's images.
        callback: as for `inpaint`; without a prompt nothing is evaluated.

    Returns:
        A list of PIL images with ``evaluations`` and ``passes``.

    Raises:
        ValueError: as `inpaint`; if not exactly one of ``mask``, ``box`` and ``click`` is given; if
            there is no object at ``click``.
        ImportError: for ``click``, without the package of the extra ``flowturbo[edit]``.
    """
    if sum(given is None for given in (mask, box, click)) != 2:
        raise ValueError(
            f"mask={shown(mask)}, box={shown(box)}, click={shown(click)}: pass one of them"
        )
    originals = read_images("image", image)
    if box is not None:
        mask = _of_box(box, originals[0])
    elif click is not None:
        if len(originals) > 1:
            raise ValueError(
                f"click={shown(click)}: is for one image, and there are {len(originals)}; remove "
                "from one after the other"
            )
        mask = object_mask(originals[0], click)
    hole = _read_mask(mask, originals, feather)
    painted = any(text.strip() for text in prompt_texts(model, "prompt", prompt))
    work = job(
        model, originals, prompt if painted else "", style=style if painted else None,
        guidance=guidance, seed=seed, size=size, around=hole.getbbox(),
    )  # fmt: skip
    table = forward(model, plan, 0.0)
    if painted:
        return _inpainted(work, hole, table, "standard", callback)
    spread = _spread(work.parts.images, work.parts.pooled(hole, *work.parts.images.shape[2:]))
    return Edited(work.parts.placed(to_pil(spread), hole), 0, 0)


def _inpainted(
    work: Job, hole: Image.Image, plan: Plan, quality: str, callback: Callback | None
) -> Edited:
    model, x0 = work.model, work.noise()
    known = 1 - work.parts.pooled(hole, *model.shape[1:]).to(work.states)
    counted, scale, refiner = CountCalls(model), work.guidance, resolve_refiner(model, plan, None)
    field: Field = counted
    if quality == "high":
        full_plan(plan, "quality='high'")
        warn_on_mismatch(plan, model, None, scale)
        field, scale = Corrected(guided(counted, scale), work.states, known), 1.0
        plan = plan.with_info({})

    if callback is not None:
        callback = checks.function("callback", callback, "step")

    def replaced(step: Step) -> Tensor:
        edited = callback(step) if callback else None
        x = step.x if edited is None else edited
        if not isinstance(x, Tensor) or x.shape != step.x.shape:
            return x  # the loop refuses it
        return torch.lerp(x, interpolate(x0, work.states, step.time), known)

    x1 = sample(plan, field, x0, work.cond, guidance=scale, refiner=refiner, callback=replaced)
    images = work.parts.placed(decoded(model, x1, plan, work.guidance), hole)
    return Edited(images, counted.calls, counted.rows // len(work))


def _of_box(box: Sequence[int], image: Image.Image) -> Image.Image:
    """The mask of a box."""
    within = f"within the image, {image.width} x {image.height}"
    wrong = f"box={shown(box)}: must be (left, top, right, bottom), whole pixels {within}"
    if not checks.is_list(box) or len(box) != 4:
        raise ValueError(wrong)
    try:
        left, top, right, bottom = (checks.whole("box", n, 0) for n in box)
    except ValueError:
        raise ValueError(wrong) from None
    if not (left < right <= image.width and top < bottom <= image.height):
        raise ValueError(wrong)
    made = Image.new("L", image.size)
    made.paste(255, (left, top, right, bottom))
    return made


def _read_mask(mask: object, images: Sequence[Image.Image], feather: object) -> Image.Image:
    """The mask as L, in the size of the images, feathered inward."""
    sizes = sorted({f"{i.width} x {i.height}" for i in images})
    if len(sizes) > 1:
        raise ValueError(f"image: of sizes {', '.join(sizes)}; one mask needs images of one size")
    if isinstance(mask, (Image.Image, str, Path)):
        made = on_page(mask, "black").convert("L")
    else:
        made = _of_array(mask)
    if made.size != images[0].size:
        raise ValueError(
            f"mask of {made.width} x {made.height}: must be of the size of the image, {sizes[0]}"
        )
    box = made.getbbox()
    if box is None:
        raise ValueError(f"mask={shown(mask)}: is empty; paint it white where to paint")
    return _feathered(made, box, checks.number("feather", feather, 0))


def _of_array(mask: object) -> Image.Image:
    """A mask (H, W) of numbers in [0, 1], or of 8 bits, as L."""
    try:
        numbers = mask.detach().cpu().float() if isinstance(mask, Tensor) else mask
        array = np.asarray(numbers)
        if array.ndim != 2 or array.dtype.kind not in "buif" or not array.size:
            raise ValueError
        top = 255 if array.dtype == np.uint8 and array.max() > 1 else 1
        values = array.astype(np.float64) / top
        if not (np.isfinite(values).all() and values.min() >= -1e-6 and values.max() <= 1 + 1e-6):
            raise ValueError
    except (ValueError, TypeError, NotImplementedError, RuntimeError):
        raise ValueError(
            f"mask={shown(mask)}: must be an image, a path, or an array or list (H, W) of numbers "
            "in [0, 1], or of uint8"
        ) from None
    return Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8))


def _feathered(mask: Image.Image, box: Box, feather: float) -> Image.Image:
    """``mask`` blurred inward over ``feather`` pixels."""
    if not feather:
        return mask
    least = min(box[2] - box[0], box[3] - box[1])
    if feather > least / 2:
        raise ValueError(
            f"feather={feather:g}: must be at most half of the mask, {least / 2:g} pixels"
        )
    inner = mask
    for _ in range(math.ceil(feather / 2)):
        inner = inner.filter(ImageFilter.MinFilter(3))
    blurred = inner.filter(ImageFilter.GaussianBlur(feather / 4))
    return ImageChops.darker(blurred, mask)


def _spread(images: Tensor, hole: Tensor) -> Tensor:
    """Fill a hole (1, 1, H, W) with the colours around it, by solving Laplace's equation.

    From coarse to fine: each size starts from the one before.
    """
    known = (hole <= 0).to(images)
    if not known.any():
        raise ValueError("mask: covers the whole image; leave something around what is removed")
    colours, (height, width) = images * known, images.shape[2:]
    sizes = [(height, width)]
    while min(sizes[-1]) > 2:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    found = None
    for size in reversed(sizes):
        share = functional.adaptive_avg_pool2d(known, size)
        here = functional.adaptive_avg_pool2d(colours, size) / share.clamp(min=1e-6)
        start = here if found is None else functional.interpolate(found, size)
        found = torch.where(share > 0, here, start)
        for _ in range(2 * max(size)):
            padded = functional.pad(found, (1, 1, 1, 1), mode="replicate")
            around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
            around = around + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
            found = torch.where(share > 0, here, around / 4)
    assert found is not None
    return found
