r"""Inpainting and removal: part of an image is painted anew, the rest keeps its bits.

After every row of the plan the known part of the state is replaced by the source at the noise level
of that time (Song et al. 2021, arXiv 2011.13456, on the linear path), with one noise sample for the
whole run; in the end the known pixels are pasted back. With ``quality="high"`` the velocity is also
moved down the gradient of the error that the predicted image makes in the known part (Chung et al.
2023, arXiv 2209.14687), at about twice the cost: seams are smoother.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from flowturbo import checks, noise
from flowturbo.checks import shown
from flowturbo.field import CountCalls, Field
from flowturbo.guidance import guided
from flowturbo.images import to_pil, upright
from flowturbo.models.model import Model
from flowturbo.path import interpolate, predicted_data
from flowturbo.refiner.resolve import default_guidance
from flowturbo.sampling import Step, sample
from flowturbo.tasks.editing import PLAN, Prompts, forward
from flowturbo.tasks.generate import check_model
from flowturbo.tasks.sources import (
    Edited,
    Picture,
    Size,
    Sources,
    conditions,
    finished,
    read_sources,
    scaled,
)
from flowturbo.types import Condition, Time

__all__ = ["Mask", "inpaint", "remove"]

Mask: TypeAlias = "Picture | np.typing.NDArray[np.generic] | Tensor"
"""White or 1 where an image is painted anew, as an image, a path, or an array (H, W)."""
Box: TypeAlias = Sequence[int]
STRENGTH = 1.0  # of the gradient: of the error that it would remove in one step


def inpaint(
    model: Model,
    image: Picture | Sequence[Picture],
    mask: Mask,
    prompt: Prompts,
    *,
    plan: str = PLAN,
    guidance: float | None = None,
    quality: Literal["standard", "high"] = "standard",
    feather: float = 0.0,
    style: str | None = None,
    seed: int = 0,
    size: Size = "input",
) -> Edited:
    """Paint the masked part of an image by a prompt; other pixels keep their bits.

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, or one for each prompt.
        mask: white or 1 where to paint, of the size of the image; grey blends. One for all images.
        prompt: what the whole image is to show, or several.
        plan: notation of a solver from noise to data.
        guidance: scale of classifier-free guidance, 1 is off; by default the card's.
        quality: "high" makes smoother seams at about twice the cost.
        feather: radius, in pixels of the image, over which the edge of the mask is blurred inward.
        style: one of ``model.styles``, for all prompts.
        seed: of the first image's noise; image ``i`` has ``seed + i``.
        size: "input", each in its place in the original, or "model", as the model draws them.

    Returns:
        A list of PIL images with ``evaluations`` and ``passes``.

    Raises:
        ValueError: if an argument is not as described, the mask is empty or of another size, an
            image is not readable, or the model does not know a prompt.
    """
    check_model(model)
    checks.one_of("size", size, ("model", "input"))
    checks.one_of("quality", quality, ("standard", "high"))
    feather = checks.number("feather", feather, 0)
    count, cond = conditions(model, "prompt", prompt, style)
    sources = read_sources(model, image, count)
    hole = _read_mask(mask, sources, feather)
    known = 1 - _of_states(hole, sources, model)
    x0 = noise.draw(range(seed, seed + count), model.shape, device=model.device)
    counted, scale = CountCalls(model), default_guidance(model, guidance)
    field: Field = counted
    if quality == "high":
        field, scale = Corrected(guided(counted, scale), sources.states, known), 1.0

    def replaced(step: Step) -> Tensor:
        return torch.lerp(step.x, interpolate(x0, sources.states, step.time), known)

    x1 = sample(forward(model, plan, 0.0), field, x0, cond, guidance=scale, callback=replaced)
    images = _pasted(model, sources, finished(model, x1), hole)
    passes = counted.rows // count
    return Edited(sources.placed(images, size, [hole] * count), counted.calls, passes)


def remove(
    model: Model,
    image: Picture | Sequence[Picture],
    mask: Mask | None = None,
    prompt: Prompts = "",
    *,
    box: Box | None = None,
    plan: str = PLAN,
    guidance: float = 1.0,
    feather: float = 0.0,
    style: str | None = None,
    seed: int = 0,
    size: Size = "input",
) -> Edited:
    """Remove what a mask or a box covers.

    With a prompt for what *remains* the hole is painted by the model, unguided: guidance, and no
    prompt at all, paint new objects. Without one the colours around the hole are spread into it.

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, or one for each prompt.
        mask: white or 1 on the object, as for `inpaint`.
        prompt: what is to remain; "" spreads colours instead, without the model.
        box: (left, top, right, bottom) in pixels of the image, instead of a mask.
        plan: notation of a solver from noise to data.
        guidance: scale of classifier-free guidance, 1 is off.
        feather: radius, in pixels of the image, over which the edge of the mask is blurred inward.
        style: one of ``model.styles``, for all prompts.
        seed: of the first image's noise.
        size: "input", each in its place in the original, or "model", as the model draws them.

    Returns:
        A list of PIL images with ``evaluations`` and ``passes``.

    Raises:
        ValueError: as `inpaint`; if neither or both of ``mask`` and ``box`` are given.
    """
    check_model(model)
    if (mask is None) == (box is None):
        raise ValueError(f"mask={shown(mask)}, box={shown(box)}: pass one of them")
    sources = read_sources(model, image, None)
    hidden = _of_box(box, sources.originals[0]) if mask is None else mask
    if prompt != "":
        return inpaint(
            model, image, hidden, prompt, plan=plan, guidance=guidance, feather=feather,
            style=style, seed=seed, size=size,
        )  # fmt: skip
    checks.one_of("size", size, ("model", "input"))
    hole = _read_mask(hidden, sources, checks.number("feather", feather, 0))
    spread = _spread(model.decode(sources.states), _resized(hole, sources, model.image_shape[1:]))
    made = _pasted(model, sources, to_pil(spread), hole)
    return Edited(sources.placed(made, size, [hole] * len(sources)), 0, 0)


class Corrected:
    """A field moved down the gradient of its predicted image's error in the known part.

    With ``x1 = x + (1-t)*v``, ``e = known * (x1 - source)`` and its gradient ``g`` by ``x``, the
    velocity is ``v - (|e|^2 / |g|^2) * g / max(1-t, 1/8)``: a Gauss-Newton step on the error.
    """

    def __init__(self, field: Field, source: Tensor, known: Tensor) -> None:
        self.field, self.source, self.known = field, source, known

    def __call__(self, x: Tensor, t: Time, cond: Condition) -> Tensor:
        """The velocity (B, ...)."""
        time = float(t)
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            v = self.field(state, time, cond)
            off = self.known * (predicted_data(state, v, time) - self.source)
            error = off.square().flatten(1).sum(1)
            (gradient,) = torch.autograd.grad(error.sum() / 2, state)
        size = gradient.square().flatten(1).sum(1).clamp(min=1e-12)
        share = STRENGTH * error.detach() / size / max(1 - time, 0.125)
        return v.detach() - share.reshape(-1, *[1] * (x.ndim - 1)) * gradient


def _of_box(box: Box | None, image: Image.Image) -> Image.Image:
    """The mask of a box."""
    if not checks.is_list(box) or len(box) != 4:
        raise ValueError(f"box={shown(box)}: must be (left, top, right, bottom), in pixels")
    left, top, right, bottom = (checks.whole("box", n, 0) for n in box)
    if not (left < right <= image.width and top < bottom <= image.height):
        raise ValueError(
            f"box={shown(box)}: must be (left, top, right, bottom) within the image, "
            f"{image.width} x {image.height}"
        )
    made = Image.new("L", image.size)
    made.paste(255, (left, top, right, bottom))
    return made


def _read_mask(mask: Mask, sources: Sources, feather: float) -> Image.Image:
    """The mask as L, in the size of the first original, feathered inward."""
    first = sources.originals[0]
    if isinstance(mask, (Image.Image, str, Path)):
        made = upright(mask).convert("L")
    else:
        array = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
        if array.ndim != 2 or array.dtype.kind not in "buif" or not np.isfinite(array).all():
            raise ValueError(f"mask={shown(mask)}: must be an image, or an array (H, W) in [0, 1]")
        top = 255 if array.dtype == np.uint8 and array.max(initial=0) > 1 else 1
        if array.min(initial=0) < 0 or array.max(initial=0) > top:
            raise ValueError(f"mask={shown(mask)}: must lie in [0, 1]")
        made = Image.fromarray((array.astype(np.float64) * (255 / top)).round().astype(np.uint8))
    others = {i.size for i in sources.originals} - {made.size}
    if others:
        width, height = others.pop()
        raise ValueError(
            f"mask of {made.width} x {made.height}: must be of the size of the image, {width} x "
            f"{height}"
        )
    part = made.crop(sources.boxes[0])
    if not part.getbbox():
        how = "" if not made.getbbox() else f" within the part that is edited, {sources.boxes[0]}"
        raise ValueError(f"mask={shown(mask)}: is empty{how}; paint it white where to paint")
    if feather:
        inner = made.filter(ImageFilter.MinFilter(2 * round(feather) + 1))
        made = inner.filter(ImageFilter.GaussianBlur(feather / 2))
        if not made.crop(sources.boxes[0]).getbbox():
            raise ValueError(f"feather={feather:g}: nothing is left of the mask; lower it")
    assert made.size == first.size
    return made


def _resized(hole: Image.Image, sources: Sources, shape: Sequence[int]) -> Tensor:
    """The mask in the size of the model's images, (H, W) in [0, 1]."""
    height, width = shape
    part = hole.crop(sources.boxes[0]).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(part)) / 255


def _of_states(hole: Image.Image, sources: Sources, model: Model) -> Tensor:
    """The mask in the size of states, (1, 1, h, w): 1 where anything of a cell is painted."""
    full = _resized(hole, sources, model.image_shape[1:])[None, None].to(sources.states)
    return functional.adaptive_max_pool2d(full, model.shape[1:])


def _pasted(
    model: Model, sources: Sources, images: Sequence[Image.Image], hole: Image.Image
) -> list[Image.Image]:
    """Painted images with the known pixels of the sources, in the model's size."""
    channels, height, width = model.image_shape
    grey = (_resized(hole, sources, (height, width)) * 255).round().byte().numpy()
    mask = Image.fromarray(grey)
    found = []
    for image, original, box in zip(images, sources.originals, sources.boxes, strict=True):
        part = scaled(original.crop(box), height, width, channels)
        (made,) = to_pil(part[None])
        made.paste(image, (0, 0), mask)
        found.append(made)
    return found


def _spread(images: Tensor, hole: Tensor) -> Tensor:
    """The colours around a hole (H, W) spread into it: the solution of Laplace's equation.

    From coarse to fine: each size starts from the one before.
    """
    known = (hole <= 0).to(images)[None, None]
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
