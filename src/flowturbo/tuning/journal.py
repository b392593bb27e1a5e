"""Results of a search, kept in a folder so that a killed run can resume where it stopped.

Every number is determined by the options of the folder and by its own key, so a run that finds it
in the journal ends exactly as one that computes it, and searches with the same trajectories can
share a folder. Each line and each file is sealed with a digest of its content and of the options;
anything that does not match is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowturbo.digests import content, hexdigest
from flowturbo.field import Field
from flowturbo.files import atomic_write, claim
from flowturbo.plan import Plan
from flowturbo.progress import Report
from flowturbo.stores import Chunk, ChunkStore, warn_damaged
from flowturbo.tuning.reference import Reference, solve
from flowturbo.types import Condition, GuidanceScale, JsonObject

__all__ = ["Journal", "sealed_options"]

FORMAT = 2  # of the folder, and of how what it holds is computed
Starts = Callable[[slice], tuple[Tensor, Condition, GuidanceScale]]


def _times(substeps: int) -> str:
    return "" if substeps == 1 else f" x {substeps}"


def sealed_options(options: JsonObject) -> dict[str, JsonObject]:
    """What ``options.json`` of a folder holds."""
    return {"search": {"format": FORMAT, **options}}


class Journal:
    """Results by name; in memory only where ``folder`` is None.

    Args:
        folder: where to keep them, held by this run alone (`flowturbo.files.exclusive`).
        options: what determines all results; a folder of other options is refused.

    Raises:
        ValueError: if ``folder`` holds results of other options, naming the difference.
        OSError: if it cannot be read or written.

    Warns:
        UserWarning: for lines and files that are damaged, which are left out.
    """

    def __init__(self, folder: str | Path | None, options: JsonObject) -> None:
        self.folder = None if folder is None else Path(folder)
        self.entries: JsonObject = {}
        made = sealed_options(options)
        self._of = json.dumps(made, sort_keys=True)
        if self.folder is not None:
            claim(self.folder / "options.json", made)
            self._read(self.folder / "journal.jsonl")

    def number(self, key: str, make: Callable[[], float]) -> float:
        """The number called ``key``, made if it is not there."""
        return float(self._entry(key, make))

    def numbers(self, key: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The numbers called ``key``, made if they are not there."""
        return dict(self._entry(key, make))

    def plan(self, key: str, make: Callable[[], Plan]) -> Plan:
        """The plan called ``key``, made if it is not there."""
        return Plan.from_json(self._entry(key, lambda: make().to_json()))

    def write(self, key: str, value: object) -> None:
        """Keep ``value``, anything JSON can hold; the last of a key counts.

        Raises:
            OSError: if the disk is full; what was kept before stays.
        """
        self.entries[key] = value
        if self.folder is None:
            return
        path = self.folder / "journal.jsonl"
        try:
            with path.open("a", encoding="utf-8") as f:
                f.write(self._line(key, value))
        except OSError as e:
            raise OSError(
                f"cannot write {path}: {e.strerror or e}; free some space and repeat the "
                "run, which resumes from what it kept"
            ) from e

    def reference(
        self,
        field: Field,
        starts: Starts,
        rows: int,
        *,
        steps: int = 64,
        substeps: Callable[[], int] = lambda: 1,
        batch: int = 64,
        report: Report | None = None,
    ) -> Reference:
        """``rows`` trajectories of ``field``, solved and kept ``batch`` at a time.

        Args:
            field: the velocity field.
            starts: noise, conditions and guidance scales of some rows.
            rows: how many.
            steps: of `solve`.
            substeps: of `solve`; called once there is room on the disk.
            batch: rows of a file.
            report: called after each file.

        Raises:
            OSError: before anything is computed, if the disk has no room for them.
        """

        def make(part: slice) -> Chunk:
            noise, cond, guidance = starts(part)
            made = solve(
                field, noise, cond, guidance=guidance, steps=steps, substeps=substeps(),
                batch=len(noise),
            )  # fmt: skip
            times = torch.from_numpy(made.times)
            return {"states": made.states, "velocities": made.velocities, "times": times}

        chunks = ChunkStore(self.folder, batch).chunks(
            "reference",
            rows,
            make,
            lambda part: f"{self._of} {steps}{_times(substeps())} {content(starts(part))}",
            row_bytes=2 * (steps + 1) * starts(slice(0, 1))[0].nbytes,
            what="reference trajectories",
            report=report,
        )
        found = []
        for i, kept in enumerate(chunks):
            noise, cond, guidance = starts(slice(i * batch, min((i + 1) * batch, rows)))
            found.append(
                Reference(
                    times=kept["times"].numpy(),
                    states=kept["states"].to(noise.device),
                    velocities=kept["velocities"].to(noise.device),
                    cond=cond,
                    guidance=guidance,
                )
            )
        return Reference.join(found)

    def _entry(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.entries:
            self.write(key, make())
        return self.entries[key]

    def _line(self, key: str, value: object) -> str:
        told = f"{json.dumps(key)}, {json.dumps(value)}"
        seal = hexdigest(f"{self._of} {told}")
        return f'[{told}, "{seal}"]\n'

    def _read(self, path: Path) -> None:
        """Read the lines that match their seal, and rewrite the file with these only."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as e:
            raise OSError(f"cannot read {path}: {e.strerror or e}") from e
        *lines, torn = data.split(b"\n")  # a killed run may have left half a line
        damaged = 0
        for line in lines:
            try:
                key, value, _ = json.loads(line)
                known = self._line(key, value).encode() == line + b"\n"
            except (ValueError, TypeError, RecursionError):
                known = False
            if known:
                self.entries[key] = value
            damaged += not known
        if damaged:
            warn_damaged(path, f"{damaged} of {len(lines)} lines are damaged, or of another run")
        if damaged or torn:
            with atomic_write(path) as temporary:
                kept = "".join(self._line(k, v) for k, v in self.entries.items())
                temporary.write_text(kept, encoding="utf-8")
