"""The entry "codec" on a model's card: its check, and the codec that it names.

A kind is a schema of its entry and a function that makes the codec, both in one table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from flowturbo.models.autoencoder import load_autoencoder
from flowturbo.models.codec import PIXELS, Codec, Latents, Pixels, Shape, size_text
from flowturbo.models.vae import VaeFolder, find_vae, load_vae, local
from flowturbo.schema import Schema, check
from flowturbo.types import JsonObject, ReadOnlyJson

__all__ = ["check_entry", "latent_codec", "latent_entry", "load_codec", "with_autoencoder"]


Placement = tuple[str | torch.device, torch.dtype]


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
    config: JsonObject


def check_entry(entry: object, where: str) -> None:
    """Refuse a wrong entry "codec" of a card; ``where`` names it."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"{where}: codec {entry!r:.60}: must be an object whose kind is one of "
            f"{', '.join(map(repr, _KINDS))}; restore the file"
        )
    check(entry, _KINDS[kind][0], f"{where}: codec")


def load_codec(
    entry: ReadOnlyJson,
    shape: Shape,
    *,
    model: str,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Codec:
    """The codec of a card's ``entry``, for states of ``shape``.

    Args:
        entry: the entry, checked.
        shape: (C, H, W) of the model's states.
        model: its name, for messages.
        folder: of the model.
        device: where to put an autoencoder.
        dtype: precision to compute in; see `flowturbo.models.vae.load_vae`.

    Raises:
        ValueError: if the autoencoder is missing, damaged, or of other states.
        ImportError: if it needs diffusers, and that is missing.
    """
    return _KINDS[entry["kind"]][1](dict(entry), shape, model, folder, (device, dtype))


def latent_entry(vae: str | Path, home: Path | None = None) -> JsonObject:
    """The entry "codec" for the card of a latent model of the autoencoder ``vae``.

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


def _entry(found: VaeFolder, home: Path | None) -> JsonObject:
    name = found.name
    if not name.startswith("hf:"):
        path = local(name).resolve()
        inside = home is not None and home.resolve() in path.parents
        name = path.relative_to(home.resolve()).as_posix() if home and inside else str(path)
    sizes = {"channels": found.latent_channels, "factor": found.factor}
    return {"kind": "latent", "autoencoder": name, **sizes}


def with_autoencoder(card: ReadOnlyJson, vae: str | Path) -> JsonObject:
    """``card`` of a latent model, with another autoencoder.

    Raises:
        ValueError: if the model does not generate latents of an autoencoder of diffusers, or
            there is no such autoencoder.
    """
    entry = card.get("codec", PIXELS)
    if entry["kind"] != "latent":
        pixels = entry["kind"] == "pixels"
        states = "pixels" if pixels else "latents of the autoencoder it came with"
        name = card.get("name", "unnamed")
        raise ValueError(f"vae={str(vae)!r}: model {name!r} generates {states}; leave vae out")
    named = latent_entry(vae)["autoencoder"]
    return {**card, "codec": {**entry, "autoencoder": named}}


def _pixels(entry: JsonObject, *_: object) -> Codec:
    return Pixels()


def _latents(
    entry: JsonObject, shape: Shape, model: str, folder: Path | None, place: Placement
) -> Codec:
    name = entry.get("autoencoder")
    fix = "pass --vae FOLDER or --vae hf:owner/repo (in Python, vae=... of flowturbo.load)"
    if name is None:
        raise ValueError(
            f"model {model!r} generates latents, and its card names no autoencoder; {fix}"
        )
    try:
        found = find_vae(name, folder)
    except ValueError as e:
        raise ValueError(f"model {model!r} generates latents; {e}; {fix}") from e
    made_for = entry.get("factor") or found.factor
    if shape[0] != found.latent_channels or made_for != found.factor:
        raise ValueError(
            f"autoencoder {name!r} decodes latents of {found.latent_channels} channels to images "
            f"{found.factor} times as large, and model {model!r} generates latents of "
            f"{size_text(shape)} for images {made_for} times as large; {fix}"
        )
    return Latents(name, entry, load_vae(found, *place))


def _own(
    entry: JsonObject, shape: Shape, model: str, folder: Path | None, place: Placement
) -> Codec:
    path = (folder or Path()) / entry["weights"]
    network = load_autoencoder(path, entry["config"], *place)
    if shape[0] != network.latent_channels:
        raise ValueError(
            f"{path}: decodes latents of {network.latent_channels} channels, and model {model!r} "
            f"generates {size_text(shape)}; restore the files"
        )
    return Latents(entry["weights"], entry, network)


_KINDS: dict[str, tuple[type[Schema], Callable[..., Codec]]] = {
    "pixels": (_PixelsEntry, _pixels),
    "latent": (_LatentEntry, _latents),
    "autoencoder": (_OwnEntry, _own),
}
