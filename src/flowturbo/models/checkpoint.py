"""Checkpoints: a folder with ``model.safetensors`` and ``card.json``; pickles are refused.

Weights are stored in half precision unless asked otherwise and loaded in float32. The only way in
for a pickle is `convert`, which loads with ``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from flowturbo.files import replacing
from flowturbo.models.codec import PIXELS, check_entry, with_autoencoder
from flowturbo.models.model import Model, rounded
from flowturbo.models.sit import SiT, SiTConfig

__all__ = [
    "CARD",
    "FORMAT",
    "WEIGHTS",
    "convert",
    "fill",
    "load_folder",
    "read_card",
    "read_tensors",
    "read_weights",
    "save_folder",
    "save_pair",
    "save_weights",
]

CARD, WEIGHTS = "card.json", "model.safetensors"
FORMAT = 1
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def save_folder(
    folder: str | Path,
    network: SiT,
    card: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a network and its card to ``folder``; either file is whole or untouched.

    Raises:
        ValueError: if a weight is not finite, or not in ``dtype``.
        OSError: if the folder cannot be written.
    """
    card = {
        "name": Path(folder).name,
        **card,
        "architecture": "sit",
        "config": network.config.to_dict(),
    }
    save_pair(Path(folder) / WEIGHTS, Path(folder) / CARD, network, card, dtype=dtype)


def save_pair(
    weights: Path, path: Path, network: nn.Module, card: dict[str, Any], *, dtype: torch.dtype
) -> None:
    """Write the weights of a network and its card; see ``save_folder``."""
    text = json.dumps({"format": FORMAT, **card}, indent=1, ensure_ascii=False)
    save_weights(weights, network, dtype)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def save_weights(path: Path, network: nn.Module, dtype: torch.dtype) -> None:
    """Write the weights of a network; see ``save_folder``."""
    tensors = {k: p.detach().cpu().to(dtype).contiguous() for k, p in network.state_dict().items()}
    _check_finite(tensors, f"the network to be saved as {dtype}")
    with replacing(path) as temporary:
        # not save_file, which leaves a file of its own behind when it is killed
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))


def load_folder(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    vae: str | Path | None = None,
) -> Model:
    """The model in ``folder``, for inference; with the autoencoder ``vae``, where one is given.

    Raises:
        ValueError: if a file is missing, corrupt, truncated, of another architecture or shape, or
            holds weights that are not finite.
    """
    folder = Path(folder)
    card = read_card(folder)
    if vae is not None:
        card = with_autoencoder(card, vae)
    try:
        config = SiTConfig.from_dict(card["config"])
    except ValueError as e:
        raise ValueError(f"{folder / CARD}: {e}") from e
    tensors = read_weights(folder / WEIGHTS)
    with torch.device("meta"):
        network = SiT(config)
    fill(network, tensors, str(folder / WEIGHTS), dtype)
    model = Model(network.to(device), card, folder)
    if vae is not None:
        model.codec  # noqa: B018 - refused now, where it was named
    return model.eval().requires_grad_(False)


def read_card(
    folder: Path, card: str = CARD, weights: str = WEIGHTS, architectures: Sequence[str] = ("sit",)
) -> dict[str, Any]:
    """The checked card of ``folder``."""
    if not folder.is_dir():
        raise ValueError(f"model folder {str(folder)!r} does not exist")
    pickles = [p.name for p in folder.iterdir() if p.suffix in _PICKLES]
    for name in (card, weights):
        if not (folder / name).is_file():
            if pickles:
                raise ValueError(_refuse_pickle(folder / pickles[0]))
            raise ValueError(f"{folder}: no {name}; want {card} and {weights}")
    try:
        made = json.loads((folder / card).read_text(encoding="utf-8"))
        known = isinstance(made, dict) and isinstance(made.get("config"), dict)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f"{folder / card}: not a JSON card ({e}); restore the file") from e
    if not known or made.get("format") != FORMAT:
        raise ValueError(f"{folder / card}: not a flowturbo card of format {FORMAT}")
    if made.get("architecture") not in architectures:
        raise ValueError(
            f"{folder / card}: architecture {made.get('architecture')!r} is not known; known: "
            f"{', '.join(map(repr, architectures))}"
        )
    _check_card(made, str(folder / card))
    return made  # type: ignore[no-any-return]


def _check_card(card: dict[str, Any], where: str) -> None:
    """Refuse a card whose entries are not what `Model` takes them for."""
    for key in ("condition", "defaults"):
        if not isinstance(card.get(key, {}), dict):
            raise ValueError(f"{where}: {key!r} must be an object, not {card[key]!r:.60}")
    about = card.get("condition", {})
    if about.get("kind") == "class":
        labels, classes = about.get("labels"), card["config"].get("classes", 0)
        if not isinstance(labels, list) or len(labels) != classes:
            count = len(labels) if isinstance(labels, list) else "no list of"
            raise ValueError(f"{where}: {count} labels for {classes} classes; restore the file")
    if about.get("kind") == "text" and not isinstance(about.get("tokenizer"), dict):
        raise ValueError(f"{where}: the condition has no tokenizer; restore the file")
    groups = about.get("groups", {})
    lists = [*groups.values()] if isinstance(groups, dict) else [None]
    if not all(isinstance(x, list) for x in [about.get("styles", []), *lists]):
        raise ValueError(f"{where}: 'styles' must be a list, 'groups' of lists; restore the file")
    check_entry(card.get("codec", PIXELS), where)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; pickles and damaged files are refused."""
    if path.suffix in _PICKLES:
        raise ValueError(_refuse_pickle(path))
    with path.open("rb") as f:
        if f.read(2) in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
            raise ValueError(_refuse_pickle(path))
    try:
        return load_file(path)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: corrupt or truncated ({e}); fetch or copy it again") from e


def convert(
    source: str | Path,
    target: str | Path,
    config: SiTConfig,
    card: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Turn a SiT checkpoint of others (official names; pickle or safetensors) into a folder.

    A pickle is loaded with ``weights_only=True``, so it cannot run code. Of a training checkpoint
    the weights under "ema", else "model", are taken.

    Raises:
        ValueError: if the file cannot be read that way, or names or shapes are not of ``config``.
    """
    tensors = read_tensors(source)
    with torch.device("meta"):
        network = SiT(config)
    fill(network, tensors, str(Path(source)), torch.float32)
    save_folder(target, network, card or {}, dtype=dtype)


def read_tensors(source: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of others, pickle or safetensors; see ``convert``."""
    source = Path(source)
    if not source.is_file():
        raise ValueError(f"checkpoint {str(source)!r} does not exist")
    if source.suffix == ".safetensors":
        return read_weights(source)
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f"{source}: not a checkpoint of plain tensors ({reason})") from e
    if not isinstance(found, dict):
        raise ValueError(f"{source}: holds a {type(found).__name__}, not a dict of tensors")
    nested = [found[k] for k in ("ema", "model", "state_dict") if isinstance(found.get(k), dict)]
    tensors: dict[str, Tensor] = nested[0] if nested else found
    named = lambda k, p: isinstance(k, str) and isinstance(p, Tensor)
    strange = [k for k, p in tensors.items() if not named(k, p)]
    if strange:
        raise ValueError(f"{source}: entry {strange[0]!r} is not a tensor with a name")
    return tensors


def fill(network: nn.Module, tensors: dict[str, Tensor], where: str, dtype: torch.dtype) -> None:
    """Fill a network made on the meta device, after checking names, shapes and values."""
    wanted = network.state_dict()
    missing, unknown = (
        sorted(wanted.keys() - tensors.keys()),
        sorted(tensors.keys() - wanted.keys()),
    )
    if missing or unknown:
        raise ValueError(
            f"{where}: another architecture: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}; check the config on the card"
        )
    for name, p in wanted.items():
        if tensors[name].shape != p.shape:
            raise ValueError(
                f"{where}: {name} is {tuple(tensors[name].shape)}, the config wants "
                f"{tuple(p.shape)}; check the config on the card"
            )
    _check_finite(tensors, where)
    network.load_state_dict(rounded(tensors, dtype), assign=True)


def _check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, p in tensors.items():
        if not p.isfinite().all():
            raise ValueError(f"{where}: {name} has NaN or infinite weights; restore the file")


def _refuse_pickle(path: Path) -> str:
    return (
        f"{path}: a pickle can run code when loaded, so it is refused; turn it into safetensors "
        f"with 'flowturbo convert {path.name} -o FOLDER'"
    )
