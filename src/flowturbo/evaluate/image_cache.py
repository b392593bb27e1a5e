"""Images generated for a measurement, kept so that an interrupted one can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from flowturbo.files import check_unclaimed, claim
from flowturbo.progress import Report
from flowturbo.stores import Chunk, ChunkStore
from flowturbo.types import ReadOnlyJson

__all__ = ["ImageCache"]

FORMAT = 2  # of the folder, and of how its content is generated


class ImageCache:
    """Rows of tensors by name; only in memory if ``folder`` is None.

    Args:
        folder: where to keep them, used by this run alone (`flowturbo.files.exclusive`).
        options: everything that they depend on; a folder of other options is refused.
        batch: rows of a chunk, generated in one batch.
        report: called after each chunk.

    Raises:
        ValueError: if ``folder`` contains chunks of other options, naming the difference.
    """

    def __init__(
        self,
        folder: str | Path | None,
        options: ReadOnlyJson,
        batch: int,
        report: Report | None = None,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.report = report
        self._store = ChunkStore(self.folder, batch)
        self._made = {"evaluation": {"format": FORMAT, **options, "batch": batch}}
        self._inputs = json.dumps(self._made, sort_keys=True)
        if self.folder is not None:
            check_unclaimed(self.folder / "options.json", self._made)

    def rows(
        self,
        name: str,
        count: int,
        make: Callable[[slice], Chunk],
        row_bytes: int,
        what: str = "images",
    ) -> Chunk:
        """``count`` rows, read or made; arguments are those of `ChunkStore.chunks`."""
        parts = [
            *self._store.chunks(
                name, count, make, lambda rows: self._inputs, row_bytes=row_bytes, what=what,
                claim=self._claim, report=self.report,
            )
        ]  # fmt: skip
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    def _claim(self) -> None:
        if self.folder is not None:
            claim(self.folder / "options.json", self._made)
