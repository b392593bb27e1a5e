"""Codecs, which convert the states of a model to images and back.

The entry "codec" on a model's card says what its states are; see `flowturbo.models.codec_entry`:

- ``{"kind": "pixels"}``: images, scaled from [0, 1] to [-1, 1];
- ``{"kind": "latent", "autoencoder": NAME, "channels": 4, "factor": 8}``: latents of an autoencoder
  of diffusers (`flowturbo.models.vae`). NAME is "hf:owner/repo" or a folder, relative to that of
  the model; the numbers, which may be missing, are the channels of a latent and the ratio of the
  side of an image to that of its latent;
- ``{"kind": "autoencoder", "weights": FILE, "config": {...}}``: latents of one of this library's
  small autoencoders, in the model's folder (`flowturbo.models.autoencoder`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from flowturbo.digests import fingerprint
from flowturbo.models.autoencoder import Autoencoder, save_autoencoder
from flowturbo.models.vae import Vae
from flowturbo.types import JsonObject

__all__ = [
    "PIXELS",
    "Codec",
    "Latents",
    "Pixels",
    "size_text",
]

PIXELS = {"kind": "pixels"}
MOST_PIXELS = 2**19  # of images that an autoencoder takes at a time: 8 of 256 x 256

Shape = tuple[int, int, int]


class Codec(Protocol):
    """Converts states to images and back."""

    name: str
    """Of the autoencoder; "pixels" where there is none."""
    entry: JsonObject
    """For the card."""
    limits: tuple[float, float] | None
    """The range of states, to which `decode` clips them; None if they have none."""

    @property
    def fingerprint(self) -> str | None:
        """16 hexadecimal digits of the weights; None if there are none."""
        ...

    def image_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the image of a state of ``shape``."""
        ...

    def state_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the state of an image of ``shape``; ``ValueError`` if it has none."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to states, float32; the same each time."""
        ...

    def decode(self, states: Tensor) -> Tensor:
        """States (B, C, H, W) to images in [0, 1], float32."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that ``entry`` names in the model's ``folder``."""
        ...


class Pixels:
    """States that are images, scaled from [0, 1] to [-1, 1]."""

    name = "pixels"
    entry: JsonObject = PIXELS
    limits: tuple[float, float] | None = (-1.0, 1.0)
    fingerprint = None

    def image_shape(self, shape: Shape) -> Shape:
        """``shape``."""
        return shape

    def state_shape(self, shape: Shape) -> Shape:
        """``shape``."""
        return shape

    def encode(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to states."""
        return images.float() * 2 - 1

    def decode(self, states: Tensor) -> Tensor:
        """States to images; what is out of their range is clipped."""
        return ((states.float() + 1) / 2).clamp(0, 1)

    def save(self, folder: Path) -> None:
        """Nothing to write."""


class Latents:
    """States that are latents of an autoencoder; it takes large batches in parts.

    Attributes:
        name: of the autoencoder, for messages.
        entry: for the card.
        network: the autoencoder; it computes in its own dtype, and is moved to the device of its
            input.
    """

    limits: tuple[float, float] | None = None

    def __init__(self, name: str, entry: JsonObject, network: Autoencoder | Vae) -> None:
        self.name, self.entry, self.network = name, entry, network

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights, scale and shift."""
        return fingerprint(self.network)

    def image_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the image of a latent of ``shape``."""
        factor = self.network.factor
        return (self.network.channels, shape[1] * factor, shape[2] * factor)

    def state_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the latent of an image of ``shape``.

        Raises:
            ValueError: if its channels or its size are not those of an image with a latent.
        """
        channels, factor = self.network.channels, self.network.factor
        if shape[0] != channels or shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"images of {size_text(shape)}: autoencoder {self.name!r} encodes {channels} "
                f"channels, height and width multiples of {factor}"
            )
        return (self.network.latent_channels, shape[1] // factor, shape[2] // factor)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to the means of their latents, float32.

        Raises:
            ValueError: if they are of another shape.
        """
        shape = self.state_shape(_shape(images, "images"))
        network = self._at(images)
        parts = images.float().split(_most(images.shape[2] * images.shape[3]))
        made = [network.encode(part * 2 - 1).float() for part in parts]
        return torch.cat(made) if made else images.new_empty(0, *shape, dtype=torch.float32)

    def decode(self, states: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images in [0, 1], float32.

        Raises:
            ValueError: if they are of another shape, or the images are not finite.
        """
        shape = _shape(states, "states")
        if shape[0] != self.network.latent_channels:
            raise ValueError(
                f"states of {size_text(shape)}: autoencoder {self.name!r} decodes "
                f"{self.network.latent_channels} channels"
            )
        shown = self.image_shape(shape)
        network = self._at(states)
        parts = states.float().split(_most(shown[1] * shown[2]))
        made = [(network.decode(part).float() / 2 + 0.5).clamp(0, 1) for part in parts]
        images = torch.cat(made) if made else states.new_empty(0, *shown, dtype=torch.float32)
        if not images.isfinite().all():
            dtype = next(self.network.parameters()).dtype
            raise ValueError(
                f"autoencoder {self.name!r} gives images that are not finite in {dtype}; "
                "compute in float32 (--dtype float32)"
            )
        return images

    def save(self, folder: Path) -> None:
        """Write the weights of our own to ``folder``; those of diffusers stay where they are."""
        if isinstance(self.network, Autoencoder):
            save_autoencoder(folder, self.network)

    def _at(self, x: Tensor) -> Autoencoder | Vae:
        if next(self.network.parameters()).device != x.device:
            self.network.to(x.device)
        return self.network


def _most(pixels: int) -> int:
    return max(1, MOST_PIXELS // pixels)


def _shape(x: Tensor, what: str) -> Shape:
    if x.ndim != 4:
        raise ValueError(f"{what} of shape {tuple(x.shape)}: must be (B, C, H, W)")
    return tuple(x.shape[1:])  # type: ignore[return-value]


def size_text(shape: Shape) -> str:
    """``"3x32x32"``, for a message."""
    return "x".join(map(str, shape))
