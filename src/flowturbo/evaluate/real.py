"""Real pictures to measure drawn ones against, or their features."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo.train.data import load_images

__all__ = ["Real", "digest", "load_real"]

LEAST = 10  # real pictures, to measure anything by


@dataclass(frozen=True, kw_only=True)
class Real:
    """Real pictures: (M, C, H, W) uint8, or features alone; and what the record says of them."""

    pictures: Tensor | None
    features: Tensor | None
    about: dict[str, Any]


def load_real(path: str | Path, size: int, *, need_pictures: bool = False) -> Real:
    """Real pictures of ``size`` x ``size``, or the "features" of an ``.npz`` file.

    Raises:
        ValueError: if there is nothing of the kind; names the file.
    """
    path = Path(path)
    features = _npz_features(path) if path.suffix == ".npz" and path.is_file() else None
    if features is None:
        try:
            pictures = load_images(path, size)
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


def _npz_features(path: Path) -> Tensor | None:
    """What an ``.npz`` file holds as "features" (M, D); None if it holds none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = file["features"] if "features" in file.files else None
    except Exception as e:
        raise ValueError(f"against={str(path)!r}: cannot be read as .npz ({e})") from e
    if found is not None and (found.ndim != 2 or found.dtype.kind != "f" or len(found) < LEAST):
        raise ValueError(
            f"against={str(path)!r}: 'features' {found.shape} {found.dtype}; must be (M, D) "
            f"floats, at least {LEAST} rows"
        )
    return None if found is None else torch.from_numpy(found.astype(np.float32))


def digest(x: Tensor) -> str:
    """16 hexadecimal digits that name a tensor."""
    return hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
