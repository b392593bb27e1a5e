"""The inputs of editing tasks: images and prompts, checked; and how results become images again.

An image of any size, mode and orientation is cropped to the shape of the model's images, around its
centre or around the part to repaint, and scaled. An edited image is scaled back into its place, or
returned in the model's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.checks import shown
from flowturbo.images import crop_box, to_pil, upright
from flowturbo.models.model import Model
from flowturbo.models.prompts import as_prompt
from flowturbo.refiner.resolve import default_guidance
from flowturbo.tasks.generate import check_model, condition_of
from flowturbo.types import Condition

__all__ = [
    "Box",
    "Edited",
    "ImageInput",
    "Job",
    "Parts",
    "Prompts",
    "Size",
    "check_pairs",
    "job",
    "parts_of",
    "prompt_texts",
    "read_images",
    "seeds_of",
    "texts_of",
]

ImageInput: TypeAlias = Image.Image | str | Path
"""An image, or the path of its file."""
Prompts: TypeAlias = str | int | Sequence[str | int]
Size: TypeAlias = Literal["input", "model"]
Box: TypeAlias = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""


class Edited(list[Image.Image]):
    """Edited images, with their cost.

    Attributes:
        evaluations: of the model, for each image.
        passes: of the network, for each image; backward passes for gradients are not counted.
    """

    def __init__(self, images: Sequence[Image.Image], evaluations: int, passes: int) -> None:
        super().__init__(images)
        self.evaluations, self.passes = evaluations, passes

    @property
    def images(self) -> list[Image.Image]:
        """The images, as diffusers pipelines name them."""
        return [*self]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of N images that are edited.

    Attributes:
        originals: the images, RGB, upright.
        boxes: the parts of them that are edited.
        images: these parts in the model's size, (N, C, H, W) in [0, 1].
        size: that is returned.
    """

    originals: list[Image.Image]
    boxes: list[Box]
    images: Tensor
    size: Size

    def __len__(self) -> int:
        return len(self.originals)

    def unchanged(self) -> Edited:
        """The images themselves."""
        made = self.originals if self.size == "input" else to_pil(self.images)
        return Edited([self._grey_or_rgb(image) for image in made], 0, 0)

    def placed(
        self, images: Sequence[Image.Image], hole: Image.Image | None = None
    ) -> list[Image.Image]:
        """Images of the model in the requested size.

        Outside of ``hole``, L and of the size of the originals, pixels are not changed.
        """
        found = []
        if self.size == "model":
            found = to_pil(self.images)
            mask = None
            if hole is not None:
                (mask,) = to_pil(self.pooled(hole, *self.images.shape[2:]))
            for made, image in zip(found, images, strict=True):
                made.paste(image, (0, 0), mask)
            return found
        for image, original, box in zip(images, self.originals, self.boxes, strict=True):
            left, top, right, bottom = box
            made = self._grey_or_rgb(original).copy()
            part = image.convert(made.mode).resize(
                (right - left, bottom - top), Image.Resampling.LANCZOS
            )
            made.paste(part, box, None if hole is None else hole.crop(box))
            found.append(made)
        return found

    def pooled(self, hole: Image.Image, height: int, width: int) -> Tensor:
        """The largest value of ``hole`` in each cell, (1, 1, height, width) in [0, 1]."""
        part = torch.from_numpy(np.array(hole.crop(self.boxes[0])))[None, None].float() / 255
        return torch.nn.functional.adaptive_max_pool2d(part, (height, width))

    def _grey_or_rgb(self, image: Image.Image) -> Image.Image:
        """L if the model is grey and the image is too."""
        if self.images.shape[1] > 1 or image.mode == "L":
            return image
        red, green, blue = (band.tobytes() for band in image.split())
        return image.convert("L") if red == green == blue else image


@dataclass(frozen=True, kw_only=True)
class Job:
    """N images to edit, by as many prompts.

    Attributes:
        model: edits them.
        parts: of the images.
        cond: of the prompts.
        guidance: scale.
        seeds: of the images.
    """

    model: Model
    parts: Parts
    cond: Condition
    guidance: float
    seeds: range

    def __len__(self) -> int:
        return len(self.parts)

    @cached_property
    def states(self) -> Tensor:
        """Of the images, (N, C, H, W)."""
        return self.model.encode(self.parts.images.to(self.model.device))

    def noise(self) -> Tensor:
        """A noise sample for each image."""
        return noise.draw(self.seeds, self.model.shape, device=self.model.device)


def parts_of(
    originals: Sequence[Image.Image],
    boxes: Sequence[Box],
    shape: tuple[int, int, int],
    count: int,
    size: Size,
) -> Parts:
    """The parts ``boxes`` of images in the ``shape`` (C, H, W) of a model's, ``count`` in all.

    ``count`` is a multiple of the number of images, which repeat.
    """
    channels, height, width = shape
    parts = [
        _scaled(original.crop(box), height, width, channels)
        for original, box in zip(originals, boxes, strict=True)
    ]
    times = count // len(parts)
    return Parts(
        originals=[*originals] * times,
        boxes=[*boxes] * times,
        images=torch.stack(parts * times),
        size=size,
    )


def job(
    model: Model,
    image: ImageInput | Sequence[ImageInput],
    prompt: Prompts,
    *,
    style: str | None,
    guidance: float | None,
    seed: int,
    size: Size,
    around: Box | None = None,
) -> Job:
    """The arguments of a task, checked. A single image is used for all prompts, and vice versa.

    Args:
        model: edits them.
        image: one, or several.
        prompt: one, or several.
        style: of all prompts.
        guidance: scale; the card's if it is None.
        seed: of the first image.
        size: to return.
        around: what the edited part has to contain; by default it has the centre of the image.

    Raises:
        ValueError: if one is not as described, or their numbers do not match.
    """
    check_model(model)
    checks.one_of("size", size, ("input", "model"))
    texts = prompt_texts(model, "prompt", prompt, style)
    originals = read_images("image", image)
    n = check_pairs(len(originals), len(texts))
    scale = None if guidance is None else checks.number("guidance", guidance)
    boxes = [_around(crop_box(i, *model.image_shape[1:]), around, i) for i in originals]
    return Job(
        model=model,
        parts=parts_of(originals, boxes, model.image_shape, n, size),
        cond=condition_of(model, texts * (n // len(texts))),
        guidance=default_guidance(model, scale),
        seeds=seeds_of(seed, n),
    )


def check_pairs(images: int, prompts: int) -> int:
    """The number of pairs, where a single image is used for all prompts, and vice versa."""
    n = max(images, prompts)
    for name, given, other in (("image", images, "prompt"), ("prompt", prompts, "image")):
        if given not in (1, n):
            raise ValueError(f"{name}: {given} for {n} of {other}; give one, or {n}")
    return n


def seeds_of(seed: object, count: int) -> range:
    """The seeds of ``count`` images, of which ``seed`` is the first."""
    first = checks.whole("seed", seed, 0, noise.LARGEST_SEED - count + 1)
    return range(first, first + count)


def read_images(name: str, image: object) -> list[Image.Image]:
    """One image or several, RGB and upright; ``ValueError`` if one is not an image."""
    given = [image] if isinstance(image, (Image.Image, str, Path)) else image
    if not checks.is_list(given) or not all(isinstance(i, (Image.Image, str, Path)) for i in given):
        raise ValueError(f"{name}={shown(image)}: must be a PIL image or a path, or a list of them")
    if not given:
        raise ValueError(f"{name}=[]: give at least one")
    return [upright(i) for i in given]  # type: ignore[arg-type]


def prompt_texts(model: Model, name: str, prompts: object, style: str | None = None) -> list[str]:
    """One prompt or label, or several, as texts in a style; see `texts_of`."""
    texts = texts_of(name, prompts)
    return [model.styled(text, style) for text in texts] if style else texts


def texts_of(name: str, prompts: object) -> list[str]:
    """One prompt or label, or several, as texts.

    Raises:
        ValueError: naming the argument ``name``, if it is anything else or empty.
    """
    if isinstance(prompts, str) or not checks.is_list(prompts):
        texts = [as_prompt(name, prompts)]
    else:
        texts = [as_prompt(f"{name}[{i}]", prompt) for i, prompt in enumerate(prompts)]
    if not texts:
        raise ValueError(f"{name}=[]: give at least one")
    return texts


def _around(box: Box, part: Box | None, image: Image.Image) -> Box:
    """``box`` moved as little as it takes to contain ``part``."""
    if part is None:
        return box
    if part[2] - part[0] > box[2] - box[0] or part[3] - part[1] > box[3] - box[1]:
        raise ValueError(
            f"mask: covers {part[2] - part[0]} x {part[3] - part[1]} pixels, and the largest part "
            f"of this {image.width} x {image.height} image that has the shape of the model's is "
            f"{box[2] - box[0]} x {box[3] - box[1]}; paint it in two, or crop the image"
        )
    move = [min(part[k] - box[k], 0) + max(part[k + 2] - box[k + 2], 0) for k in (0, 1)]
    return box[0] + move[0], box[1] + move[1], box[2] + move[0], box[3] + move[1]


def _scaled(image: Image.Image, height: int, width: int, channels: int) -> Tensor:
    """An image as (channels, height, width) in [0, 1]."""
    made = image.convert("L" if channels == 1 else "RGB")
    array = np.array(made.resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(array).reshape(height, width, channels).permute(2, 0, 1) / 255
