"""Real pictures to measure drawn ones against, or their features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo.field import map_condition
from flowturbo.train.data import load_images

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
    features = _npz_features(path) if path.suffix == ".npz" and path.is_file() else None
    if features is None:
        try:
            pictures = _channels(load_images(path, (shape[1], shape[2])), shape[0])
        except ValueError as e:
            raise ValueError(f"against: {e}") from e
        if len(pictures) < LEAST:
            raise ValueError(f"against={str(path)!r}: {len(pictures)} pictures; at least {LEAST}")
        about = {"name": path.name, "pictures": len(pictures), "digest": digest(pictures)}
        return Real(pictures=pictures, features=None, about=about)
    if need_pictures:
        raise ValueError(f"against={str(path)!r}: holds features; fid=True needs pictures")
    about = {"name": path.name, "features": len(features), "digest": digest(features)}
    return Real(pictures=None, features=features, about=about)


def _channels(pictures: Tensor, channels: int) -> Tensor:
    if pictures.shape[1] == 3 and channels == 1:
        red, green, blue = pictures.float().split(1, dim=1)
        return (0.299 * red + 0.587 * green + 0.114 * blue).round().byte()
    return pictures.expand(-1, channels, -1, -1) if pictures.shape[1] == 1 else pictures


def _npz_features(path: Path) -> Tensor | None:
    """What an ``.npz`` file holds as "features" (M, D); None if it holds none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = file["features"] if "features" in file.files else None
    except Exception as e:
        raise ValueError(f"against={str(path)!r}: cannot be read as .npz ({e})") from e
    if found is None:
        return None
    if found.ndim != 2 or found.dtype.kind != "f" or len(found) < LEAST:
        raise ValueError(
            f"against={str(path)!r}: 'features' {found.shape} {found.dtype}; must be (M, D) "
            f"floats, at least {LEAST} rows"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"against={str(path)!r}: some of its 'features' are not finite")
    return torch.from_numpy(found.astype(np.float32))


def digest(x: Any) -> str:
    """16 hexadecimal digits that name a tensor, or a condition of several."""
    if isinstance(x, Tensor):
        data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    else:
        data = repr(map_condition(lambda c: digest(c) if isinstance(c, Tensor) else c, x)).encode()
    return hashlib.sha256(data).hexdigest()[:16]
