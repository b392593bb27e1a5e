"""What a search has computed, kept in a folder so that a killed run goes on where it stopped.

Every number follows from the options of the folder and from its own key, so a run that finds it in
the journal ends exactly as one that computes it, and searches with the same trajectories share a
folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowturbo.files import check_room, claim, replacing
from flowturbo.fit.reference import Reference
from flowturbo.plan import Plan

__all__ = ["Journal"]


class Journal:
    """Results by name; in memory only where ``folder`` is None.

    Args:
        folder: where to keep them.
        options: what all results follow from; a folder of other options is refused.
    """

    def __init__(self, folder: str | Path | None, options: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.entries: dict[str, Any] = {}
        if self.folder is None:
            return
        claim(self.folder / "options.json", {"search": options})
        journal = self.folder / "journal.jsonl"
        if journal.is_file():
            for line in journal.read_text("utf-8").splitlines():
                if line.endswith("]"):  # a killed run may have left half a line
                    key, value = json.loads(line)
                    self.entries[key] = value
            with replacing(journal) as temporary:
                temporary.write_text(
                    "".join(json.dumps([k, v]) + "\n" for k, v in self.entries.items()), "utf-8"
                )

    def number(self, key: str, make: Callable[[], float]) -> float:
        """The number called ``key``, made if it is not there."""
        return float(self._entry(key, make))

    def numbers(self, key: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The numbers called ``key``, made if they are not there."""
        return dict(self._entry(key, make))

    def plan(self, key: str, make: Callable[[], Plan]) -> Plan:
        """The plan called ``key``, made if it is not there."""
        return Plan.from_json(self._entry(key, lambda: make().to_json()))

    def write(self, key: str, value: Any) -> None:
        """Keep ``value``, anything JSON can hold; the last of a key counts."""
        self.entries[key] = value
        if self.folder is not None:
            with (self.folder / "journal.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps([key, value]) + "\n")

    def reference(
        self,
        make: Callable[[slice], Reference],
        rows: int,
        size: int,
        device: str | torch.device = "cpu",
        batch: int = 64,
    ) -> Reference:
        """``rows`` trajectories of ``size`` bytes each, made and kept ``batch`` at a time.

        Those that are kept are put on ``device``.

        Raises:
            OSError: before anything is computed, if the disk has no room for them.
        """
        parts = []
        if self.folder is not None:
            there = len(list(self.folder.glob("reference-*")))
            check_room(self.folder, max(0, rows - there * batch) * size)
        for i in range(0, rows, batch):
            some = slice(i, min(i + batch, rows))
            path = None if self.folder is None else self.folder / f"reference-{i:06d}.pt"
            if path is not None and path.is_file():
                kept = torch.load(path, map_location=device, weights_only=True)
                parts.append(Reference(**kept))
                continue
            part = make(some)
            if path is not None:
                with replacing(path) as temporary:
                    torch.save(part.columns(), temporary)
            parts.append(part)
        return Reference.join(parts)

    def _entry(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.entries:
            self.write(key, make())
        return self.entries[key]
