"""Codecs: the states of a model to pictures and back.

The entry "codec" on a model's card says what its states are:

- ``{"kind": "pixels"}``: pictures, scaled from [0, 1] to [-1, 1];
- ``{"kind": "latent", "autoencoder": NAME, "channels": 4, "factor": 8}``: latents of an autoencoder
  of diffusers (`flowturbo.models.vae`). NAME is "hf:owner/repo" or a folder, relative to that of
  the model; the numbers, which may be missing, are the channels of a latent and how many times the
  side of a picture is that of its latent;
- ``{"kind": "autoencoder", "weights": FILE, "config": {...}}``: latents of a small autoencoder of
  our own, in the model's folder (`flowturbo.models.autoencoder`).

A kind is a schema of its entry and a function that makes the codec, both in one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from flowturbo.models.vae import VaeFolder, find_vae, load_vae, local
from flowturbo.schema import Schema, check

__all__ = [
    "PIXELS",
    "Codec",
    "Latents",
    "Pixels",
    "check_entry",
    "latent_codec",
    "latent_entry",
    "load_codec",
    "with_autoencoder",
]

PIXELS = {"kind": "pixels"}
MOST_PIXELS = 2**19  # of pictures that an autoencoder sees at a time: 8 of 256 x 256

Shape = tuple[int, int, int]


class Codec(Protocol):
    """What turns states into pictures and back."""

    name: str
    """Of the autoencoder; "pixels" where there is none."""
    entry: dict[str, Any]
    """For the card."""
    limits: tuple[float, float] | None
    """Of states, beyond which `decode` clips them; None if there are none."""

    @property
    def fingerprint(self) -> str | None:
        """16 hexadecimal digits of the weights; None if there are none."""
        ...

    def image_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the picture of a state of ``shape``."""
        ...

    def state_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the state of a picture of ``shape``; ``ValueError`` if it has none."""
        ...

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] to states, float32; the same each time."""
        ...

    def decode(self, states: Tensor) -> Tensor:
        """States (B, C, H, W) to pictures in [0, 1], float32."""
        ...

    def save(self, folder: Path) -> None:
        """Write what ``entry`` says is in the model's ``folder``."""
        ...


class Pixels:
    """States that are pictures, scaled from [0, 1] to [-1, 1]."""

    name = "pixels"
    entry: dict[str, Any] = PIXELS
    limits: tuple[float, float] | None = (-1.0, 1.0)
    fingerprint = None

    def image_shape(self, shape: Shape) -> Shape:
        """``shape``."""
        return shape

    def state_shape(self, shape: Shape) -> Shape:
        """``shape``."""
        return shape

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures in [0, 1] to states."""
        return pictures.float() * 2 - 1

    def decode(self, states: Tensor) -> Tensor:
        """States to pictures; what is out of their range is clipped."""
        return ((states.float() + 1) / 2).clamp(0, 1)

    def save(self, folder: Path) -> None:
        """Nothing to write."""


class Autoencoding(Protocol):
    """What `Latents` asks of a network."""

    channels: int
    latent_channels: int
    factor: int

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures in [-1, 1] to latents as models are trained on them."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Such latents to pictures in about [-1, 1]."""
        ...


class Latents:
    """States that are latents of an autoencoder, which sees a part of a large batch at a time.

    Attributes:
        name: of the autoencoder, for messages.
        entry: for the card.
        network: the autoencoder, an ``nn.Module``; it computes in its own dtype, and is moved to
            the device of what it is given.
    """

    limits: tuple[float, float] | None = None

    def __init__(self, name: str, entry: dict[str, Any], network: Any) -> None:
        self.name, self.entry, self.network = name, entry, network

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights, scale and shift."""
        from flowturbo.digests import fingerprint  # a model has a codec

        return fingerprint(self.network)

    def image_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the picture of a latent of ``shape``."""
        factor = self._network.factor
        return (self._network.channels, shape[1] * factor, shape[2] * factor)

    def state_shape(self, shape: Shape) -> Shape:
        """(C, H, W) of the latent of a picture of ``shape``.

        Raises:
            ValueError: if its channels or its size are not those of a picture with a latent.
        """
        channels, factor = self._network.channels, self._network.factor
        if shape[0] != channels or shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"pictures of {_times(shape)}: autoencoder {self.name!r} encodes {channels} "
                f"channels, height and width multiples of {factor}"
            )
        return (self._network.latent_channels, shape[1] // factor, shape[2] // factor)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] to the means of their latents, float32.

        Raises:
            ValueError: if they are of another shape.
        """
        shape = self.state_shape(_shape(pictures, "pictures"))
        network = self._at(pictures)
        parts = pictures.float().split(_most(pictures.shape[2] * pictures.shape[3]))
        made = [network.encode(part * 2 - 1).float() for part in parts]
        return torch.cat(made) if made else pictures.new_empty(0, *shape, dtype=torch.float32)

    def decode(self, states: Tensor) -> Tensor:
        """Latents (B, C, H, W) to pictures in [0, 1], float32.

        Raises:
            ValueError: if they are of another shape, or the pictures are not finite.
        """
        shape = _shape(states, "states")
        if shape[0] != self._network.latent_channels:
            raise ValueError(
                f"states of {_times(shape)}: autoencoder {self.name!r} decodes "
                f"{self._network.latent_channels} channels"
            )
        shown = self.image_shape(shape)
        network = self._at(states)
        parts = states.float().split(_most(shown[1] * shown[2]))
        made = [(network.decode(part).float() / 2 + 0.5).clamp(0, 1) for part in parts]
        pictures = torch.cat(made) if made else states.new_empty(0, *shown, dtype=torch.float32)
        if not pictures.isfinite().all():
            dtype = next(self.network.parameters()).dtype
            raise ValueError(
                f"autoencoder {self.name!r} gives pictures that are not finite in {dtype}; "
                "compute in float32 (--dtype float32)"
            )
        return pictures

    def save(self, folder: Path) -> None:
        """Write the weights of our own to ``folder``; those of diffusers stay where they are."""
        from flowturbo.models.autoencoder import Autoencoder, save_autoencoder  # reads checkpoints

        if isinstance(self.network, Autoencoder):
            save_autoencoder(folder, self.network)

    @property
    def _network(self) -> Autoencoding:
        return self.network  # type: ignore[no-any-return]

    def _at(self, x: Tensor) -> Autoencoding:
        module: nn.Module = self.network
        if next(module.parameters()).device != x.device:
            module.to(x.device)
        return self._network


class _PixelsEntry(Schema):
    kind: Literal["pixels"]


class _LatentEntry(Schema):
    kind: Literal["latent"]
    autoencoder: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    channels: Annotated[int, Field(ge=1, le=4096)] | None = None
    factor: Annotated[int, Field(ge=1, le=256)] | None = None


class _OwnEntry(Schema):
    kind: Literal["autoencoder"]
    weights: Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.safetensors$", max_length=200)]
    config: dict[str, Any]


def check_entry(entry: Any, where: str) -> None:
    """The ``ValueError`` that the entry "codec" of a card is refused with; ``where`` names it."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"{where}: codec {entry!r:.60}: must be an object whose kind is one of "
            f"{', '.join(map(repr, _KINDS))}; restore the file"
        )
    check(entry, _KINDS[kind][0], f"{where}: codec")


def load_codec(
    entry: Mapping[str, Any],
    shape: Shape,
    *,
    model: str,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Codec:
    """The codec that a card's ``entry`` says, for states of ``shape``.

    Args:
        entry: the entry, checked.
        shape: (C, H, W) of the model's states.
        model: its name, for messages.
        folder: of the model.
        device: where to put an autoencoder.
        dtype: what it computes in; see `flowturbo.models.vae.load_vae`.

    Raises:
        ValueError: if the autoencoder is missing, damaged, or of other states.
        ImportError: if it needs diffusers, and that is missing.
    """
    return _KINDS[entry["kind"]][1](dict(entry), shape, model, folder, device, dtype)


def latent_entry(vae: str | Path, home: Path | None = None) -> dict[str, Any]:
    """The entry "codec" for the card of a model of latents of the autoencoder ``vae``.

    Args:
        vae: a folder, or "hf:owner/repo", which is fetched; see `flowturbo.models.vae.find_vae`.
        home: the model's folder; an autoencoder inside it is named relative to it, others by their
            absolute path.

    Raises:
        ValueError: if there is no such autoencoder.
    """
    return _entry(find_vae(str(vae)), home)


def latent_codec(
    vae: str | Path,
    *,
    home: Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Latents:
    """The codec of the autoencoder ``vae``, to train on its latents; see `latent_entry`.

    Raises:
        ValueError: if there is no such autoencoder, or its files are damaged.
        ImportError: if diffusers is missing.
    """
    found = find_vae(str(vae))
    return Latents(found.name, _entry(found, home), load_vae(found, device, dtype))


def _entry(found: VaeFolder, home: Path | None) -> dict[str, Any]:
    name = found.name
    if not name.startswith("hf:"):
        path = local(name).resolve()
        inside = home is not None and home.resolve() in path.parents
        name = path.relative_to(home.resolve()).as_posix() if home and inside else str(path)
    sizes = {"channels": found.latent_channels, "factor": found.factor}
    return {"kind": "latent", "autoencoder": name, **sizes}


def with_autoencoder(card: Mapping[str, Any], vae: str | Path) -> dict[str, Any]:
    """``card`` of a model of latents, with another autoencoder.

    Raises:
        ValueError: if the model does not draw latents of an autoencoder of diffusers, or there is
            no such autoencoder.
    """
    entry = card.get("codec", PIXELS)
    if entry["kind"] != "latent":
        draws = "pixels" if entry["kind"] == "pixels" else "latents of the autoencoder it came with"
        raise ValueError(
            f"vae={str(vae)!r}: model {card.get('name', 'unnamed')!r} draws {draws}; leave vae out"
        )
    named = latent_entry(vae)["autoencoder"]
    return {**card, "codec": {**entry, "autoencoder": named}}


def _pixels(entry: dict[str, Any], *_: Any) -> Codec:
    return Pixels()


def _latents(
    entry: dict[str, Any], shape: Shape, model: str, folder: Path | None, device: Any, dtype: Any
) -> Codec:
    name = entry.get("autoencoder")
    fix = "pass --vae FOLDER or --vae hf:owner/repo (in Python, vae=... of flowturbo.load)"
    if name is None:
        raise ValueError(f"model {model!r} draws latents, and its card names no autoencoder; {fix}")
    try:
        found = find_vae(name, folder)
    except ValueError as e:
        raise ValueError(f"model {model!r} draws latents; {e}; {fix}") from e
    made_for = entry.get("factor") or found.factor
    if shape[0] != found.latent_channels or made_for != found.factor:
        raise ValueError(
            f"autoencoder {name!r} decodes latents of {found.latent_channels} channels to pictures "
            f"{found.factor} times as large, and model {model!r} gives latents of {_times(shape)} "
            f"for pictures {made_for} times as large; {fix}"
        )
    return Latents(name, entry, load_vae(found, device, dtype))


def _own(
    entry: dict[str, Any], shape: Shape, model: str, folder: Path | None, device: Any, dtype: Any
) -> Codec:
    from flowturbo.models.autoencoder import load_autoencoder  # reads checkpoints

    path = (folder or Path()) / entry["weights"]
    network = load_autoencoder(path, entry["config"], device, dtype)
    if shape[0] != network.latent_channels:
        raise ValueError(
            f"{path}: decodes latents of {network.latent_channels} channels, and model {model!r} "
            f"gives {_times(shape)}; restore the files"
        )
    return Latents(entry["weights"], entry, network)


_KINDS: dict[str, tuple[type[Schema], Any]] = {
    "pixels": (_PixelsEntry, _pixels),
    "latent": (_LatentEntry, _latents),
    "autoencoder": (_OwnEntry, _own),
}


def _most(pixels: int) -> int:
    return max(1, MOST_PIXELS // pixels)


def _shape(x: Tensor, what: str) -> Shape:
    if x.ndim != 4:
        raise ValueError(f"{what} of shape {tuple(x.shape)}: must be (B, C, H, W)")
    return tuple(x.shape[1:])  # type: ignore[return-value]


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))
