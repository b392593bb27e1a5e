"""What works in which pipeline, measured on the tiny ones, and the table of it in the docs.

    PYTHONPATH=tests python -m integrations.breadth

writes the table into docs/diffusers.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from integrations import pipelines
from integrations.pipelines import CELLS, EULER, MORE, Cell, final, velocity

import flowturbo as ft
from flowturbo.files import atomic_write
from flowturbo.integrations.diffusers import FlowTurboScheduler, disable, enable
from flowturbo.integrations.diffusers.families import Family, family_of
from flowturbo.integrations.diffusers.pipeline import network_of, networks_of
from flowturbo.refiner.binding import History

PAGE = Path(__file__).parents[2] / "docs" / "diffusers.md"
START, END = "<!-- made by tests/integrations/breadth.py -->\n", "<!-- end -->\n"
WITHOUT = ("SkyReels", "LTX condition", "EasyAnimate")
ROWS = {name: cell for name, cell in MORE.items() if name not in WITHOUT}
ROWS |= {name: cell for name, cell in CELLS.items() if not cell.image}
SLOW = 1 / 500  # else the waves of the time's embedding hide the order
TIMES = ("timestep", "timesteps", "timestep_r", "sigma")
LAYOUTS = {3: "(B, C, N)", 4: "(B, C, H, W)", 5: "(B, C, F, H, W)"}
BRANCHED, REFINED = "AB2:FFCFC", "AB2:FFRFF@3"


def built(name: str) -> tuple[Cell, Any]:
    """The cell, and a pipeline with the kind of scheduler that it comes with."""
    cell = ROWS[name]
    if name in MORE:
        return cell, cell.build(pipelines.scheduler(name))
    return cell, cell.build(FlowTurboScheduler(sign=1) if name == "U-Net" else EULER(shift=3.0))


def family(name: str) -> Family:
    _, pipe = built(name)
    return family_of(pipe, network_of(pipe))


@contextmanager
def enabled(pipe: Any, plan: Any, refiner: Any = None) -> Iterator[Any]:
    enable(pipe, plan=plan, refiner=refiner)
    try:
        yield pipe
    finally:
        disable(pipe)


@contextmanager
def slowed(pipe: Any) -> Iterator[None]:
    """Within, the networks are shown ``SLOW`` times the time."""

    def slow(module, args, kwargs):
        args = [SLOW * a if i == 1 else a for i, a in enumerate(args)]  # state, time, ...
        return (*args,), {
            k: SLOW * v if k in TIMES and v is not None else v for k, v in kwargs.items()
        }

    handles = [n.register_forward_pre_hook(slow, with_kwargs=True) for n in networks_of(pipe)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def end(name: str, method: str, steps: int) -> torch.Tensor:
    """The state after ``steps``, time slowed down, without guidance if that has a memory.

    The plan of Wan 2.2 begins anew where its second network takes over, at noise level 0.6.
    """
    cell, pipe = built(name)
    plan = ft.Plan.parse(f"{method}{steps}")
    if name == "Wan 2.2":
        plan = anew(f"{method}{steps // 2}", 0.4)
    with slowed(pipe), enabled(pipe, plan):
        return final(cell if cell.linear else cell.unguided(), pipe, len(plan))


def difference(name: str) -> float:
    """The largest, between the pipeline's own loop and ours, of a plan that sees the history."""
    cell, pipe = built(name)
    cell = cell if cell.linear else cell.unguided()
    plan = ft.Plan.parse("UNIPC2:3@2")
    with enabled(pipe, plan):
        result = final(cell, pipe, len(plan))
    field, x0 = velocity(cell)
    return float((result - ft.sample(plan, field, x0)).abs().max())


def order(name: str, method: str, steps: int) -> str:
    """The measured order of convergence, from ``steps`` to twice as many; or why there is none."""
    try:
        evaluates_at_1 = "end" not in family(name).refused
        exact = end(name, "RK4:", steps) if evaluates_at_1 else end(name, "AB2:", 16 * steps)
        errors = [(end(name, method, n) - exact).square().mean().sqrt() for n in (steps, 2 * steps)]
    except ValueError as error:
        return f"no: {refusal(error)}"
    return f"{torch.log2(errors[0] / errors[1]):.1f}"


def anew(text: str, at: float) -> ft.Plan:
    """A plan up to the time ``at``, and anew from there, as docs/diffusers.md makes it."""
    page = PAGE.read_text(encoding="utf-8").split("### Two networks")[1]
    code = page.split("```python\n")[1].split("```")[0]
    assigned = 'text, at = "AB2:4", 1 - 0.875'
    assert assigned in code
    names: dict[str, Any] = {}
    exec(code.replace(assigned, f"text, at = {text!r}, {at}"), names)
    plan: ft.Plan = names["plan"]
    return plan


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """The sizes of the batches that the networks evaluate."""
    rows: list[int] = []
    cls, state = type(network_of(pipe)), family_of(pipe, network_of(pipe)).state
    forward = cls.forward

    def count(module, *args, **kwargs):
        rows.append(len(args[0] if args else kwargs[state]))
        return forward(module, *args, **kwargs)

    with patch.object(cls, "forward", count):
        yield rows


class Extrapolated:
    """A refiner that keeps the shape of what it is shown."""

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []

    def __call__(self, x: torch.Tensor, t: float, cond: None, history: History) -> torch.Tensor:
        self.shapes.append(x.shape)
        assert all(v.shape == x.shape for _, v in history)
        return history[-1][1]


def refined() -> ft.Plan:
    return ft.Plan.parse(REFINED)


def refusal(error: ValueError) -> str:
    """The reason in the message of a refusal."""
    found = re.search(r"cannot run: (.*); take a plan without", str(error))
    assert found, error
    return found[1]


def conditional(name: str) -> str:
    """What a conditional evaluation saves, counted."""
    cell, pipe = built(name)
    try:
        with counted(pipe) as rows, enabled(pipe, BRANCHED):
            final(cell, pipe, 5)
    except ValueError as error:
        return f"no: {refusal(error)}"
    n = pipelines.BATCH
    if rows == [2 * n, 2 * n, n, 2 * n, n]:
        return "half the batch"
    assert rows == [n] * 8, rows
    return "one of two calls"


def refiner(name: str) -> str:
    """The states that a refiner is shown, in place of its evaluations of the network."""
    cell, pipe = built(name)
    shown, rows = Extrapolated(), {}
    for plan in (refined(), ft.Plan.parse("AB2:5@3")):
        try:
            with counted(pipe) as rows[plan], enabled(pipe, plan, shown):
                final(cell, pipe, len(plan))
        except ValueError as error:
            return f"no: {refusal(error)}"
    with_it, without = (len(calls) for calls in rows.values())
    assert with_it * 5 == without * 4
    (shape,) = shown.shapes
    return LAYOUTS[len(shape)]


HEAD = (
    "pipeline",
    "difference",
    "AB2",
    "Heun",
    "conditional evaluations",
    "refiner input",
    "`edit`",
)


def uses(name: str) -> list[str]:
    """All of the row but the orders, measured."""
    cell, known = ROWS[name], family(name)
    edits = "yes" if known.guided and not cell.reference else ""
    return [f"{name}: `{cell.pipeline}`", conditional(name), refiner(name), edits]


def row(name: str) -> list[str]:
    """The row of the table, measured."""
    pipeline, *rest = uses(name)
    orders = order(name, "AB2:", 16), order(name, "H", 8)
    return [pipeline, f"{difference(name):.0g}", *orders, *rest]


def table(rows: list[list[str]]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def documented() -> list[list[str]]:
    """The rows of the table in the docs."""
    lines = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def main() -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    made = table([row(name) for name in ROWS])
    with atomic_write(PAGE) as temporary:
        temporary.write_text(before + START + made + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
