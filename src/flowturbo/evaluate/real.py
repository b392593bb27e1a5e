"""Real images to compare generated ones with, or their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowturbo.digests import hexdigest
from flowturbo.training.data import is_npz, load_images
from flowturbo.training.npz import read_arrays
from flowturbo.tree import map_condition
from flowturbo.types import Condition, JsonObject

__all__ = ["Real", "digest", "load_real"]

LEAST = 10  # real images


@dataclass(frozen=True, kw_only=True)
class Real:
    """Real images (M, C, H, W) uint8, or only their features, and their entry in the record."""

    images: Tensor | None
    features: Tensor | None
    about: JsonObject


def load_real(path: str | Path, shape: Sequence[int], *, need_images: bool = False) -> Real:
    """Real images of ``shape`` (C, H, W), or the "features" of an ``.npz`` file.

    Colour images become grey by luminance where C is 1; grey ones become three equal channels
    where it is 3.

    Raises:
        ValueError: if ``path`` contains neither; names the file.
    """
    path = Path(path)
    try:
        features = _features(path) if is_npz(path) else None
        if features is None:
            images = _channels(load_images(path, (shape[1], shape[2])), shape[0])
            _check_enough(len(images), "images", path)
            about = {"name": path.name, "images": len(images), "digest": digest(images)}
            return Real(images=images, features=None, about=about)
        if need_images:
            raise ValueError(f"{path} holds features; fid=True needs images")
    except ValueError as e:
        raise ValueError(f"real_images: {e}") from e
    about = {"name": path.name, "features": len(features), "digest": digest(features)}
    return Real(images=None, features=features, about=about)


def _channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == 3 and channels == 1:
        red, green, blue = images.float().split(1, dim=1)
        return (0.299 * red + 0.587 * green + 0.114 * blue).round().byte()
    return images.expand(-1, channels, -1, -1) if images.shape[1] == 1 else images


def _features(path: Path) -> Tensor | None:
    """The "features" (M, D) of an ``.npz`` file, in float32; None if it has none."""
    found = read_arrays(path, ("features",))[0].get("features")
    if found is None:
        return None
    if found.ndim != 2 or found.dtype.kind != "f":
        raise ValueError(f"{path}: 'features' {found.shape} {found.dtype}; must be (M, D) floats")
    _check_enough(len(found), "rows of features", path)
    features = torch.from_numpy(found.astype(np.float64)).float()
    if not features.isfinite().all():
        raise ValueError(f"{path}: some of its 'features' are not finite in float32")
    return features


def _check_enough(n: int, what: str, path: Path) -> None:
    if n < LEAST:
        raise ValueError(f"{path}: {n} {what}; at least {LEAST} are needed")


def digest(x: Condition) -> str:
    """16 hexadecimal digits that name a tensor, or a condition of several."""
    if isinstance(x, Tensor):
        data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        data = repr(map_condition(lambda c: digest(c) if isinstance(c, Tensor) else c, x)).encode()
    return hexdigest(data)
