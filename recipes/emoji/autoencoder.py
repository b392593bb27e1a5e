"""The autoencoder of `emoji`: pictures of 64 x 64 to latents of 16 x 16 x 8 and back.

    python recipes/emoji/data.py --out emoji-data
    python recipes/emoji/autoencoder.py --data emoji-data --out runs/emoji-autoencoder

It is trained on pictures shifted, scaled and mirrored, by the absolute error of pixels, of their
differences, and of averages over 4 x 4. The decoder is shown latents with a little noise, for a
sampler's are never exact. It goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from augment import augment
from data import load
from torch import Tensor, nn

from flowturbo.files import write_json
from flowturbo.images import save_png, sheet, to_pil
from flowturbo.models.autoencoder import Autoencoder, AutoencoderConfig, save_autoencoder
from flowturbo.train import TrainConfig
from flowturbo.train.loop import run

__all__ = ["Objective", "Reconstruction", "batches"]

NOISE = 0.15  # the most, of the standard deviation of latents
CONFIG = AutoencoderConfig(widths=[32, 64, 128], blocks=[1, 1, 1], groups=8)
TRAINING = TrainConfig(
    steps=2400, batch=32, lr=2e-3, warmup=200, tail=0.4, ema=0.998, weight_decay=1e-4,
    save_every=200, preview_every=800,
)  # fmt: skip


class Reconstruction(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1], and noise like their latents, to the loss.

    Args:
        autoencoder: kept as it is.
        encoder, decoder: its halves: pictures to latents, and latents to pictures.
        pool: side of the averages.
    """

    def __init__(
        self, autoencoder: nn.Module, encoder: nn.Module, decoder: nn.Module, pool: int
    ) -> None:
        super().__init__()
        self.autoencoder, self.pool = autoencoder, pool
        self._halves = (encoder, decoder)  # in a tuple they are not registered a second time

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        encoder, decoder = self._halves
        z = encoder(x)[:, : noise.shape[1]]  # a second half would be a variance
        spread = z.detach().float().std((0, 2, 3), keepdim=True)
        error = decoder(z + spread * noise).float() - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + edges + 0.5 * F.avg_pool2d(error, self.pool).abs().mean()


class Objective:
    """What `flowturbo.train.loop.run` needs; ``save(autoencoder, pictures, training)`` exports.

    Args:
        network: to be trained.
        pictures: (N, 3, H, W) uint8.
        latent: (L, h, w) of a latent.
        config: how.
        out: where previews go.
        save: writes the averaged autoencoder.
        encode_decode: pictures (B, 3, H, W) in [-1, 1] there and back, by an autoencoder.
    """

    def __init__(
        self, network: Reconstruction, pictures: tuple[Tensor, Tensor], latent: tuple[int, ...],
        config: TrainConfig, out: Path, save: Any, encode_decode: Any,
    ) -> None:  # fmt: skip
        self.network: Any = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.pictures, self.held = pictures
        self.latent, self.config, self.out = latent, config, out
        self.save, self.encode_decode = save, encode_decode

    def loss(self, forward: Any, generator: torch.Generator, device: torch.device) -> Tensor:
        n = self.config.batch
        rows = torch.randint(len(self.pictures), (n,), generator=generator)
        x = augment(self.pictures[rows].float() / 127.5 - 1, generator, mirror=0.5)
        strength = NOISE * torch.rand(n, 1, 1, 1, generator=generator)
        noise = strength * torch.randn(n, *self.latent, generator=generator)
        x = x.contiguous(memory_format=torch.channels_last)
        return forward(x.to(device), noise.to(device))  # type: ignore[no-any-return]

    @torch.no_grad()
    def export(self, network: Any, training: dict[str, Any]) -> None:
        self.save(network.autoencoder, self.pictures, training)

    @torch.no_grad()
    def preview(self, network: Any, step: int) -> None:
        """Ten pictures held out, above what becomes of them; prints how near all of them come."""
        shown, errors = [], []
        for x in batches(self.held):
            y = self.encode_decode(network.autoencoder, x).clamp(-1, 1)
            errors.append((y - x).square().mean((1, 2, 3)) / 4)
            shown.append(torch.cat([x[:10], y[:10]]) / 2 + 0.5)
        decibels = float(-10 * torch.cat(errors).log10().mean())
        print(f"step {step:6d}  held out: {decibels:.2f} dB", flush=True)
        save_png(sheet(to_pil(shown[0]), 10), self.out / "previews" / f"step-{step:08d}.png", {})


def batches(pictures: Tensor, n: int = 128) -> Iterator[Tensor]:
    """Pictures (N, 3, H, W) uint8 as (n, 3, H, W) in [-1, 1]."""
    for part in pictures.split(n):
        yield (part.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def split(folder: str | Path, size: int = 64) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, size, size) uint8 to be trained on, and those held out."""
    images, concept, style, about = load(folder, size)
    held = {tuple(pair) for pair in about["held"]}
    out = torch.tensor([p in held for p in zip(concept.tolist(), style.tolist(), strict=True)])
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pictures[~out], pictures[out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that data.py made")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-autoencoder"))
    options = parser.parse_args()

    def save(network: Autoencoder, pictures: Tensor, training: dict[str, Any]) -> None:
        network.standardise(batches(pictures[::10]))
        codec = save_autoencoder(options.out, network)
        write_json(options.out / "autoencoder.json", codec | {"training": training})

    torch.manual_seed(TRAINING.seed)
    made = Autoencoder(CONFIG)
    network = Reconstruction(made, made.encoder, made.decoder, pool=4)
    there_and_back = lambda network, x: network.decoder(network.encoder(x))
    objective = Objective(
        network, split(options.data), (8, 16, 16), TRAINING, options.out, save, there_and_back
    )
    about = {"training": asdict(TRAINING), "autoencoder": CONFIG.model_dump()}
    report = lambda step, loss: print(f"step {step:6d}  loss {loss:.4f}", flush=True)
    run(objective, options.out, TRAINING, about, report)


if __name__ == "__main__":
    main()
