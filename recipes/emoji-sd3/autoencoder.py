"""The autoencoder of `emoji-sd3`: images of 128 x 128 to latents of 16 x 16 x 16 and back.

    python recipes/emoji/data.py --size 128 --out emoji-data128
    python recipes/emoji-sd3/autoencoder.py --data emoji-data128 --out runs/emoji-sd3/autoencoder

An `AutoencoderKL` of diffusers, trained on images shifted, scaled and mirrored, by the absolute
error of pixels, of their differences, and of averages over 8 x 8; without a Kullback-Leibler term,
so its posterior becomes a point. The decoder is trained on latents with a little noise, since those
of a sampler are never exact. An interrupted run is resumed; `vae` in the folder is the autoencoder,
with its scale and shift, for ``from_pretrained``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from flowturbo.images import image_grid, save_png, to_pil
from flowturbo.training import TrainConfig
from flowturbo.training.loop import run
from flowturbo.training.processes import Processes

sys.path.insert(0, str(Path(__file__).parents[1] / "emoji"))
from augment import augment  # type: ignore[import-not-found]
from data import load  # type: ignore[import-not-found]

CHANNELS = 16
NOISE = 0.15  # the most, of the standard deviation of latents
TRAINING = TrainConfig(
    steps=4000, batch=16, lr=1e-3, warmup=200, tail=0.4, ema=0.998, weight_decay=1e-4,
    save_every=200, preview_every=1000,
)  # fmt: skip
CONFIG: dict[str, Any] = dict(
    in_channels=3, out_channels=3, latent_channels=CHANNELS, block_out_channels=(24, 48, 96, 96),
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1, norm_num_groups=8, sample_size=128, mid_block_add_attention=False,
    use_quant_conv=False, use_post_quant_conv=False, force_upcast=False,
)  # fmt: skip


def make() -> AutoencoderKL:
    """A new autoencoder whose posterior has no width."""
    torch.manual_seed(TRAINING.seed)
    vae = AutoencoderKL(**CONFIG)
    with torch.no_grad():
        vae.encoder.conv_out.weight[CHANNELS:] = 0
        vae.encoder.conv_out.bias[CHANNELS:] = -30
    return vae


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
    """What `flowturbo.training.loop.run` needs; ``save(autoencoder, pictures, training)`` exports.

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

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.pictures), (n,), generator=generator)
        x = augment(self.pictures[rows].float() / 127.5 - 1, generator, mirror=0.5)
        strength = NOISE * torch.rand(n, 1, 1, 1, generator=generator)
        noise = strength * torch.randn(n, *self.latent, generator=generator)
        return x, noise

    def loss(self, forward: Any, batch: tuple[Tensor, Tensor], device: torch.device) -> Tensor:
        x = batch[0].contiguous(memory_format=torch.channels_last)
        return forward(x.to(device), batch[1].to(device))  # type: ignore[no-any-return]

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
        save_png(
            image_grid(to_pil(shown[0]), 10), self.out / "previews" / f"step-{step:08d}.png", {}
        )


def batches(pictures: Tensor, n: int = 128) -> Iterator[Tensor]:
    """Pictures (N, 3, H, W) uint8 as (n, 3, H, W) in [-1, 1]."""
    for part in pictures.split(n):
        yield (part.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def split(folder: str | Path, size: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, size, size) uint8 to be trained on, and those held out."""
    images, concept, style, about = load(folder, size)
    held = {tuple(pair) for pair in about["held"]}
    out = torch.tensor([p in held for p in zip(concept.tolist(), style.tolist(), strict=True)])
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pictures[~out], pictures[out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that data.py made, of 128 px")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-sd3/autoencoder"))
    options = parser.parse_args()

    def save(vae: AutoencoderKL, pictures: Tensor, training: dict[str, Any]) -> None:
        z = torch.cat([vae.encode(x).latent_dist.mean for x in batches(pictures[::20])])
        scale = {"shift_factor": float(z.mean()), "scaling_factor": float(1 / z.std())}
        vae.register_to_config(**scale)
        vae.save_pretrained(options.out / "vae")

    vae = make()
    network = Reconstruction(vae, vae.encoder, vae.decoder, pool=8)
    there_and_back = lambda vae, x: vae.decode(vae.encode(x).latent_dist.mean).sample
    objective = Objective(
        network, split(options.data, 128), (CHANNELS, 16, 16), TRAINING, options.out, save,
        there_and_back,
    )  # fmt: skip
    made = {"training": asdict(TRAINING), "autoencoder": CONFIG}
    processes = Processes()
    with processes.exclusive(options.out):
        run(objective, options.out, TRAINING, made, processes, partial(print, flush=True))


if __name__ == "__main__":
    main()
