"""Arrays in ``.npz`` files, read only after their declared types and shapes are checked."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["Array", "check_memory", "read_arrays"]

Array: TypeAlias = NDArray[np.generic]


def read_arrays(path: Path, names: Collection[str]) -> tuple[dict[str, Array], list[str]]:
    """The arrays of these ``names`` in an ``.npz`` file, and the names of all others in it.

    Raises:
        ValueError: if it is not such a file, or one of the arrays is damaged, contains Python
            objects (pickles, which are never read) or does not fit into memory; names the file.
    """
    if not path.is_file():
        raise ValueError(f"data {str(path)!r}: no such file")
    try:
        with zipfile.ZipFile(path) as file:
            held = {entry.filename.removesuffix(".npy"): entry for entry in file.infolist()}
            arrays = {name: _array(file, held[name], name) for name in names if name in held}
    except Exception as e:  # damaged files end in most of them
        reason = str(e) or type(e).__name__
        raise ValueError(f"data {str(path)!r}: cannot be read as .npz ({reason})") from e
    return arrays, [name for name in held if name not in names]


def check_memory(needed: int, what: str) -> None:
    """Raise ``ValueError`` if this many bytes exceed the known memory of this machine."""
    with suppress(AttributeError, OSError):  # not on Windows
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there:
            raise ValueError(
                f"{what} take {needed / 2**30:.1f} GB of memory, this machine has "
                f"{there / 2**30:.1f}; use fewer or smaller ones"
            )


def _array(file: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Array:
    with file.open(entry) as raw:
        old = npy.read_magic(raw) == (1, 0)
        shape, _, dtype = (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(raw)
        size = prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{name!r} holds Python objects; save it as numbers")
        if raw.tell() + size != entry.file_size:
            raise ValueError(f"{name!r} should hold {shape} {dtype} and does not")
        check_memory(size, f"{name!r} {shape}")
    with file.open(entry) as raw:
        return npy.read_array(raw, allow_pickle=False)
