"""The real images, with their features, and which of them may be used for training."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choose import judged
from data import load
from drawn import Pair, stored, to_pictures
from torch import Tensor

from flowturbo.evaluate.features import EffNetFeatures
from flowturbo.noise import digest

__all__ = ["Pictures"]


class Pictures:
    """The data set.

    Attributes:
        images: (N, 64, 64, 3) uint8.
        concept: (N,), indices.
        style: (N,), indices.
        held: (N,), whether held out of training.
        pairs: the N of concept and style.
        about: what stands in ``emoji.json``.
        names: the indices of the concepts of ``judged.txt``.
    """

    def __init__(self, data: str | Path, out: Path) -> None:
        self.images, concept, style, self.about = load(data)
        self.concept, self.style = torch.from_numpy(concept).long(), torch.from_numpy(style).long()
        self.pairs: list[Pair] = list(zip(self.concept.tolist(), self.style.tolist(), strict=True))
        held = {(c, s) for c, s in self.about["held"]}
        self.held = torch.tensor([p in held for p in self.pairs])
        self.names = judged(self.about["concepts"])
        self.out = out

    @property
    def trained(self) -> list[Pair]:
        """The pairs not held out."""
        return [p for p, h in zip(self.pairs, self.held.tolist(), strict=True) if not h]

    @cached_property
    def features(self) -> Tensor:
        """(N, 1280)."""
        return self.see("real", self.images)

    def see(self, name: str, images: Any) -> Tensor:
        """Features of images (B, H, W, 3) uint8, kept in the folder."""
        key = digest(torch.from_numpy(np.ascontiguousarray(images)))
        path = self.out / f"features-{name.replace(' ', '-')}.npz"
        make = lambda: self._network(to_pictures(images)).numpy()
        return torch.from_numpy(stored(path, key, make))

    def part(self, which: Tensor) -> tuple[Any, Tensor, list[Pair]]:
        """Images, features and pairs of the rows where ``which`` (N,) is True."""
        pairs = [self.pairs[i] for i in which.nonzero()[:, 0].tolist()]
        return self.images[which.numpy()], self.features[which], pairs

    @cached_property
    def _network(self) -> EffNetFeatures:
        return EffNetFeatures()
