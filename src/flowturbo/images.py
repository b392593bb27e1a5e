"""Tensors to pictures: PIL images, contact sheets, PNG files with metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from flowturbo.files import printable, replacing

__all__ = ["save_png", "sheet", "to_pil"]


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """Pictures (B, 1 or 3, H, W) in [0, 1] to PIL images, grey or RGB, rounded to 8 bits."""
    array = (pictures.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in np.asarray(array)]


def sheet(
    images: Sequence[Image.Image], columns: int | None = None, *, scale: int = 1, gap: int = 2
) -> Image.Image:
    """Images of one size on a white contact sheet, row by row.

    Args:
        images: at least one.
        columns: images in a row; about a square by default.
        scale: whole-number enlargement, pixels kept sharp.
        gap: white pixels around each image, before enlargement.
    """
    if not images:
        raise ValueError("images=[]: a sheet needs at least one")
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    columns = min(columns, len(images))
    width, height = images[0].size
    rows = -(-len(images) // columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    page = Image.new(images[0].mode, size, "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        page.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return page.resize((size[0] * scale, size[1] * scale), Image.Resampling.NEAREST)


def save_png(image: Image.Image, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a PNG with text metadata, made `printable`; the file is whole or not there.

    Raises:
        OSError: if it cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, printable(value))
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)
