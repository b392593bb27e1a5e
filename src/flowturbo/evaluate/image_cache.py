"""Pictures drawn for a measurement, kept in a folder so that an interrupted one goes on.

A chunk of pictures is one file, sealed with a digest, and its rows are drawn in one batch: however
often a run was interrupted, it ends with the files, to the byte, of one that was not. What does not
match its seal is drawn again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flowturbo.files import check_room, check_unclaimed, claim
from flowturbo.stores import read_tensors, write_tensors

__all__ = ["ImageCache"]

FORMAT = 2  # of the folder, and of how what it holds is drawn

Chunk = dict[str, Tensor]


class ImageCache:
    """Chunks of tensors by name; in memory only where ``folder`` is None.

    Args:
        folder: where to keep them, held by this run alone (`flowturbo.files.exclusive`).
        options: what they follow from; a folder of other options is refused.
        batch: rows of a chunk.
        progress: show bars, on a terminal.

    Raises:
        ValueError: if ``folder`` holds chunks of other options, naming what differs.
    """

    def __init__(
        self, folder: str | Path | None, options: dict[str, Any], batch: int, progress: bool
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.batch, self.progress = batch, progress
        self.made = {"evaluation": {"format": FORMAT, **options, "batch": batch}}
        self._of = json.dumps(self.made, sort_keys=True)
        if self.folder is not None:
            check_unclaimed(self.folder / "options.json", self.made)

    def rows(self, name: str, count: int, make: Callable[[slice], Chunk], size: int) -> Chunk:
        """``count`` rows of ``size`` bytes each, made and kept a chunk at a time.

        Raises:
            OSError: before anything is made, if the disk has no room for those that are missing.

        Warns:
            UserWarning: if a file is damaged; its rows are made again.
        """
        starts = range(0, count, self.batch)
        paths = {i: self._path(name, i) for i in starts}
        missing = [i for i, p in paths.items() if p is None or not p.is_file()]
        claimed = False
        if self.folder is not None:
            check_room(self.folder, size * sum(min(self.batch, count - i) for i in missing), "rows")
        parts = []
        with tqdm(total=count, desc=name, disable=None if self.progress else True) as bar:
            for i, path in paths.items():
                rows = slice(i, min(i + self.batch, count))
                part = None if path is None else read_tensors(path, self._of)
                if part is None:
                    part = make(rows)
                    if path is not None:
                        if not claimed:  # there is something to keep
                            claim(path.with_name("options.json"), self.made)
                            claimed = True
                        write_tensors(path, part, self._of)
                parts.append(part)
                bar.update(rows.stop - i)
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    def _path(self, name: str, start: int) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}-{start:06d}.safetensors"
