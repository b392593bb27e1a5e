"""A small network for refiners of fields whose blocks cannot be borrowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowturbo import checks
from flowturbo.models.layers import TimestepEmbedder
from flowturbo.types import Condition

__all__ = ["SmallNetwork"]

LAYERS: dict[int, type[nn.Module]] = {0: nn.Linear, 2: nn.Conv2d, 3: nn.Conv3d}  # by the sides


class SmallNetwork(nn.Module):
    """Residual 3x3 convolutions with growing dilation for states (C, H, W), linear layers for (D,).

    For videos (C, F, H, W) they are 3x3x3.

    Called like a SiT, ``(x, t, cond, numbers) -> (B, *shape)`` with ``images`` states concatenated
    in ``x``. Time, ``numbers`` (B, n) and the class scale and shift the channels.

    Args:
        shape: of the state, (C, H, W), (C, F, H, W) or (D,).
        width: hidden channels; 40 give about 110,000 parameters for RGB images.
        depth: residual blocks of two layers.
        classes: number of conditions if they are indices (B,), the null class included; 0 ignores
            the condition.
        pooled: size P of the one vector of its condition that the network uses; the condition is
            then a dict with the entry "pooled", (B, P) of floats; 0 without one.
        images: number of states in ``x``.
        numbers: how many ``numbers`` there are.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 40,
        depth: int = 3,
        classes: int = 0,
        pooled: int = 0,
        images: int = 3,
        numbers: int = 3,
    ) -> None:
        super().__init__()
        size, *sides = shape
        if len(sides) not in LAYERS:
            raise ValueError(
                f"shape={tuple(shape)}: a state must be (C, H, W), (C, F, H, W) or (D,)"
            )
        self.shape = tuple(shape)
        self.config = dict(shape=list(shape), width=width, depth=depth, classes=classes)
        if pooled:
            self.config["pooled"] = pooled
        kind = LAYERS[len(sides)]
        self.first = _layer(kind, images * size, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([_layer(kind, width, width, 2**i), _layer(kind, width, width)])
            for i in range(depth)
        )
        self.last = _layer(kind, width, size)
        self.embedders = nn.ModuleList(TimestepEmbedder(width, 32) for _ in range(numbers + 1))
        self.classes = nn.Embedding(classes, width) if classes else None
        self.pooled = nn.Linear(pooled, width) if pooled else None
        self.modulation = nn.Linear(width, 2 * width * depth)
        for p in (*self.last.parameters(), *self.modulation.parameters()):
            nn.init.zeros_(p)

    def check_inputs(self, x: Tensor, cond: Condition = None, negative: Condition = None) -> None:
        """Refuse states and classes that the network cannot take, with a ``ValueError``."""
        checks.tensor("x", x, ("B", *self.shape))
        if self.pooled is not None:
            self._vector(cond, len(x))
        if self.classes is None:
            return
        most, kinds = self.classes.num_embeddings - 1, (torch.int32, torch.int64)
        checks.tensor("cond", cond, (len(x),), dtypes=kinds)
        if checks.can_look(cond) and len(cond):
            low, high = (int(end) for end in cond.aminmax())
            if low < 0 or high > most:
                wrong = low if low < 0 else high
                raise ValueError(f"cond={checks.shown(cond)}: holds {wrong}; from 0 to {most}")

    def forward(self, x: Tensor, t: Tensor, cond: Condition, numbers: Tensor) -> Tensor:
        """The correction, like one state."""
        numbers = torch.cat([32 * t[:, None], numbers], dim=1)
        c = sum(e(n) for e, n in zip(self.embedders, numbers.unbind(1), strict=True))
        if self.classes is not None:
            c = c + self.classes(cond.long())
        if self.pooled is not None:
            c = c + self.pooled(self._vector(cond, len(x)).to(c.dtype))
        m = self.modulation(F.silu(c)).reshape(*numbers.shape[:1], -1, *[1] * (x.ndim - 2))
        h = self.first(x)
        for layers, both in zip(self.layers, m.chunk(len(self.layers), dim=1), strict=True):
            scale, shift = both.chunk(2, dim=1)
            one, two = layers.children()
            h = h + two(F.silu(one(F.silu(h)) * (1 + scale) + shift))
        return self.last(F.silu(h))

    def _vector(self, cond: Condition, rows: int) -> Tensor:
        """The pooled vector (B, P) of a condition; ``ValueError`` if it has none of this size."""
        assert self.pooled is not None
        vector = cond.get("pooled") if isinstance(cond, Mapping) else None
        size = (rows, self.pooled.in_features)
        if not isinstance(vector, Tensor) or vector.shape != size:
            raise ValueError(
                f"cond={checks.shown(cond)}: the refiner was made for conditions with 'pooled', "
                f"here {size}"
            )
        return vector


def _layer(kind: type[nn.Module], inner: int, outer: int, reach: int = 1) -> nn.Module:
    if kind is nn.Linear:
        return kind(inner, outer)
    return kind(inner, outer, 3, padding=reach, dilation=reach)
