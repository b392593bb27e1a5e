r"""The blocks of the FlowTurbo paper (Zhao et al. 2024, arXiv 2409.18128): H, P and R, and Euler.

A plan in the paper's notation, ``H1P5R3``, is a chain of blocks, one for each interval
:math:`[t_i, t_{i+1}]` of length :math:`h`. Each passes a velocity :math:`d` to the next.

- **H, Heun block**, 2 evaluations:
  :math:`d_i = v(x_i, t_i)`, :math:`\tilde x = x_i + h d_i`, :math:`d_{i+1} = v(\tilde x, t_{i+1})`,
  :math:`x_{i+1} = x_i + \frac{h}{2} (d_i + d_{i+1})`; passes on :math:`d_{i+1}`.
- **P, pseudo corrector**, 1 evaluation: :math:`\tilde x = x_i + h d` with the velocity
  :math:`d` that was passed to it, :math:`d_{i+1} = v(\tilde x, t_{i+1})`,
  :math:`x_{i+1} = x_i + \frac{h}{2} (d + d_{i+1})`; passes on :math:`d_{i+1}`. Second order at one
  evaluation per step; only the weights 1/2 give that. As the first block it is H.
- **R, velocity refiner** block, 2 evaluations of a light network that predicts how far the velocity
  is from the last known one: :math:`d_i = r(x_i, d, t_i) + d`,
  :math:`d_{i+1} = r(\tilde x, d_i, t_{i+1}) + d_i`, and the same correction.
- **E, Euler**, 1 evaluation: :math:`x_{i+1} = x_i + h d_i`; passes on :math:`d_i`.

``flowturbo.compile`` compiles a whole chain (the paper's sample-aware compilation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from flowturbo.plan.builder import Columns, Table
from flowturbo.plan.grid import Grid
from flowturbo.plan.solvers import runge_kutta

__all__ = ["BLOCKS", "Block", "chain"]


@dataclass(frozen=True)
class Block:
    """A block of the paper's notation.

    Attributes:
        title: in the documentation.
        cost: its evaluations, of model or refiner.
        order: of convergence of a chain of such blocks.
        fill: appends it up to time ``to`` with the index of the velocity passed to it, None for the
            first block; returns the index of the velocity that it passes on.
    """

    title: str
    cost: int
    order: int
    fill: Callable[[Table, float, int | None], int]


def _euler(table: Table, to: float, last: int | None) -> int:
    return runge_kutta.step(table, to, "euler")[0]


def _heun(table: Table, to: float, last: int | None) -> int:
    return runge_kutta.step(table, to, "heun")[1]


def _pseudo_corrector(table: Table, to: float, last: int | None) -> int:
    """Predicts with the velocity passed to it, and corrects with one new evaluation."""
    if last is None:
        return _heun(table, to, last)
    h = to - table.time
    table.move(to, {last: h})
    new = table.evaluate()
    table.move(to, {last: -h / 2, new: h / 2})  # x + h*last + h/2*(new - last)
    return new


def _velocity_refiner(table: Table, to: float, last: int | None, *, shipped: bool = False) -> int:
    """Heun with two refiner evaluations in place of the model's."""
    assert last is not None
    h = to - table.time
    first = table.evaluate("refiner", last_velocity=last)
    table.move(to, {first: h})
    if shipped:  # the second offset is added to the first velocity: second - last + first
        second = table.evaluate("refiner", last_velocity=last)
        table.move(to, {last: -h / 2, second: h / 2})
        return first
    second = table.evaluate("refiner", last_velocity=first)
    table.move(to, {first: -h / 2, second: h / 2})
    return second


BLOCKS = {
    "E": Block("Euler", 1, 1, _euler),
    "H": Block("Heun", 2, 2, _heun),
    "P": Block("pseudo corrector", 1, 2, _pseudo_corrector),
    "R": Block("velocity refiner", 2, 2, _velocity_refiner),
}


def chain(name: str, letters: str, grid: Grid, *, shipped: bool = False) -> Columns:
    r"""The arguments of a ``Plan`` of the blocks ``letters`` ("HPPR"), one for each interval.

    With ``shipped``, R blocks are those of the sampler that the paper's authors ship: both refiner
    evaluations use the velocity :math:`d` passed to the block,
    :math:`d_{i+1} = r(\tilde x, d, t_{i+1}) + d_i`, and :math:`d_i` is passed on.
    """
    points = grid.points(name, len(letters))
    table = Table(points[0])
    last = None
    for letter, to in zip(letters, points[1:], strict=True):
        fill = BLOCKS[letter].fill
        if letter == "R":
            fill = partial(_velocity_refiner, shipped=shipped)
        last = fill(table, to, last)
    return {**table.columns(), **grid.named(name + " shipped" * shipped)}
