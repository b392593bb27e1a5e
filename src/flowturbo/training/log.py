"""The log of a run, one line of JSON at a time, and the plot of its losses."""

from __future__ import annotations

import json
from pathlib import Path

from flowturbo import checks
from flowturbo.files import atomic_write
from flowturbo.schema import Schema, check

__all__ = ["Log"]


class _Line(Schema):
    step: int
    loss: float
    seconds: float


class Log:
    """``log.jsonl`` and ``loss.png`` in the folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.path, self.plotted = folder / "log.jsonl", folder / "loss.png"

    def add(self, step: int, loss: float, seconds: float) -> None:
        """Add a line.

        Raises:
            OSError: if the disk is full.
        """
        line = {"step": step, "loss": loss, "seconds": round(seconds, 1)}
        try:
            with self.path.open("a") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as e:
            raise OSError(
                f"cannot write {self.path}: {e.strerror or e}; free some space and repeat "
                "the command, which resumes from the last checkpoint"
            ) from e

    def cut(self, step: int) -> None:
        """Remove the lines after ``step``."""
        lines = [line.model_dump() for line in self._lines() if line.step <= step]
        if lines or self.path.exists():
            with atomic_write(self.path) as path:
                path.write_text("".join(json.dumps(x) + "\n" for x in lines))

    def plot(self) -> None:
        """Plot the losses."""
        from matplotlib.figure import Figure

        lines = self._lines()
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([x.step for x in lines], [x.loss for x in lines], linewidth=1)
        scale = "log" if all(x.loss > 0 for x in lines) else "linear"
        axes.set(xlabel="step", ylabel="loss (mean square)", yscale=scale)
        with atomic_write(self.plotted) as path:
            figure.savefig(path, dpi=150)

    def _lines(self) -> list[_Line]:
        """The intact lines; damaged ones, which a killed run may leave, are left out."""
        if not self.path.is_file():
            return []
        found, damaged = [], 0
        for text in self.path.read_bytes().splitlines():
            try:
                found.append(check(json.loads(text), _Line, str(self.path)))
            except (ValueError, RecursionError):
                damaged += 1
        if damaged:
            checks.warn(f"{self.path}: left out {damaged} damaged lines")
        return found
