"""The images that an editing task starts from, as states of a model, and their way back.

An image of any size, mode and orientation is cropped to the shape of the model's images around its
centre, and scaled. An edited image is returned in the model's size, or scaled into its place in the
original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.images import crop_box, to_pil, upright
from flowturbo.models.model import Model
from flowturbo.models.prompts import as_prompts
from flowturbo.types import Condition

__all__ = ["Edited", "Picture", "Size", "Sources", "conditions", "read_sources"]

Picture: TypeAlias = Image.Image | str | Path
"""An image, or the path of its file."""
Size: TypeAlias = Literal["model", "input"]


class Edited(list[Image.Image]):
    """Edited images, with what they took.

    Attributes:
        evaluations: of the model, for each image.
        passes: of the network, for each image.
    """

    def __init__(self, images: Sequence[Image.Image], evaluations: int, passes: int) -> None:
        super().__init__(images)
        self.evaluations, self.passes = evaluations, passes

    @property
    def images(self) -> list[Image.Image]:
        """The images, as pipelines of diffusers name them."""
        return [*self]


@dataclass(frozen=True)
class Sources:
    """N images.

    Attributes:
        originals: the images, RGB, upright.
        boxes: the parts of them that are edited: (left, top, right, bottom).
        states: of these parts, (N, C, H, W).
    """

    originals: list[Image.Image]
    boxes: list[tuple[int, int, int, int]]
    states: Tensor

    def __len__(self) -> int:
        return len(self.originals)

    def placed(
        self, images: Sequence[Image.Image], size: Size, masks: Sequence[Image.Image] | None = None
    ) -> list[Image.Image]:
        """Edited ``images`` in the size asked for; outside of ``masks`` originals keep their bits.

        ``masks`` are L, in the size of the originals or, for the size "model", of the images.
        """
        if size == "model":
            return list(images)
        found = []
        for i, (image, original, box) in enumerate(
            zip(images, self.originals, self.boxes, strict=True)
        ):
            shape = (box[2] - box[0], box[3] - box[1])
            grey = image.mode == "L" and _is_grey(original)
            made = original.convert("L") if grey else original.copy()
            resized = image.convert(made.mode).resize(shape, Image.Resampling.LANCZOS)
            made.paste(resized, box[:2], None if masks is None else masks[i].crop(box))
            found.append(made)
        return found


def read_sources(model: Model, image: Picture | Sequence[Picture], count: int | None) -> Sources:
    """Images as states of ``model``; one image stands for ``count``, if that is given.

    Raises:
        ValueError: if one is not readable, or their number is neither 1 nor ``count``.
    """
    given = [image] if isinstance(image, (Image.Image, str, Path)) else image
    if not checks.is_list(given) or not all(isinstance(i, (Image.Image, str, Path)) for i in given):
        raise ValueError(f"image={shown(image)}: must be a PIL image or a path, or a list of them")
    count = len(given) if count is None else count
    if not given or len(given) not in (1, count):
        raise ValueError(
            f"image={shown(image)}: {len(given)} images for {count} prompts; pass one image, or "
            "one for each prompt"
        )
    channels, height, width = model.image_shape
    originals = [upright(i) for i in given]
    boxes = [crop_box(i, height, width) for i in originals]
    rows = [
        scaled(original.crop(box), height, width, channels)
        for original, box in zip(originals, boxes, strict=True)
    ]
    states = model.encode(torch.stack(rows).to(model.device))
    times = count if len(given) == 1 else 1
    return Sources(originals * times, boxes * times, states.repeat(times, 1, 1, 1))


def scaled(image: Image.Image, height: int, width: int, channels: int) -> Tensor:
    """An image as (channels, height, width) in [0, 1]."""
    made = image.convert("L" if channels == 1 else "RGB")
    array = np.array(made.resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(array).reshape(height, width, channels).permute(2, 0, 1) / 255


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return bool(red.tobytes() == green.tobytes() == blue.tobytes())


def conditions(
    model: Model, name: str, prompts: str | int | Sequence[str | int], style: str | None = None
) -> tuple[int, Condition]:
    """The number of prompts, and their condition; one prompt may stand without a list.

    Raises:
        ValueError: as `flowturbo.generate`, for prompts or a style that the model does not know.
    """
    single = isinstance(prompts, (str, int))
    texts = as_prompts([prompts] if single else prompts)
    if not texts:
        raise ValueError(f"{name}=[]: give at least one")
    if style is not None:
        texts = [model.styled(text, style) for text in texts]
    if model.conditioning is None and not any(text.strip() for text in texts):
        return len(texts), None
    return len(texts), model.condition(texts)


def finished(model: Model, x1: Tensor) -> list[Image.Image]:
    """The images of states; ``ValueError`` if they are not finite."""
    if not x1.isfinite().all():
        raise ValueError("the edited images are not finite; lower the guidance")
    return to_pil(model.decode(x1))
