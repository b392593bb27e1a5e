"""SVG documents as small images: the packages they come from, and how they are rendered."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["averaged", "install", "render"]

SUPERSAMPLE = 4


def averaged(images: Any, size: int) -> Any:
    """Images (N, S, S, 3) uint8 as averages (N, size, size, 3) over squares of their pixels."""
    side = images.shape[1]
    if side % size:
        raise ValueError(f"size={size}: must divide {side}")
    k = side // size
    if k == 1:
        return images
    images = images.reshape(-1, size, k, size, k, 3).mean((2, 4), dtype=np.float32)
    return (images + 0.5).astype(np.uint8)


def install(folder: Path, packages: Mapping[str, str]) -> Path:
    """Packages, at the versions given, in ``folder``/node_modules."""
    wanted = [f"{name}@{version}" for name, version in packages.items()]
    subprocess.run(["npm", "install", "--prefix", str(folder), *wanted], check=True)
    return folder / "node_modules"


def render(icon: str | Path, size: int) -> Any:
    """An SVG document, or the file of a picture, as (size, size, 3) uint8 on white."""
    from PIL import Image

    if isinstance(icon, Path):
        with Image.open(icon) as image:
            image = image.convert("RGBA")
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image)
            return np.array(page.convert("RGB").resize((size, size), Image.Resampling.BOX))
    import resvg_py

    svg, side = icon, size * SUPERSAMPLE
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=side, height=side, background="#ffffff", skip_system_fonts=True
    )
    return np.array(Image.open(io.BytesIO(bytes(png))).convert("RGB").reduce(SUPERSAMPLE))
