"""Two classifiers that say of a 32 x 32 picture what it shows, and in which style.

*What*: multinomial logistic regression, with a square penalty, on EfficientNet-Lite0 features of
real pictures and distorted copies of them.

*In which style*: kernel ridge regression on the colours alone. The four sets keep to palettes of
their own, so colours tell styles apart better than features made to ignore them, and do so for
things never seen. A palette holds the share of ink in each of 16 x 16 x 16 cells, spread linearly
over the cells around a colour; two are compared by the squared Hellinger distance.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor, nn

__all__ = ["Names", "Styles", "distort", "palette", "roughen"]

CELLS = 16


def distort(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] turned by 15 degrees, scaled by 15 %, shifted by 8 % at most,
    half of them mirrored, with contrast, brightness and channels changed, blurred and noisy.
    """
    n = len(x)
    draw = lambda *size: 2 * torch.rand(*size, generator=generator) - 1
    angle, scale = math.radians(15) * draw(n), 1 + 0.15 * draw(n)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    mirror = torch.where(draw(n) < 0, -1.0, 1.0)
    shift = 0.16 * draw(2, n)
    theta = torch.stack([cos * mirror, -sin, shift[0], sin * mirror, cos, shift[1]], 1)
    grid = nn.functional.affine_grid(theta.view(n, 2, 3), list(x.shape), align_corners=False)
    # sampling fills with 0 outside the picture; paper is white
    x = 1 - nn.functional.grid_sample(1 - x, grid, mode="bilinear", align_corners=False)
    gain = 1 + 0.2 * draw(n, 1, 1, 1) + 0.1 * draw(n, 3, 1, 1)
    x = (x - 1) * gain + 1 + 0.05 * draw(n, 1, 1, 1)
    blurred = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, 0.5 * torch.rand(n, 1, 1, 1, generator=generator))
    noise = torch.randn(x.shape, generator=generator)
    return (x + 0.03 * torch.rand(n, 1, 1, 1, generator=generator) * noise).clamp(0, 1)


def roughen(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures a quarter of the way to their 3 x 3 averages, with noise of 3 levels of 255."""
    blurred = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (0.75 * x + 0.25 * blurred + torch.randn(x.shape, generator=generator) * 3 / 255).clamp(
        0, 1
    )


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


class Styles:
    """Kernel ridge regression of styles on palettes, ``exp(-distance / mean distance)``.

    It learns from each picture as it is and roughened: what a network draws is never quite even.
    """

    def __init__(self, pictures: Tensor, styles: Tensor, penalty: float = 0.05) -> None:
        rough = roughen(pictures, torch.Generator().manual_seed(0))
        self.palettes = palette(torch.cat([pictures, rough]))
        self.scale = _distances(self.palettes[:1000], self.palettes).mean() / 1.5
        gram = self._kernel(self.palettes)
        gram.diagonal().add_(penalty)
        target = nn.functional.one_hot(styles.long()).float().repeat(2, 1)
        self.weights = torch.linalg.solve(gram, target)

    def __call__(self, pictures: Tensor) -> Tensor:
        """The style (B,) of each picture."""
        parts = [self._kernel(palette(p)) @ self.weights for p in pictures.split(500)]
        return torch.cat(parts).argmax(1)

    def _kernel(self, palettes: Tensor) -> Tensor:
        return torch.exp(-_distances(palettes, self.palettes) / self.scale)


def palette(x: Tensor) -> Tensor:
    """Square roots (B, 4096) of the shares of colours in pictures (B, 3, H, W), white left out."""
    colours = x.flatten(2)
    ink = (colours.amin(1) < 0.97).float()
    at = colours * (CELLS - 1)
    low = at.floor().clamp(max=CELLS - 2).long()
    part = at - low
    shares = torch.zeros(len(x), CELLS**3)
    for corner in product((0, 1), repeat=3):
        cell, share = torch.zeros_like(low[:, 0]), ink
        for channel, up in enumerate(corner):
            cell = cell * CELLS + low[:, channel] + up
            share = share * (part[:, channel] if up else 1 - part[:, channel])
        shares.scatter_add_(1, cell, share)
    return (shares / shares.sum(1, keepdim=True).clamp(min=1e-6)).sqrt()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)
