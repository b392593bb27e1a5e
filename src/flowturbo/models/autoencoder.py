"""A small convolutional autoencoder, stored in the folder of the model that generates its latents.

Both halves are residual blocks at each of a few sizes; the encoder halves the size by convolutions
of stride 2, the decoder doubles it by repeating pixels before a convolution. Latents are
standardised to mean 0 and standard deviation 1 per channel, with statistics that `standardise`
measures and that are stored with the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from flowturbo.models.weights import fill, read_weights, save_weights
from flowturbo.schema import Schema, check
from flowturbo.types import JsonObject

__all__ = ["Autoencoder", "AutoencoderConfig", "load_autoencoder", "save_autoencoder"]

WEIGHTS = "autoencoder.safetensors"


class AutoencoderConfig(Schema, extra="forbid"):
    """The architecture of an `Autoencoder`; checks itself.

    Attributes:
        channels: of images, 1 or 3.
        latent_channels: of latents.
        widths: channels at each size, the largest first; each size is half the one before.
        blocks: residual blocks at each size, as many numbers as ``widths``.
        groups: of the group norms, 0 for none; divides the ``widths``.
    """

    channels: Literal[1, 3] = 3
    latent_channels: Annotated[int, Field(ge=1, le=256)] = 8
    widths: Annotated[
        list[Annotated[int, Field(ge=1, le=2048)]], Field(min_length=1, max_length=6)
    ] = [32, 64, 64]  # noqa: RUF012
    blocks: list[Annotated[int, Field(ge=0, le=16)]] = [1, 1, 1]  # noqa: RUF012
    groups: Annotated[int, Field(ge=0, le=2048)] = 0

    @model_validator(mode="after")
    def _fits(self) -> AutoencoderConfig:
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"{len(self.blocks)} blocks for {len(self.widths)} widths")
        if self.groups and any(w % self.groups for w in self.widths):
            raise ValueError(f"widths {self.widths} must be multiples of groups={self.groups}")
        return self


class Autoencoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to latents (B, L, H/f, W/f) and back.

    Attributes:
        config: see `AutoencoderConfig`.
        channels: C, of images.
        latent_channels: L.
        factor: f, ratio of the side of an image to that of its latent.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.channels, self.latent_channels = config.channels, config.latent_channels
        self.factor = 2 ** (len(config.widths) - 1)
        widths, groups = config.widths, config.groups
        down: list[nn.Module] = [_conv(config.channels, widths[0])]
        up: list[nn.Module] = []
        for i, (width, count) in enumerate(zip(widths, config.blocks, strict=True)):
            if i:
                down.append(_conv(widths[i - 1], width, stride=2))
                up = [nn.Upsample(scale_factor=2), _conv(width, widths[i - 1]), *up]
            down += [_Block(width, groups) for _ in range(count)]
            up = [*(_Block(width, groups) for _ in range(count)), *up]
        self.encoder = nn.Sequential(*down, nn.SiLU(), _conv(widths[-1], config.latent_channels))
        self.decoder = nn.Sequential(
            _conv(config.latent_channels, widths[-1]),
            *up,
            nn.SiLU(),
            _conv(widths[0], self.channels),
        )
        self.register_buffer("mean", torch.zeros(config.latent_channels))
        self.register_buffer("std", torch.ones(config.latent_channels))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to latents."""
        z = self.encoder(images.to(self.mean.dtype))
        return (z - self.mean[:, None, None]) / self.std[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in about [-1, 1]."""
        z = latents.to(self.mean.dtype)
        return self.decoder(z * self.std[:, None, None] + self.mean[:, None, None])

    @torch.no_grad()
    def standardise(self, images: Iterable[Tensor]) -> None:
        """Set the mean and standard deviation of each channel to those of batches of images.

        Raises:
            ValueError: if a channel is the same everywhere.
        """
        count, total, squares = 0, 0.0, 0.0
        for part in images:
            z = self.encoder(part.to(self.mean)).double().transpose(0, 1).flatten(1)
            count, total, squares = count + z.shape[1], total + z.sum(1), squares + (z * z).sum(1)
        mean = torch.as_tensor(total) / max(count, 1)
        std = (torch.as_tensor(squares) / max(count, 1) - mean**2).clamp(min=0).sqrt()
        if not (std > 1e-6).all():
            raise ValueError("a channel of the latents is the same in all images; train it first")
        self.mean.copy_(mean)
        self.std.copy_(std)


def save_autoencoder(
    folder: str | Path, network: Autoencoder, *, dtype: torch.dtype = torch.float16
) -> JsonObject:
    """Write the weights to a model's ``folder``.

    Returns:
        The entry "codec" for the card of the model.

    Raises:
        ValueError: if a weight is not finite, or not in ``dtype``.
        OSError: if the folder cannot be written.
    """
    save_weights(Path(folder) / WEIGHTS, network, dtype)
    return {"kind": "autoencoder", "weights": WEIGHTS, "config": network.config.model_dump()}


def load_autoencoder(
    path: Path, config: JsonObject, device: str | torch.device, dtype: torch.dtype
) -> Autoencoder:
    """The autoencoder of ``config`` with the weights in ``path``, for inference.

    Raises:
        ValueError: if a file is missing, damaged or of another shape; names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, and the card names it; restore the file")
    tensors = read_weights(path)
    with torch.device("meta"):
        network = Autoencoder(check(config, AutoencoderConfig, f"codec of {path.parent}"))
    fill(network, tensors, str(path), dtype)
    if not (network.std > 0).all():
        raise ValueError(f"{path}: a standard deviation is not above 0; restore the file")
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)


class _Block(nn.Module):
    """``x + f(x)``, f two convolutions, each after a norm (or none) and SiLU."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        layers = []
        for _ in range(2):
            norm = [nn.GroupNorm(groups, width)] if groups else []
            layers += [*norm, nn.SiLU(), _conv(width, width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride, padding=1)
