"""What can be trained on: the protocol, and images kept in memory as 8 bits.

Anything with ``shape``, ``batch(n, generator)``, ``examples(n)`` and ``condition`` can be trained
on; batches are drawn with replacement using the given generator, so step ``s`` of a run sees the
same images however often the run was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Sized
from typing import Protocol

import torch
from torch import Tensor

from flowturbo.checks import shown
from flowturbo.digests import content, hexdigest
from flowturbo.models.conditioning import conditioning_of
from flowturbo.models.prompts import excerpt
from flowturbo.types import JsonObject

__all__ = ["ArrayData", "Data", "check_data", "identified"]


class Data(Protocol):
    """What the training loop needs from a data set.

    It may also have ``digest() -> str``, a name for its content: a run is then not resumed with
    other data of the same shape.
    """

    condition: JsonObject | None
    """The "condition" entry of the model's card, or None for an unconditional model."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        ...

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """``n`` images (n, C, H, W) in [-1, 1] and their conditions, sampled with ``generator``."""
        ...

    def examples(self, n: int) -> Tensor | None:
        """Conditions of ``n`` images for previews."""
        ...


class ArrayData:
    """Images (N, C, H, W) uint8 with a condition for each: class indices (N,), token ids (N, L).

    Attributes:
        source: of the captions, such as "metadata.csv".
        left_out: names of files and folders that were found and are not part of the data.
    """

    def __init__(
        self,
        images: Tensor,
        cond: Tensor | None = None,
        condition: JsonObject | None = None,
        *,
        source: str = "",
        left_out: Sequence[str] = (),
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or not images.numel():
            raise ValueError(
                f"images: {tuple(images.shape)} {images.dtype}, want (N, C, H, W) uint8"
            )
        if cond is not None and len(cond) != len(images):
            raise ValueError(f"{len(images)} images but {len(cond)} conditions")
        if (about := conditioning_of(condition)) is not None:
            about.check_rows(cond, len(images))
        self.images, self.cond, self.condition = images, cond, condition
        self.source, self.left_out = source, tuple(left_out)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(self.images.shape[1:])  # type: ignore[return-value]

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """``n`` images in [-1, 1] and their conditions, drawn with replacement."""
        rows = torch.randint(len(self), (n,), generator=generator)
        x = self.images[rows].float() / 127.5 - 1
        return x, None if self.cond is None else self.cond[rows]

    def examples(self, n: int) -> Tensor | None:
        """Conditions for previews: classes in order, or evenly spaced captions."""
        if self.cond is None:
            return None
        if self.cond.ndim == 1:
            return torch.arange(n) % (int(self.cond.max()) + 1)
        return self.cond[torch.linspace(0, len(self) - 1, n).long()]

    def describe(self) -> str:
        """A line on what is trained on: ``"4 images, 2 classes: cat, dog"``."""
        about = conditioning_of(self.condition)
        text = counted(len(self), "image")
        if about is None or self.cond is None:
            text += ", no captions or labels"
        else:
            text += about.describe(self.cond) + f" ({self.source})" * bool(self.source)
        return text + (f"; left out: {excerpt(self.left_out, 6)}" if self.left_out else "")

    def digest(self) -> str:
        """16 hexadecimal digits that name the images, their conditions and what these mean."""
        parts: list[str | memoryview] = [json.dumps(self.condition, sort_keys=True)]
        for x in (self.images, self.cond):
            if x is not None:
                parts.append(f"{x.dtype} {tuple(x.shape)}")
                parts.append(x.detach().cpu().contiguous().numpy().data)
        return hexdigest(*parts)


def check_data(data: object) -> None:
    """Refuse what cannot be trained on."""
    if not all(hasattr(data, name) for name in ("shape", "batch", "examples", "condition")):
        raise ValueError(f"data={shown(data)}: must be data such as load_data returns")


def identified(data: Data) -> JsonObject:
    """What must not change when a run is resumed: number, labels and content of the data.

    Data without a ``digest()`` are identified by a first batch and their examples.
    """
    condition = data.condition or {}
    if hasattr(data, "digest"):
        digest = data.digest()
    else:
        batch = data.batch(64, torch.Generator().manual_seed(0))
        digest = content([batch, data.examples(16), condition])
    return {
        "images": len(data) if isinstance(data, Sized) else None,
        "labels": condition.get("labels"),
        "digest": digest,
    }


def counted(n: int, noun: str) -> str:
    """``"1 image"``, ``"2 images"``."""
    return f"{n} {noun}{'s' * (n != 1)}"
