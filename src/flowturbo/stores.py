"""Tensors kept between runs in sealed files, one by one or in chunks of rows.

The seal of a file is a digest of its tensors, its name and the inputs they were computed from. A
file that was damaged, renamed or written by a run with other inputs does not match its seal and is
computed again. However often a run is interrupted, it ends with the same files, byte for byte, as a
run that was not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from flowturbo.digests import hexdigest
from flowturbo.files import atomic_write, check_room
from flowturbo.progress import Progress, Report

__all__ = ["Chunk", "ChunkStore", "read_tensors", "warn_damaged", "write_tensors"]

Chunk: TypeAlias = dict[str, Tensor]
"""Tensors by name, of some rows."""


class ChunkStore:
    """Rows that are computed and kept chunk by chunk; only in memory if ``folder`` is None.

    Args:
        folder: where the files go, used by this run alone (`flowturbo.files.exclusive`).
        size: rows of a chunk; one file holds one chunk.
    """

    def __init__(self, folder: Path | None, size: int) -> None:
        self.folder, self.size = folder, size

    def chunks(
        self,
        name: str,
        count: int,
        make: Callable[[slice], Chunk],
        inputs: Callable[[slice], str],
        *,
        row_bytes: int,
        what: str = "rows",
        claim: Callable[[], None] | None = None,
        report: Report | None = None,
    ) -> Iterator[Chunk]:
        """``count`` rows in chunks, read if they exist and match their seal, else computed.

        Args:
            name: files are called ``NAME-000000.safetensors``, by their first row.
            count: number of rows.
            make: computes the chunk of some rows.
            inputs: text that identifies what a chunk is computed from; part of its seal.
            row_bytes: bytes on disk of a row.
            what: plural name of the rows, for messages and progress.
            claim: called before the first chunk is written.
            report: called after each chunk.

        Raises:
            OSError: before anything is computed, if the disk has no room for missing chunks.

        Warns:
            UserWarning: if a file is damaged; its rows are computed again.
        """
        parts = [slice(i, min(i + self.size, count)) for i in range(0, count, self.size)]
        if self.folder is not None:
            missing = sum(p.stop - p.start for p in parts if not self._path(name, p).is_file())
            check_room(self.folder, row_bytes * missing, what)
        for rows in parts:
            chunk = self._kept(name, rows, inputs)
            if chunk is None:
                chunk = make(rows)
                if self.folder is not None:
                    if claim is not None:
                        claim()
                        claim = None
                    write_tensors(self._path(name, rows), chunk, inputs(rows))
            if report:
                report(Progress(what, rows.stop, count))
            yield chunk

    def _kept(self, name: str, rows: slice, inputs: Callable[[slice], str]) -> Chunk | None:
        path = self._path(name, rows)
        return None if self.folder is None else read_tensors(path, inputs(rows))

    def _path(self, name: str, rows: slice) -> Path:
        return (self.folder or Path()) / f"{name}-{rows.start:06d}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], of: str) -> None:
    """Write ``tensors``, whole or not at all.

    Args:
        path: a safetensors file.
        tensors: by name.
        of: text that identifies what they were computed from.

    Raises:
        OSError: if the disk is full or cannot be written; names ``path``.
    """
    kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic_write(path) as temporary:
        # not save_file, which leaves a file of its own behind when it is killed
        temporary.write_bytes(save(kept, metadata={"seal": _seal(path, kept, of)}))


def read_tensors(path: Path, of: str) -> dict[str, Tensor] | None:
    """The tensors that ``write_tensors`` wrote to ``path``; None if missing or not matching.

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
    except Exception:  # whatever the reader raises on damaged bytes
        pass
    warn_damaged(path)
    return None


def warn_damaged(path: Path, what: str = "damaged, or of another run") -> None:
    """Warn that ``path`` is not used, and is computed again."""
    warnings.warn(f"{path}: {what}; what it should hold is made again", stacklevel=2)


def _seal(path: Path, tensors: Mapping[str, Tensor], of: str) -> str:
    parts: list[object] = [f"{path.name} {of}"]
    for name, t in sorted(tensors.items()):
        parts += [f" {name} {t.dtype} {tuple(t.shape)} ", t.reshape(-1).view(torch.uint8).numpy()]
    return hexdigest(*parts, length=64)
