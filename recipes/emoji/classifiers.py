"""A classifier for what an image shows.

Multinomial logistic regression, with a square penalty, on EfficientNet-Lite0 features of real
images and distorted copies of them. The classifier for styles is in `styles.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Names", "blurred", "distort", "roughen", "turn"]


def turn(x: Tensor, degrees: float, generator: torch.Generator, mode: str = "bilinear") -> Tensor:
    """Pictures turned by up to ``degrees``, scaled by 15 % and shifted by 8 % at most, on white."""
    n = len(x)
    draw = lambda *size: 2 * torch.rand(*size, generator=generator) - 1
    angle, scale = math.radians(degrees) * draw(n), 1 + 0.15 * draw(n)
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, 0.16 * draw(2, n)
    theta = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).view(n, 2, 3)
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    # sampling fills with 0 outside the picture; paper is white
    return 1 - nn.functional.grid_sample(1 - x, grid, mode=mode, align_corners=False)


def blurred(x: Tensor) -> Tensor:
    """The 3 x 3 averages of pictures."""
    return nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def distort(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] turned by 15 degrees, scaled by 15 %, shifted by 8 % at most,
    half of them mirrored, with contrast, brightness and channels changed, blurred and noisy.
    """
    n = len(x)
    draw = lambda *size: 2 * torch.rand(*size, generator=generator) - 1
    x = turn(torch.where(draw(n, 1, 1, 1) < 0, x.flip(3), x), 15, generator)
    gain = 1 + 0.2 * draw(n, 1, 1, 1) + 0.1 * draw(n, 3, 1, 1)
    x = (x - 1) * gain + 1 + 0.05 * draw(n, 1, 1, 1)
    x = torch.lerp(x, blurred(x), 0.5 * torch.rand(n, 1, 1, 1, generator=generator))
    noise = torch.randn(x.shape, generator=generator)
    return (x + 0.03 * torch.rand(n, 1, 1, 1, generator=generator) * noise).clamp(0, 1)


def roughen(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures a quarter of the way to their 3 x 3 averages, with noise of 3 levels of 255."""
    return (
        0.75 * x + 0.25 * blurred(x) + torch.randn(x.shape, generator=generator) * 3 / 255
    ).clamp(0, 1)


class Names:
    """Logistic regression on features (B, D), each scaled to mean 0 and deviation 1."""

    def __init__(self, features: Tensor, labels: Tensor, penalty: float = 1e-3) -> None:
        self.mean, self.spread = features.mean(0), features.std(0) + 1e-6
        x = (features - self.mean) / self.spread
        self.linear = nn.Linear(x.shape[1], int(labels.max()) + 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        optimizer = torch.optim.LBFGS(
            self.linear.parameters(), max_iter=100, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            squares = self.linear.weight.square().sum()
            value = nn.functional.cross_entropy(self.linear(x), labels) + penalty * squares
            value.backward()
            return value

        optimizer.step(loss)

    @torch.no_grad()
    def rank(self, features: Tensor) -> Tensor:
        """Labels (B, classes), the likeliest first."""
        return self.linear((features - self.mean) / self.spread).argsort(1, descending=True)
