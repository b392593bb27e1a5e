"""Point clouds of solids, and a transformer over their points as a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["LABELS", "POINTS", "SHAPE", "Cloud", "clouds"]

LABELS = ["sphere", "box", "cylinder", "cone", "torus", "letter L"]
POINTS = 256
SHAPE = (POINTS, 3)


def clouds(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``n`` clouds (n, 256, 3) of points spread evenly over surfaces, and their labels (n,).

    Solids are stretched by .7 to 1.3 along each axis and turned about the vertical one.
    """
    label = torch.randint(len(LABELS), (n,), generator=generator)
    u = torch.rand(n, POINTS, 5, generator=generator)
    made = torch.stack([surface(u) for surface in SURFACES])
    points = made[label, torch.arange(n)]
    points = points * (0.7 + 0.6 * torch.rand(n, 1, 3, generator=generator))
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    turn = torch.zeros(n, 3, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
    turn[:, 0, 1], turn[:, 1, 0] = -angle.sin(), angle.sin()
    turn[:, 2, 2] = 1
    return points @ turn.mT, label


def _circle(u: Tensor) -> Tensor:
    return torch.stack([(2 * math.pi * u).cos(), (2 * math.pi * u).sin()], -1)


def _sphere(u: Tensor) -> Tensor:
    z = 2 * u[..., 0] - 1
    return torch.cat([_circle(u[..., 1]) * (1 - z**2).sqrt()[..., None], z[..., None]], -1)


def _box(u: Tensor, size: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """The surface of a box of half ``size``; its faces are taken in proportion to their area."""
    x, y, z = size
    areas = torch.tensor([y * z, x * z, x * y])
    axis = torch.searchsorted(areas.cumsum(0) / areas.sum(), u[..., 0].contiguous()).clamp(max=2)
    points = (2 * u[..., 1:4] - 1) * torch.tensor(size)
    face = torch.nn.functional.one_hot(axis, 3).bool()
    return torch.where(face, points.sign() * torch.tensor(size), points)


def _cylinder(u: Tensor) -> Tensor:
    part, z = u[..., 0], 2 * u[..., 1] - 1
    radius = torch.where(part < 2 / 3, 1.0, u[..., 1].sqrt())
    z = torch.where(part < 2 / 3, z, (part - 5 / 6).sign())
    return torch.cat([_circle(u[..., 2]) * radius[..., None], z[..., None]], -1)


def _cone(u: Tensor) -> Tensor:
    radius, side = u[..., 1].sqrt(), math.sqrt(5) / (1 + math.sqrt(5))
    z = torch.where(u[..., 0] < side, 1 - 2 * radius, -1.0)
    return torch.cat([_circle(u[..., 2]) * radius[..., None], z[..., None]], -1)


def _torus(u: Tensor) -> Tensor:
    tube = 0.35 * _circle(u[..., 1])
    points = [_circle(u[..., 0]) * (0.8 + tube[..., :1]), tube[..., 1:]]
    return torch.cat(points, -1)


def _letter(u: Tensor) -> Tensor:
    upright = _box(u, (0.25, 0.25, 1.0)) + torch.tensor([-0.5, 0.0, 0.0])
    foot = _box(u, (0.5, 0.25, 0.25)) + torch.tensor([0.25, 0.0, -0.75])
    return torch.where((u[..., 4] < 0.62)[..., None], upright, foot)


SURFACES = (_sphere, _box, _cylinder, _cone, _torus, _letter)


class Cloud(nn.Module):
    """``(x, t, cond) -> v``: a transformer over the points of x (B, 256, 3), in any order.

    It predicts the clean cloud ``x1``, and so the velocity ``(x1 - x) / (1 - t)``.
    """

    shape = SHAPE

    def __init__(self, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.points, self.time = nn.Linear(3, width), nn.Linear(32, width)
        self.label = nn.Embedding(len(LABELS) + 1, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor, t: float | Tensor, cond: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        angles = t[:, None] * torch.pi / 2 * 2.0 ** torch.arange(16, device=x.device).div(2)
        about = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(cond)
        h = torch.cat([about[:, None], self.points(x) + about[:, None]], 1)
        clean = self.last(self.layers(h)[:, 1:]).float()
        return (clean - x) / (1 - t).clamp(min=1e-3)[:, None, None]

    def null_condition(self, cond: Tensor) -> Tensor:
        """The label of any solid, (B,)."""
        return torch.full_like(cond, len(LABELS))

    def random_condition(self, n: int, generator: torch.Generator) -> Tensor:
        """Labels (n,)."""
        return torch.randint(len(LABELS), (n,), generator=generator)
