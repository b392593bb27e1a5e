"""Clips of two digits that bounce in a box, and the layout in which a SiT generates them.

A clip is (1, 8, 32, 32): one channel, eight frames. Patches of 8 x 8 pixels and two frames are its
tokens. A SiT receives them side by side, as an image (2, 64, 64) of four pairs of frames:

    frames 0, 1 | frames 2, 3
    ------------+------------
    frames 4, 5 | frames 6, 7

so that its 64 tokens attend to each other over space and time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import flowturbo as ft

__all__ = ["FRAMES", "LABELS", "SHAPE", "SIDE", "Clips", "Video", "glyphs", "to_clip", "to_image"]

FRAMES, SIDE, GLYPH = 8, 32, 14
SHAPE = (1, FRAMES, SIDE, SIDE)
SPEED = (1.5, 3.5)  # pixels a frame
LABELS = [f"{a} and {b}" for a in range(10) for b in range(a, 10)]


def to_image(clip: Tensor) -> Tensor:
    """Clips (B, 1, 8, 32, 32) as images (B, 2, 64, 64)."""
    parts = clip.reshape(-1, 2, 2, 2, SIDE, SIDE)  # rows, columns, frames of a pair
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(-1, 2, 2 * SIDE, 2 * SIDE)


def to_clip(image: Tensor) -> Tensor:
    """Images (B, 2, 64, 64) as clips (B, 1, 8, 32, 32)."""
    parts = image.reshape(-1, 2, 2, SIDE, 2, SIDE)  # frames, rows, pixels, columns, pixels
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, *SHAPE)


def glyphs(count: int = 100) -> Tensor:
    """Digits (10, count, 14, 14) in [0, 1], drawn by the bundled model `digits`."""
    model, drawn = ft.load("digits"), []
    for digit in range(10):
        images = ft.generate(model, [str(digit)] * count, seed=1000 * digit)
        grey = torch.stack([torch.tensor(list(i.convert("L").getdata())) for i in images])
        grey = grey.view(count, 1, *images[0].size).float() / 255
        drawn.append(F.interpolate(grey, (GLYPH, GLYPH), mode="area")[:, 0])
    return torch.stack(drawn)


class Clips:
    """Random clips, for `flowturbo.training.train`; a label says which two digits are shown.

    Args:
        glyphs: (10, N, 14, 14) in [0, 1].
    """

    shape = (2, 2 * SIDE, 2 * SIDE)
    condition = {"kind": "class", "labels": LABELS}  # noqa: RUF012

    def __init__(self, glyphs: Tensor) -> None:
        self.glyphs = glyphs

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        clips, labels = self.clips(n, generator)
        return to_image(clips), labels

    def clips(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` clips (n, 1, 8, 32, 32) in [-1, 1] and their labels (n,)."""
        labels = torch.randint(len(LABELS), (n,), generator=generator)
        digits = torch.tensor([[int(d) for d in name.split(" and ")] for name in LABELS])[labels]
        which = torch.randint(self.glyphs.shape[1], (n, 2), generator=generator)
        glyph = self.glyphs[digits, which].view(2 * n, 1, GLYPH, GLYPH)
        room, draw = SIDE - GLYPH, lambda: torch.rand(2 * n, generator=generator)
        start = torch.stack([draw(), draw()], 1) * room
        angle, speed = 2 * torch.pi * draw(), SPEED[0] + (SPEED[1] - SPEED[0]) * draw()
        velocity = torch.stack([angle.cos(), angle.sin()], 1) * speed[:, None]
        frames = []
        for i in range(FRAMES):
            at = (start + i * velocity).remainder(2 * room)
            at = torch.where(at > room, 2 * room - at, at)  # off the walls
            frames.append(_placed(glyph, at).view(n, 2, SIDE, SIDE).amax(1))
        return 2 * torch.stack(frames, 1)[:, None].clamp(0, 1) - 1, labels

    def examples(self, n: int) -> Tensor:
        return torch.arange(n) * 7 % len(LABELS)


def _placed(glyph: Tensor, at: Tensor) -> Tensor:
    """Glyphs (B, 1, 14, 14) in frames (B, 32, 32), their corners at ``at`` (B, 2) in pixels."""
    scale = SIDE / GLYPH
    middle = (2 * at + GLYPH - SIDE) / SIDE  # in [-1, 1]
    theta = torch.zeros(len(at), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = -scale * middle
    grid = F.affine_grid(theta, [len(at), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(glyph, grid, align_corners=False)[:, 0]


class Video(torch.nn.Module):
    """The trained SiT as a field of clips: ``(x, t, cond) -> v`` with x (B, 1, 8, 32, 32)."""

    shape = SHAPE
    limits = (-1.0, 1.0)

    def __init__(self, model: ft.Model) -> None:
        super().__init__()
        self.network = model.network

    def forward(self, x: Tensor, t: float | Tensor, cond: Tensor | None) -> Tensor:
        return to_clip(self.network(to_image(x), t, cond))

    def null_condition(self, cond: Tensor) -> Tensor:
        """The label of any digits, (B,)."""
        return torch.full_like(cond, len(LABELS))

    def random_condition(self, n: int, generator: torch.Generator) -> Tensor:
        """Labels (n,)."""
        return torch.randint(len(LABELS), (n,), generator=generator)
