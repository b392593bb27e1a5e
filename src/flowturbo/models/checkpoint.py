"""Checkpoints: a folder with ``model.safetensors`` and ``card.json``; pickles are refused.

Weights are stored in half precision unless asked otherwise and loaded in float32. The card is
checked against its schema, and the names, shapes and types in the header of the weights against the
card, before anything is read. The only way in for a pickle is `convert`, see
`flowturbo.models.official`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from flowturbo.digests import rounded
from flowturbo.files import atomic_write, open_regular, printable, reserved
from flowturbo.models import official
from flowturbo.models.codec import PIXELS, check_entry, with_autoencoder
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT, SiTConfig

if TYPE_CHECKING:  # pydantic is imported with the first card
    from flowturbo.schema import Schema

__all__ = [
    "CARD",
    "FORMAT",
    "WEIGHTS",
    "check_fit",
    "convert",
    "fill",
    "load_folder",
    "read_card",
    "read_header",
    "read_tensors",
    "read_weights",
    "save_folder",
    "save_pair",
    "save_weights",
]

CARD, WEIGHTS = "card.json", "model.safetensors"
FORMAT = 1
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_MAGIC = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # of pickles
_CARD = "check the config on the card"
_REAL = "weights must be dense, in float16, bfloat16, float32 or float64"
_MOST_HEADER = 16 * 2**20  # bytes; that of a SiT-XL has 0.03 MB


def save_folder(
    folder: str | Path,
    network: SiT,
    card: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a network and its card to ``folder``; either file is whole or untouched.

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
    weights: Path, path: Path, network: nn.Module, card: dict[str, Any], *, dtype: torch.dtype
) -> None:
    """Write the weights of a network and its card; see ``save_folder``."""
    text = json.dumps({"format": FORMAT, **card}, indent=1, ensure_ascii=False)
    content = _packed(weights, network, dtype)
    with reserved(weights, path):  # of two runs, one writes both files
        _write(weights, content)
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def save_weights(path: Path, network: nn.Module, dtype: torch.dtype) -> None:
    """Write the weights of a network; see ``save_folder``."""
    _write(path, _packed(path, network, dtype))


def _packed(path: Path, network: nn.Module, dtype: torch.dtype) -> bytes:
    where = f"the network to be saved as {path} in {dtype}"
    for name, p in network.state_dict().items():
        _check_kind(name, p, where)
    tensors = {k: p.detach().cpu().to(dtype).contiguous() for k, p in network.state_dict().items()}
    _check_finite(tensors, where)
    return save(tensors, metadata={"format": "pt"})


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:  # not save_file: killed, it leaves a file of its own
        temporary.write_bytes(content)


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
) -> dict[str, Any]:
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
            pickles = [p.name for p in folder.iterdir() if p.suffix in _PICKLES]
            if pickles:
                raise ValueError(_refuse_pickle(folder / pickles[0]))
            found = f"{name} is not a regular file" if (folder / name).exists() else f"no {name}"
            raise ValueError(f"{folder}: {found}; want {card} and {weights}")
    made = load_json(folder / card)
    check(made, schema or ModelCard, str(folder / card))
    check_entry(made.get("codec", PIXELS), str(folder / card))
    return made  # type: ignore[no-any-return]


def read_header(path: Path, depth: int = 0) -> dict[str, Tensor]:
    """The tensors of a safetensors file, without their values: on the meta device.

    Raises:
        ValueError: if it is a pickle, is damaged, holds other than real numbers, or holds fewer
            tensors than a network of ``depth`` blocks has.
        OSError: if it is missing or no regular file.
    """
    with open_regular(path) as file:
        first = file.read(8)
    if first[:2] in _MAGIC and not _is_safetensors(path):
        raise ValueError(_refuse_pickle(path))
    size = int.from_bytes(first, "little")
    if size > _MOST_HEADER:
        raise ValueError(f"{path}: corrupt (a header of {size} bytes); fetch or copy it again")
    try:
        with safe_open(path, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            found = {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: corrupt or truncated ({e}); fetch or copy it again") from e
    for name, (dtype, _) in found.items():
        if dtype not in _DTYPES:
            raise ValueError(f"{path}: {printable(name)} is {dtype}; {_REAL}")
    if 4 * depth > len(found):
        raise ValueError(f"{path}: {len(found)} tensors cannot be of depth={depth}; {_CARD}")
    with torch.device("meta"):
        return {name: torch.empty(s, dtype=_DTYPES[dtype]) for name, (dtype, s) in found.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose header is known to be right."""
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

    A pickle is loaded with ``weights_only=True``, so it cannot run code; see
    `flowturbo.models.official`.

    Raises:
        ValueError: if the file cannot be read that way, or names, types or shapes are not of
            ``config``; tells what of it to change. If another run is writing the folder.
        OSError: if the folder cannot be written.
    """
    tensors = read_tensors(source)
    with torch.device("meta"):
        network = SiT(config)
    fill(network, tensors, str(source), torch.float32, official.fix(tensors, config))
    save_folder(target, network, card or {}, dtype=dtype)


def read_tensors(source: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of others, pickle or safetensors, by their plain names."""
    source = Path(source)
    if not source.is_file():
        what = "is not a regular file" if source.exists() else "does not exist"
        raise ValueError(f"checkpoint {str(source)!r} {what}")
    if not _is_safetensors(source):
        return official.plain(official.unpickled(source), source)
    read_header(source)
    return official.plain(read_weights(source), source)


def fill(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str,
    dtype: torch.dtype,
    fix: str = _CARD,
) -> None:
    """Fill a network made on the meta device, after `check_fit` and a check of the values."""
    check_fit(network, tensors, where, fix)
    for name, p in tensors.items():
        if p.is_meta:
            raise ValueError(f"{where}: {name} is on the meta device and has no values; {_REAL}")
    made = rounded(tensors, dtype)
    _check_finite(made, where)
    network.load_state_dict(made, assign=True)


def check_fit(
    network: nn.Module, tensors: Mapping[str, Tensor], where: str, fix: str = _CARD
) -> None:
    """Refuse tensors that are not those of a network by their names, types and shapes.

    Raises:
        ValueError: naming the first that is wrong, with ``fix`` as what to do.
    """
    wanted = network.state_dict()
    missing, unknown = (
        sorted(wanted.keys() - tensors.keys()),
        sorted(tensors.keys() - wanted.keys()),
    )
    if missing or unknown:
        raise ValueError(
            f"{where}: another architecture: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unknown)} unknown {[name[:60] for name in unknown[:3]]}; {fix}"
        )
    for name, p in wanted.items():
        _check_kind(name, tensors[name], where)
        if tensors[name].shape != p.shape:
            raise ValueError(
                f"{where}: {name} is {tuple(tensors[name].shape)}, the config wants "
                f"{tuple(p.shape)}; {fix}"
            )


def _is_safetensors(path: Path) -> bool:
    """Whether a header of JSON follows the eight bytes of its length."""
    with open_regular(path) as file:
        return file.read(9)[8:] == b"{"


def _check_kind(name: str, p: Tensor, where: str) -> None:
    if p.dtype not in _DTYPES.values() or p.layout != torch.strided or p.is_nested:
        layout = str(p.layout).removeprefix("torch.") if p.layout != torch.strided else ""
        kind = "nested" if p.is_nested else layout
        raise ValueError(f"{where}: {name} is {' '.join([*kind.split(), str(p.dtype)])}; {_REAL}")


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, p in tensors.items():
        if p.numel() and not all(end.isfinite() for end in p.detach().aminmax()):
            raise ValueError(
                f"{where}: {name} has weights that are NaN, infinite or too large for {p.dtype}; "
                "restore the file, or take a wider dtype"
            )


def _refuse_pickle(path: Path) -> str:
    return (
        f"{path}: a pickle can run code when loaded, so it is refused; turn it into safetensors "
        f"with 'flowturbo convert {path.name} -o FOLDER'"
    )
