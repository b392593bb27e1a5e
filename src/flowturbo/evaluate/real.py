"""Real pictures to measure drawn ones against, or their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo.digests import hexdigest
from flowturbo.training.data import is_npz, load_images
from flowturbo.training.npz import read_arrays
from flowturbo.tree import map_condition

__all__ = ["Real", "digest", "load_real"]

LEAST = 10  # real pictures, to measure anything by


@dataclass(frozen=True, kw_only=True)
class Real:
    """Real pictures: (M, C, H, W) uint8, or features alone; and what the record says of them."""

    pictures: Tensor | None
    features: Tensor | None
    about: dict[str, Any]


def load_real(path: str | Path, shape: Sequence[int], *, need_pictures: bool = False) -> Real:
    """Real pictures of ``shape`` (C, H, W), or the "features" of an ``.npz`` file.

    Pictures in colour become grey by their luminance where C is 1, grey ones three equal channels
    where it is 3.

    Raises:
        ValueError: if there is nothing of the kind; names the file.
    """
    path = Path(path)
    try:
        features = _features(path) if is_npz(path) else None
        if features is None:
            pictures = _channels(load_images(path, (shape[1], shape[2])), shape[0])
            _check_enough(len(pictures), "pictures", path)
            about = {"name": path.name, "pictures": len(pictures), "digest": digest(pictures)}
            return Real(pictures=pictures, features=None, about=about)
        if need_pictures:
            raise ValueError(f"{path} holds features; fid=True needs pictures")
    except ValueError as e:
        raise ValueError(f"real_images: {e}") from e
    about = {"name": path.name, "features": len(features), "digest": digest(features)}
    return Real(pictures=None, features=features, about=about)


def _channels(pictures: Tensor, channels: int) -> Tensor:
    if pictures.shape[1] == 3 and channels == 1:
        red, green, blue = pictures.float().split(1, dim=1)
        return (0.299 * red + 0.587 * green + 0.114 * blue).round().byte()
    return pictures.expand(-1, channels, -1, -1) if pictures.shape[1] == 1 else pictures


def _features(path: Path) -> Tensor | None:
    """What an ``.npz`` file holds as "features" (M, D), in float32; None if it holds none."""
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


def digest(x: Any) -> str:
    """16 hexadecimal digits that name a tensor, or a condition of several."""
    if isinstance(x, Tensor):
        data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        data = repr(map_condition(lambda c: digest(c) if isinstance(c, Tensor) else c, x)).encode()
    return hexdigest(data)
