"""Checkpoints: a folder with ``model.safetensors`` and ``card.json``; pickles are refused.

Weights are stored in half precision by default and loaded in float32. The card is
checked against its schema, and the names, shapes and types in the header of the weights against the
card, before anything is read. Only `convert` reads pickles, see `flowturbo.models.official`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowturbo.files import atomic_write, printable, reserved
from flowturbo.models import official
from flowturbo.models.codec import PIXELS
from flowturbo.models.codec_entry import check_entry, with_autoencoder
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.models.weights import (
    check_fit,
    fill,
    is_safetensors,
    packed,
    read_header,
    read_weights,
    refused_pickle,
    write_packed,
)
from flowturbo.types import JsonObject

if TYPE_CHECKING:  # pydantic is imported with the first card
    from flowturbo.schema import Schema

__all__ = [
    "CARD",
    "FORMAT",
    "WEIGHTS",
    "convert",
    "load_folder",
    "read_card",
    "read_tensors",
    "save_folder",
    "save_pair",
]

CARD, WEIGHTS = "card.json", "model.safetensors"
FORMAT = 1
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def save_folder(
    folder: str | Path,
    network: SiT,
    card: JsonObject,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a network and its card to ``folder``; each file is written whole or left untouched.

    Raises:
        ValueError: if a weight is not a real number, not finite, or not in ``dtype``, or if
            ``load_folder`` would refuse the card.
        OSError: if the folder cannot be written.
    """
    from flowturbo.models.card import ModelCard
    from flowturbo.schema import check

    card = {
        "format": FORMAT,
        "name": printable(Path(folder).name),
        **card,
        "architecture": "sit",
        "config": network.config.to_dict(),
    }
    check(card, ModelCard, f"card of {folder}", "correct it")
    save_pair(Path(folder) / WEIGHTS, Path(folder) / CARD, network, card, dtype=dtype)


def save_pair(
    weights: Path, path: Path, network: nn.Module, card: JsonObject, *, dtype: torch.dtype
) -> None:
    """Write the weights of a network and its card; see ``save_folder``."""
    text = json.dumps({"format": FORMAT, **card}, indent=1, ensure_ascii=False)
    content = packed(weights, network, dtype)
    with reserved(weights, path):  # of two runs, one writes both files
        write_packed(weights, content)
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def load_folder(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    vae: str | Path | None = None,
) -> Model:
    """The model in ``folder``, for inference; with the autoencoder ``vae``, if one is given.

    Raises:
        ValueError: if a file is missing, corrupt, truncated, of another architecture or shape, or
            holds weights that are not finite.
    """
    folder = Path(folder)
    card, weights = read_card(folder), folder / WEIGHTS
    if vae is not None:
        card = with_autoencoder(card, vae)
    config = SiTConfig.from_dict(card["config"])
    header = read_header(weights, config.depth)
    with torch.device("meta"):
        network = SiT(config)
    check_fit(network, header, str(weights))
    fill(network, read_weights(weights), str(weights), dtype)
    model = Model(network.to(device), card, folder)
    if vae is not None:
        model.codec  # noqa: B018 - refused now, where it was named
    return model.eval().requires_grad_(False)


def read_card(
    folder: Path, card: str = CARD, weights: str = WEIGHTS, schema: type[Schema] | None = None
) -> JsonObject:
    """The card of ``folder``, checked against ``schema``, by default that of models.

    Raises:
        ValueError: if a file is missing, or the card is not of the schema.
    """
    from flowturbo.models.card import ModelCard
    from flowturbo.schema import check, load_json

    if not folder.is_dir():
        raise ValueError(f"model folder {str(folder)!r} does not exist")
    for name in (card, weights):
        if not (folder / name).is_file():
            if (folder / "model_index.json").is_file():
                raise ValueError(
                    f"{folder}: a pipeline of diffusers, not a model of flowturbo; load it with "
                    "diffusers, then flowturbo.integrations.diffusers.enable(pipe, plan)"
                )
            pickles = [p.name for p in folder.iterdir() if p.suffix in _PICKLES]
            if pickles:
                raise ValueError(refused_pickle(folder / pickles[0]))
            found = f"{name} is not a regular file" if (folder / name).exists() else f"no {name}"
            raise ValueError(f"{folder}: {found}; want {card} and {weights}")
    made = load_json(folder / card)
    check(made, schema or ModelCard, str(folder / card))
    check_entry(made.get("codec", PIXELS), str(folder / card))
    return made


def convert(
    source: str | Path,
    target: str | Path,
    config: SiTConfig,
    card: JsonObject | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Convert a SiT checkpoint with the official names, a pickle or safetensors, to a folder.

    A pickle is loaded with ``weights_only=True``, so it cannot run code; see
    `flowturbo.models.official`.

    Raises:
        ValueError: if the file cannot be read that way, names, types or shapes do not fit
            ``config``, naming what to change in it, or another run is writing the folder.
        OSError: if the folder cannot be written.
    """
    tensors = read_tensors(source)
    with torch.device("meta"):
        network = SiT(config)
    fill(network, tensors, str(source), torch.float32, official.fix(tensors, config))
    save_folder(target, network, card or {}, dtype=dtype)


def read_tensors(source: str | Path) -> dict[str, Tensor]:
    """The weights in a third-party checkpoint, pickle or safetensors, by their plain names."""
    source = Path(source)
    if not source.is_file():
        what = "is not a regular file" if source.exists() else "does not exist"
        raise ValueError(f"checkpoint {str(source)!r} {what}")
    if not is_safetensors(source):
        return official.plain(official.unpickled(source), source)
    read_header(source)
    return official.plain(read_weights(source), source)
