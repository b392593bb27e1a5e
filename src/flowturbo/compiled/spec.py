"""What a sampler is compiled for: the options that `flowturbo.compile` and `export` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.types import ReadOnlyJson

__all__ = ["CompileSpec", "fixed_scale"]


@checks.known_keywords
@dataclass(frozen=True, kw_only=True)
class CompileSpec:
    """What a sampler is compiled for.

    Attributes:
        batch: number of images, or several numbers to choose from; other numbers are padded up to
            the next, or run in chunks of the largest.
        dtype: precision of the networks, on copies of their weights; by default as they are. The
            state is float32, or float64 if the networks are. Times are never rounded.
        guidance: default scale; 1 compiles without guidance, for good. By default the one on the
            model's card, and 1 for other fields.
        shape: shape of a state, for a field without an attribute ``shape``.
        device: where the state is; by default where the weights are.
        options: options of inductor, such as ``{"freezing": True}``.
    """

    batch: int | Sequence[int] = 8
    dtype: torch.dtype | None = None
    guidance: float | None = None
    shape: Sequence[int] | None = None
    device: str | torch.device | None = None
    options: ReadOnlyJson | None = None

    def __post_init__(self) -> None:
        keep = lambda name, value: object.__setattr__(self, name, value)
        keep("batch", _check_batch(self.batch))
        if self.dtype is not None:
            keep("dtype", checks.dtype("dtype", self.dtype))
        if self.guidance is not None:
            keep("guidance", fixed_scale(self.guidance))
        if self.shape is not None:
            keep("shape", checks.sizes("shape", self.shape))
        if self.device is not None:
            keep("device", checks.device("device", self.device))


def fixed_scale(guidance: float | Tensor) -> float:
    """A guidance scale as a number; ``ValueError`` for one per image."""
    if isinstance(guidance, Tensor) and guidance.numel() == 1 and not guidance.is_meta:
        guidance = guidance.item()
    return checks.number("guidance", guidance)


def _check_batch(batch: int | Sequence[int]) -> tuple[int, ...]:
    sizes = batch if checks.is_list(batch) else [batch]
    checked = {checks.whole("batch", n, 1) for n in sizes}  # type: ignore[union-attr]
    if not checked:
        raise ValueError(f"batch={checks.shown(batch)}: must be a number of images, or several")
    return tuple(sorted(checked))
