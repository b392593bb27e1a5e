"""Noise with one generator per image, so that an image depends only on its seed.

Image ``i`` of a batch starts from the noise of ``seeds[i]``, bit for bit, in any batch; the noise
is drawn on the CPU, so the device does not matter either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

import numpy as np
import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.digests import hexdigest

__all__ = ["LARGEST_SEED", "digest", "draw", "mixed"]

LARGEST_SEED = 2**63 - 1


@checks.known_keywords
def draw(
    seeds: int | Sequence[int],
    shape: Sequence[int],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise (len(seeds), *shape), row ``i`` from a generator seeded ``seeds[i]``.

    Raises:
        ValueError: if a seed is not a whole number in [0, 2**63), or another argument is not valid.
    """
    shape, dtype = checks.sizes("shape", shape), checks.dtype("dtype", dtype)
    device = checks.device("device", device)
    rows = []
    for seed in _listed(seeds):
        generator = torch.Generator().manual_seed(checks.whole("seed", seed, 0, LARGEST_SEED))
        try:
            rows.append(torch.randn(shape, generator=generator, dtype=dtype))
        except RuntimeError:
            size = math.prod(shape) * dtype.itemsize / 1e9
            raise ValueError(
                f"shape={shown(shape)}: {size:.3g} GB of noise do not fit into memory"
            ) from None
    return torch.stack(rows).to(device) if rows else torch.empty(0, *shape, dtype=dtype).to(device)


def _listed(seeds: object) -> Sequence[object]:
    """A list of seeds, or a single one."""
    if isinstance(seeds, (str, bytes, Mapping, Set)):
        raise ValueError(f"seed={shown(seeds)}: must be a whole number from 0 to 2**63 - 1")
    try:
        return list(seeds)  # type: ignore[call-overload]
    except TypeError:
        return [seeds]


def mixed(*numbers: int) -> int:
    """A seed in [2**31, 2**32) derived from whole numbers, each at least 0.

    torch's generator on the CPU uses only the lowest 32 bits of a seed, so if the numbers were
    packed into 64 bits, not all would count. Images have seeds below 2**31.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) | 1 << 31


@checks.known_keywords
def digest(noise: Tensor) -> str:
    """16 hexadecimal digits that identify a tensor of noise."""
    checks.tensor("noise", noise)
    return hexdigest(noise.detach().cpu().float().numpy().tobytes())
