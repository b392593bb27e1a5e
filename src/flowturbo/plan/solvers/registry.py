"""The entry of a solver in the registry, from which everything else about it follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flowturbo import checks
from flowturbo.path import Times
from flowturbo.plan.builder import Columns, Table
from flowturbo.plan.checks import LIMIT
from flowturbo.plan.grid import Grid

__all__ = ["Solver", "checked_count"]


def checked_count(what: str, count: object, each: int = 1) -> int:
    """``count``, checked: from 1 to what a plan can hold at ``each`` evaluations.

    Raises:
        ValueError: naming ``what``, if it is anything else.
    """
    whole = checks.whole(what, count, 1)
    if whole * each > LIMIT:
        raise ValueError(
            f"{what}={checks.shown(count)}: at most {LIMIT // each}, since a plan has at most "
            f"{LIMIT} evaluations"
        )
    return whole


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A named solver.

    Attributes:
        name: in the notation of plans, upper case, such as "AB2" of "AB2:8".
        title: in tables, "Adams-Bashforth 2".
        order: of convergence of the whole run, on smooth fields.
        counts: what the number after the colon counts.
        fill: writes the evaluations and moves over ``points`` into an empty table.
        evaluations: per step, except the first steps of a Runge-Kutta start.
        extra: evaluations of a Runge-Kutta start beyond one per step.
        mirrored: whether it is defined from noise to data; backward it is the same method with
            noise and data exchanged, which steps in the predicted noise instead of the data.
        baseline: whether tuned plans are compared with it.
        source: the publication.
    """

    name: str
    title: str
    order: int
    counts: Literal["evaluations", "steps"]
    fill: Callable[[Table, Times], object]
    evaluations: int = 1
    extra: int = 0
    mirrored: bool = False
    baseline: bool = False
    source: str

    def columns(self, count: int, grid: Grid) -> Columns:
        """The arguments of a ``Plan`` of ``count`` evaluations or steps on a grid.

        Raises:
            ValueError: if the count is outside its range, or the grid does not fit.
        """
        each = self.evaluations if self.counts == "steps" else 1
        count = checked_count(self.counts, count, each)
        name, steps = f"{self.name}:{count}", count - self.extra
        if steps < self.order and self.extra:  # the start, and one more step
            least = self.extra + self.order
            raise ValueError(
                f"{self.counts}={count}: a Runge-Kutta start of order {self.order} takes "
                f"{least - 1}; at least {least}"
            )
        points = grid.points(name, steps)
        if not (self.mirrored and grid.direction == "backward"):
            table = Table(points[0])
            self.fill(table, points)
            return {**table.columns(), **grid.named(name)}
        table = Table(1 - points[0])
        self.fill(table, 1 - points)
        made = table.columns()
        made |= {"times": points, "model_times": points[:-1], "weights": -made["weights"]}
        return {**made, **grid.named(name)}
