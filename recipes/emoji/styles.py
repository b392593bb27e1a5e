"""A classifier for the style of an image.

Two small convolutional networks, averaged, each over the image, its mirror image, and both shifted
by a pixel. They are trained on distorted and unevenly coloured copies, since generated images are
never quite even. The first sees only neighbourhoods: how shapes are shaded and outlined. The second
also sees the colours of single pixels, as waves, since each set has its own palette: it classifies
real images better, but is more easily misled by slightly wrong colours.
"""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from classifiers import blurred, turn
from torch import Tensor, nn

from flowturbo.files import atomic_write
from flowturbo.training.devices import autocast

__all__ = ["EPOCHS", "Styles"]

EPOCHS = 60
BATCH = 128
WAVES = 4
COLOURS = 96  # channels that see single pixels
MOVES = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]  # where the picture starts on wider paper


def _block(given: int, made: int, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(given, made, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(made), nn.ReLU())


class Network(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to the logits (B, styles) of their styles."""

    def __init__(self, styles: int, colours: bool, width: int = 32) -> None:
        super().__init__()
        seen = 3 * (1 + 2 * WAVES) if colours else 3
        pixels = COLOURS if colours else 0
        self.pixels = (
            nn.Sequential(_block(seen, pixels, 1), _block(pixels, pixels, 1)) if colours else None
        )
        widths = [seen, width, 2 * width, 4 * width]
        self.scales = nn.ModuleList(
            nn.Sequential(_block(a, b), _block(b, b)) for a, b in pairwise(widths)
        )
        pooled = 2 * (pixels + sum(widths[1:]))
        self.head = nn.Sequential(
            nn.BatchNorm1d(pooled), nn.Dropout(0.2), nn.Linear(pooled, styles)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x - 1
        if self.pixels is not None:
            angles = [2**k * math.pi / 2 * x for k in range(WAVES)]
            x = torch.cat([x, *(a.sin() for a in angles), *(a.cos() for a in angles)], 1)
        maps = [] if self.pixels is None else [self.pixels(x)]
        for i, scale in enumerate(self.scales):
            x = scale(F.max_pool2d(x, 2) if i else x)
            maps.append(x)
        pooled = [p for m in maps for p in (m.mean((2, 3)), m.amax((2, 3)))]
        return self.head(torch.cat(pooled, 1).float())  # type: ignore[no-any-return]


class Styles:
    """The classifier, trained on pictures (B, 3, H, W) in [0, 1] and their styles (B,).

    Its networks are kept in ``folder``, and not trained again for the same pictures.
    """

    def __init__(self, pictures: Tensor, styles: Tensor, folder: Path) -> None:
        seen = hashlib.sha256(pictures.numpy().tobytes() + styles.numpy().tobytes()).hexdigest()
        self.networks = []
        for colours in (False, True):
            torch.manual_seed(0)
            network = Network(int(styles.max()) + 1, colours)
            path = folder / f"styles-{seen[:16]}-{EPOCHS}-{'colours' if colours else 'shapes'}.pt"
            if path.is_file():
                network.load_state_dict(torch.load(path))
            else:
                _train(network, pictures, styles)
                with atomic_write(path) as temporary:
                    torch.save(network.state_dict(), temporary)
            self.networks.append(network.eval())

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """The style (B,) of each picture."""
        return torch.cat([self._shares(p) for p in pictures.split(500)]).argmax(1)

    def _shares(self, pictures: Tensor) -> Tensor:
        wide = F.pad(pictures, (1, 1, 1, 1), value=1.0)
        h, w = pictures.shape[2:]
        moved = [wide[..., i : i + h, j : j + w] for i, j in MOVES]
        return torch.stack(
            [n(q).softmax(1) for n in self.networks for p in moved for q in (p, p.flip(3))]
        ).mean(0)


def _train(network: Network, pictures: Tensor, styles: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(network)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
    batch = min(BATCH, len(pictures))
    n = len(pictures) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 6e-3, total_steps=EPOCHS * n, pct_start=0.2
    )
    for epoch in range(EPOCHS):
        losses = []
        for rows in torch.randperm(len(pictures), generator=generator)[: n * batch].split(batch):
            x = _vary(pictures[rows], generator).contiguous(memory_format=torch.channels_last)
            with autocast(x.device, bf16=True):
                logits = forward(x)
            loss = F.cross_entropy(logits, styles[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"styles: {epoch + 1} of {EPOCHS}, loss {sum(losses) / n:.3f}", flush=True)


def _vary(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures mirrored, shifted, four in ten turned and scaled, seven in ten unevenly coloured."""
    n = len(x)
    chance = lambda p: torch.rand(n, 1, 1, 1, generator=generator) < p
    x = torch.where(chance(0.5), x.flip(3), x)
    down, right = torch.randint(7, (2,), generator=generator).tolist()
    size = x.shape[-1]
    x = F.pad(x, (3, 3, 3, 3), value=1.0)[..., down : down + size, right : right + size]
    x = torch.where(chance(0.4), turn(x, 12, generator, mode="bicubic").clamp(0, 1), x)
    return torch.where(chance(0.3), x, _uneven(x, generator))


def _uneven(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures blurred by up to half, with noise of up to 6 levels of 255 of single pixels and of
    quarters of the picture's side, and channels of ink 4 % stronger or weaker.
    """
    n, size = len(x), x.shape[-1]
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    most = lambda value: value * torch.rand(n, 1, 1, 1, generator=generator)
    coarse = F.interpolate(draw(n, 3, size // 4, size // 4), size=size, mode="bilinear")
    x = torch.lerp(x, blurred(x), most(0.5)) + draw(*x.shape) * most(6 / 255)
    return (1 - (1 - x - coarse * most(6 / 255)) * (1 + 0.04 * draw(n, 3, 1, 1))).clamp(0, 1)
