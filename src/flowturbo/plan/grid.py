"""The grid that a solver runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from flowturbo import checks
from flowturbo.path import Times, check_times, shifted
from flowturbo.plan.builder import Columns
from flowturbo.plan.checks import numbers

__all__ = ["Grid", "GridOptions"]


class GridOptions(TypedDict, total=False):
    """The arguments of a `Grid`."""

    shift: float
    times: Sequence[float] | Times | None
    direction: str


@checks.known_keywords
@dataclass(frozen=True, kw_only=True)
class Grid:
    """The end points of the steps of a solver.

    Attributes:
        shift: of a grid over the whole path, see ``path.shifted``; above 0, 1 is uniform.
        times: the points instead, in order of the run.
        direction: "forward" from noise to data, or "backward".

    Raises:
        ValueError: if an argument is outside its range, or both ``shift`` and ``times`` are given.
    """

    shift: float = 1.0
    times: Sequence[float] | Times | None = None
    direction: str = "forward"

    def __post_init__(self) -> None:
        checks.one_of("direction", self.direction, ("forward", "backward"))
        object.__setattr__(self, "shift", checks.number("shift", self.shift, above=0))
        if self.times is not None and self.shift != 1.0:
            raise ValueError(f"shift={self.shift} and times are both given; pass one of them")

    def points(self, name: str, steps: int) -> Times:
        """The ``steps + 1`` points, float64, for the plan called ``name`` in messages.

        Raises:
            ValueError: if ``times`` has another length, or is not in order.
        """
        if self.times is None:
            ends = (0.0, 1.0) if self.direction == "forward" else (1.0, 0.0)
            return shifted(steps, self.shift, *ends)
        points = check_times(numbers("times", self.times))
        if len(points) != steps + 1:
            raise ValueError(
                f"{len(points)} times for {name}: {steps} steps need {steps + 1} points"
            )
        if not (np.diff(points) * (1 if self.direction == "forward" else -1) > 0).all():
            order = "ascend" if self.direction == "forward" else "descend"
            raise ValueError(
                f"times {points.tolist()}: the points of a grid run {self.direction} must {order}, "
                "no two equal; reverse them or pass the other direction"
            )
        return points

    def named(self, name: str) -> Columns:
        """The name and info of a plan of the solver ``name`` on this grid."""
        if self.shift != 1.0:
            name += f"@{self.shift}".removesuffix(".0")
        grid = "shift" if self.times is None else "given"
        return {"name": name, "info": {"solver": name, "grid": grid, "direction": self.direction}}
