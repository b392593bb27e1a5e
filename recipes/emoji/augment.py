"""Augmentation of training images: shifted, scaled, mirrored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augment"]

SHIFT, SCALE = 0.03, 0.06  # of the side, of the size


def augment(
    x: Tensor, generator: torch.Generator, *, share: float = 0.5, mirror: float = 0.0
) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], a ``share`` of them shifted by up to 3 % of their side and
    scaled by up to 6 %, on white; each mirrored with probability ``mirror``.
    """
    n = len(x)
    draw = lambda: torch.rand(n, generator=generator)
    moved = (draw() < share).float()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / (1 + moved * SCALE * (2 * draw() - 1))
    theta[:, 0, 0] *= torch.where(draw() < mirror, -1.0, 1.0)
    theta[:, 0, 2], theta[:, 1, 2] = (moved * 2 * SHIFT * (2 * draw() - 1) for _ in range(2))
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    # sampling fills with 0 outside the picture; paper is white
    return (F.grid_sample(x - 1, grid, mode="bicubic", align_corners=False) + 1).clamp(-1, 1)
