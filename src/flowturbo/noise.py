"""Noise with one generator per image, so that an image depends on its seed alone.

Image ``i`` of a batch starts from the noise of ``seeds[i]`` bit for bit, whatever the batch; it is
drawn on the CPU, so the device does not matter either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["digest", "draw", "mixed"]


def draw(
    seeds: int | Sequence[int],
    shape: Sequence[int],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise (len(seeds), *shape), row ``i`` from a generator seeded ``seeds[i]``.

    Raises:
        ValueError: if a seed is not a whole number in [0, 2**63).
    """
    rows = []
    for seed in seeds if isinstance(seeds, Iterable) else [seeds]:
        generator = torch.Generator().manual_seed(_whole(seed))
        rows.append(torch.randn(tuple(shape), generator=generator, dtype=dtype))
    return torch.stack(rows).to(device) if rows else torch.empty(0, *shape, dtype=dtype)


def _whole(seed: Any) -> int:
    try:
        number = index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number < 2**63:
        raise ValueError(f"seed={seed!r}: must be a whole number from 0 to 2**63 - 1")
    return number


def mixed(*numbers: int) -> int:
    """A seed in [2**31, 2**32) that follows from whole numbers, from 0 each.

    torch's generator on the CPU looks at the lowest 32 bits of a seed alone, so numbers side by
    side in one of 64 bits would not all count. Pictures are drawn with seeds below 2**31.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) | 1 << 31


def digest(noise: Tensor) -> str:
    """16 hexadecimal digits that name a tensor of noises."""
    return hashlib.sha256(noise.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]
