"""Tensors kept between runs, in files that tell whether they are whole and whose they are.

Each file has a seal: a digest of its tensors, its name and what they follow from. A file that was
damaged, renamed or left by another run does not match, and what it should hold is made again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from flowturbo.digests import hexdigest
from flowturbo.files import atomic_write

__all__ = ["read_tensors", "warn_damaged", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], of: str) -> None:
    """Write ``tensors``, whole or not at all.

    Args:
        path: a safetensors file.
        tensors: by name.
        of: what they follow from, in any words.

    Raises:
        OSError: if the disk is full or cannot be written; names ``path``.
    """
    kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic_write(path) as temporary:
        # not save_file, which leaves a file of its own behind when it is killed
        temporary.write_bytes(save(kept, metadata={"seal": _seal(path, kept, of)}))


def read_tensors(path: Path, of: str) -> dict[str, Tensor] | None:
    """The tensors that ``write_tensors`` left in ``path``; None if it is missing or does not match.

    Raises:
        OSError: if the file cannot be read.

    Warns:
        UserWarning: if the file does not match.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            seal = (file.metadata() or {}).get("seal")
        if seal == _seal(path, kept, of):
            return kept
    except OSError as e:
        raise OSError(f"cannot read {path}: {e.strerror or e}") from e
    except Exception:  # whatever a reader says of bytes that are not what was written
        pass
    warn_damaged(path)
    return None


def warn_damaged(path: Path, what: str = "damaged, or of another run") -> None:
    """Say that ``path`` is not used as it is."""
    warnings.warn(f"{path}: {what}; what it should hold is made again", stacklevel=2)


def _seal(path: Path, tensors: Mapping[str, Tensor], of: str) -> str:
    parts: list[Any] = [f"{path.name} {of}"]
    for name, t in sorted(tensors.items()):
        parts += [f" {name} {t.dtype} {tuple(t.shape)} ", t.reshape(-1).view(torch.uint8).numpy()]
    return hexdigest(*parts, length=64)
