"""Weights in safetensors files: written whole, and read after a check of the header.

The names, shapes and types in the header are compared with the network before any value is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from flowturbo.digests import rounded
from flowturbo.files import atomic_write, open_regular, printable

__all__ = [
    "check_fit",
    "fill",
    "is_safetensors",
    "packed",
    "read_header",
    "read_weights",
    "refused_pickle",
    "save_weights",
    "write_packed",
]

_DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_MAGIC = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # of pickles
CHECK_CONFIG = "check the config on the card"
_REAL = "weights must be dense, in float16, bfloat16, float32 or float64"
_MOST_HEADER = 16 * 2**20  # bytes; that of a SiT-XL has 0.03 MB


def save_weights(path: Path, network: nn.Module, dtype: torch.dtype) -> None:
    """Write the weights of a network.

    Raises:
        ValueError: if a weight is not a real number, not finite, or not in ``dtype``.
        OSError: if the file cannot be written.
    """
    write_packed(path, packed(path, network, dtype))


def packed(path: Path, network: nn.Module, dtype: torch.dtype) -> bytes:
    """The weights of a network as the content of the safetensors file ``path``."""
    where = f"the network to be saved as {path} in {dtype}"
    for name, p in network.state_dict().items():
        _check_kind(name, p, where)
    tensors = {k: p.detach().cpu().to(dtype).contiguous() for k, p in network.state_dict().items()}
    _check_finite(tensors, where)
    return save(tensors, metadata={"format": "pt"})


def write_packed(path: Path, content: bytes) -> None:
    """Write such content; the file is whole or untouched."""
    with atomic_write(path) as temporary:  # not save_file: killed, it leaves a file of its own
        temporary.write_bytes(content)


def read_header(path: Path, depth: int = 0) -> dict[str, Tensor]:
    """The tensors of a safetensors file, without their values: on the meta device.

    Raises:
        ValueError: if it is a pickle, is damaged, contains anything but real numbers, or has fewer
            tensors than a network of ``depth`` blocks.
        OSError: if it is missing or not a regular file.
    """
    with open_regular(path) as file:
        first = file.read(8)
    if first[:2] in _MAGIC and not is_safetensors(path):
        raise ValueError(refused_pickle(path))
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
        raise ValueError(f"{path}: {len(found)} tensors cannot be of depth={depth}; {CHECK_CONFIG}")
    with torch.device("meta"):
        return {name: torch.empty(s, dtype=_DTYPES[dtype]) for name, (dtype, s) in found.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose header is known to be right."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: corrupt or truncated ({e}); fetch or copy it again") from e


def fill(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    where: str,
    dtype: torch.dtype,
    fix: str = CHECK_CONFIG,
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
    network: nn.Module, tensors: Mapping[str, Tensor], where: str, fix: str = CHECK_CONFIG
) -> None:
    """Refuse tensors whose names, types or shapes are not those of a network.

    Raises:
        ValueError: naming the first that is wrong, with ``fix`` as the remedy.
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


def is_safetensors(path: Path) -> bool:
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


def refused_pickle(path: Path) -> str:
    """The message that a pickle is refused with."""
    return (
        f"{path}: a pickle can run code when loaded, so it is refused; turn it into safetensors "
        f"with 'flowturbo convert {path.name} -o FOLDER'"
    )
