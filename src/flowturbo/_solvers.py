"""The solvers that have a name, as the arguments of ``Plan``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowturbo import _exponential, checks
from flowturbo._checks import LIMIT, numbers
from flowturbo._tables import RUNGE_KUTTA, Table, adams, block, step
from flowturbo.path import Times, check_times, shifted

__all__ = ["LIMIT", "adams_bashforth", "blocks", "exponential", "runge_kutta"]

NAMES = {"euler": "E", "heun": "H", "midpoint": "MID:", "rk4": "RK4:", "rk38": "RK38:"}
START = {2: "midpoint", 3: "ralston3", 4: "rk4"}  # of Adams-Bashforth: as many stages as its order


def blocks(name: str, letters: str, shipped: bool, **grid: Any) -> dict[str, Any]:
    """The blocks ``letters`` ("HPPR"), one per interval; see ``Plan.blocks``."""
    points = _points(name, len(letters), **grid)
    table = Table(points[0])
    last = None
    for letter, to in zip(letters, points[1:], strict=True):
        last = block(table, letter, to, last, shipped=shipped)
    return _arguments(name + " shipped" * shipped, table, **grid)


def runge_kutta(scheme: str, steps: int, **grid: Any) -> dict[str, Any]:
    """``steps`` steps of a Runge-Kutta scheme."""
    _check_count("steps", steps, len(RUNGE_KUTTA[scheme]))
    name = f"{NAMES[scheme]}{steps}"
    points = _points(name, steps, **grid)
    table = Table(points[0])
    for to in points[1:]:
        step(table, to, scheme)
    return _arguments(name, table, **grid)


def adams_bashforth(evaluations: int, order: int, start: str, **grid: Any) -> dict[str, Any]:
    """Adams-Bashforth, started through the lower orders or by Runge-Kutta steps."""
    order = checks.whole("order", order, 2, 4)
    checks.one_of("start", start, ("low", "runge-kutta"))
    _check_count("evaluations", evaluations)
    first = order - 1 if start == "runge-kutta" else 0  # steps by Runge-Kutta
    if first and evaluations <= first * order:
        raise ValueError(
            f"evaluations={evaluations}: a Runge-Kutta start of order {order} takes "
            f"{first * order}; at least {first * order + 1}"
        )
    name = f"AB{order}{'RK' if first else ''}:{evaluations}"
    points = _points(name, evaluations - first * (order - 1), **grid)
    table = Table(points[0])
    known: list[int] = []  # the velocities at grid points
    for i, to in enumerate(points[1:]):
        if i < first:
            known.append(step(table, to, START[order])[0])
        else:
            known.append(table.evaluate())
            adams(table, to, known[-order:])
    return _arguments(name, table, **grid)


def exponential(scheme: str, steps: int, order: int, **grid: Any) -> dict[str, Any]:
    """UniPC ("UNIPC") or DPM-Solver++ ("DPM"), one evaluation a step."""
    order = checks.whole("order", order, 2, 3)
    _check_count("steps", steps)
    name = f"{scheme}{order}:{steps}"
    if grid["direction"] == "backward":
        raise ValueError(f"direction='backward': {name} runs from noise to data only; take AB2")
    points = _points(name, steps, **grid)
    return _arguments(name, _exponential.solve(scheme, points, order), **grid)


def _check_count(what: str, count: int, each: int = 1) -> None:
    count = checks.whole(what, count, 1)
    if count * each > LIMIT:
        raise ValueError(
            f"{what}={checks.shown(count)}: at most {LIMIT // each}, for a plan has at most "
            f"{LIMIT} evaluations"
        )


def _points(
    name: str, steps: int, *, shift: float, times: Sequence[float] | Times | None, direction: str
) -> Times:
    """The ``steps + 1`` points of a grid: shifted, or as given; ``name`` is for messages."""
    checks.one_of("direction", direction, ("forward", "backward"))
    shift = checks.number("shift", shift, above=0)
    if times is None:
        ends = (0.0, 1.0) if direction == "forward" else (1.0, 0.0)
        return shifted(int(steps), shift, *ends)
    if shift != 1.0:
        raise ValueError(f"shift={shift} and times are both given; pass one of them")
    points = check_times(numbers("times", times))
    if len(points) != steps + 1:
        raise ValueError(f"{len(points)} times for {name}: {steps} steps need {steps + 1} points")
    if not (np.diff(points) * (1 if direction == "forward" else -1) > 0).all():
        order = "ascend" if direction == "forward" else "descend"
        raise ValueError(
            f"times {points.tolist()}: the points of a grid run {direction} must {order}, no two "
            "equal; reverse them or pass the other direction"
        )
    return points


def _arguments(
    name: str, table: Table, *, shift: float, times: Any, direction: str
) -> dict[str, Any]:
    if shift != 1.0:
        name += f"@{float(shift)}".removesuffix(".0")
    how = {"solver": name, "grid": "shift" if times is None else "given", "direction": direction}
    return {**table.columns(), "name": name, "info": how}
