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
from flowturbo.types import JsonObject

__all__ = ["Grid", "GridOptions"]


class GridOptions(TypedDict, total=False):
    """The arguments of a `Grid`."""

    shift: float
    times: Sequence[float] | Times | None
    direction: str
    start: float | None
    end: float | None


@checks.known_keywords
@dataclass(frozen=True, kw_only=True)
class Grid:
    """The end points of the steps of a solver.

    Attributes:
        shift: shift of a grid between its ends, see ``path.shifted``; above 0, 1 is uniform.
        times: the points themselves instead, in the order in which they are run.
        direction: "forward" from noise to data, or "backward".
        start: the first time, by default 0, or 1 backward.
        end: the last time, by default 1, or 0 backward.

    Raises:
        ValueError: if an argument is outside its range, ``times`` is combined with another of them,
            or the ends are not in the order of the direction.
    """

    shift: float = 1.0
    times: Sequence[float] | Times | None = None
    direction: str = "forward"
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        checks.one_of("direction", self.direction, ("forward", "backward"))
        object.__setattr__(self, "shift", checks.number("shift", self.shift, above=0))
        if self.times is not None and self.shift != 1.0:
            raise ValueError(f"shift={self.shift} and times are both given; pass one of them")
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, checks.number(name, value, 0, 1))
                if self.times is not None:
                    raise ValueError(f"{name}={value} and times are both given; pass one of them")
        start, end = self.ends
        if (end - start) * self._sign <= 0:
            order = "below" if self._sign > 0 else "above"
            raise ValueError(
                f"start={start:g}, end={end:g}: a plan that runs {self.direction} has its start "
                f"{order} its end"
            )

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last time, where ``times`` is not given."""
        start, end = (0.0, 1.0) if self._sign > 0 else (1.0, 0.0)
        return (
            start if self.start is None else self.start,
            end if self.end is None else self.end,
        )

    @property
    def _sign(self) -> int:
        return 1 if self.direction == "forward" else -1

    def points(self, name: str, steps: int) -> Times:
        """The ``steps + 1`` points, float64, for the plan called ``name`` in messages.

        Raises:
            ValueError: if ``times`` has another length, or is not in order.
        """
        if self.times is None:
            return shifted(steps, self.shift, *self.ends)
        points = check_times(numbers("times", self.times))
        if len(points) != steps + 1:
            raise ValueError(
                f"{len(points)} times for {name}: {steps} steps need {steps + 1} points"
            )
        if not (np.diff(points) * self._sign > 0).all():
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
        about: JsonObject = {"solver": name, "grid": "shift" if self.times is None else "given",
                 "direction": self.direction}  # fmt: skip
        if self.start is not None or self.end is not None:
            start, end = self.ends
            about |= {"start": start, "end": end}
            name += f" from {start} to {end}".replace(".0 ", " ").removesuffix(".0")
        return {"name": name, "info": about}
