"""Progress of long work: one value, passed to one kind of callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from tqdm import tqdm

__all__ = ["Progress", "Report", "bars"]


class Progress:
    """How far a stage of some work has come; ``print`` is a callback that shows it.

    Args:
        stage: what is being done, such as "reference trajectories" or "train".
        done: number of units that are done.
        total: number of units in all; None if that is not known beforehand.
        values: measurements, such as ``loss=0.21`` or ``images_per_second=98.0``.
    """

    __slots__ = ("done", "stage", "total", "values")

    def __init__(self, stage: str, done: int, total: int | None, /, **values: object) -> None:
        self.stage, self.done, self.total, self.values = stage, done, total, values

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total}"
        shown = [f"{k.replace('_', ' ')} {_text(v)}" for k, v in self.values.items()]
        return ", ".join([f"{self.stage}: {self.done}{of}", *shown])

    def __repr__(self) -> str:
        values = "".join(f", {k}={v!r}" for k, v in self.values.items())
        return f"Progress({self.stage!r}, {self.done}, {self.total}{values})"


Report: TypeAlias = Callable[[Progress], object]


@contextmanager
def bars() -> Iterator[Report]:
    """A callback that shows a bar for each stage, if standard error is a terminal."""
    shown: dict[str, tqdm] = {}

    def report(progress: Progress) -> None:
        bar = shown.get(progress.stage)
        if bar is None:
            bar = tqdm(desc=progress.stage, total=progress.total, disable=None)
            shown[progress.stage] = bar
        bar.set_postfix({k: _text(v) for k, v in progress.values.items()}, refresh=False)
        bar.update(progress.done - bar.n)

    try:
        yield report
    finally:
        for bar in shown.values():
            bar.close()


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
