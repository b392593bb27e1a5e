"""What works in which pipeline, measured on the tiny ones, and the table of it in the docs.

    PYTHONPATH=tests python -m integrations.breadth

writes the table into docs/diffusers.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.linalg import block_diag

import flowturbo as ft
from flowturbo.files import atomic_write
from flowturbo.integrations.diffusers import disable, enable
from flowturbo.integrations.diffusers.families import family_of
from flowturbo.integrations.diffusers.pipeline import network_of, networks_of
from flowturbo.refiner.binding import History
from integrations import pipelines
from integrations.pipelines import CELLS, EULER, MORE, Cell, final

PAGE = Path(__file__).parents[2] / "docs" / "diffusers.md"
START, END = "<!-- made by tests/integrations/breadth.py -->\n", "<!-- end -->\n"
ROWS = {name: MORE[name] for name in MORE if name not in ("SkyReels", "LTX condition")}
ROWS |= {name: cell for name, cell in CELLS.items() if not cell.image and name != "U-Net"}
SLOW = 1 / 500  # else the waves of the time's embedding hide the order
TIMES = ("timestep", "timesteps", "timestep_r", "sigma")
LAYOUTS = {3: "(B, C, N)", 4: "(B, C, H, W)", 5: "(B, C, F, H, W)"}
BRANCHED, REFINED = "AB2:FFCFC", "MMRMM"


def built(name: str) -> tuple[Cell, Any]:
    """The cell, and a pipeline with the kind of scheduler that it comes with."""
    cell = ROWS[name]
    return cell, cell.build(pipelines.scheduler(name) if name in MORE else EULER(shift=3.0))


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
        return args, {k: SLOW * v if k in TIMES and v is not None else v for k, v in kwargs.items()}

    handles = [n.register_forward_pre_hook(slow, with_kwargs=True) for n in networks_of(pipe)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def end(name: str, plan: Any) -> torch.Tensor:
    """The state at the end of ``plan``, time slowed down, without guidance if that has a memory."""
    cell, pipe = built(name)
    plan = ft.Plan.parse(plan) if isinstance(plan, str) else plan
    with slowed(pipe), enabled(pipe, plan):
        return final(cell if cell.linear else cell.unguided(), pipe, len(plan))


def order(name: str, coarse: Any, fine: Any, exact: Any = "RK4:16") -> float:
    """Of convergence, of a plan and one of half its steps' size."""
    reference = end(name, exact)
    errors = [(end(name, plan) - reference).square().mean().sqrt() for plan in (coarse, fine)]
    return float(torch.log2(errors[0] / errors[1]))


def joined(*plans: ft.Plan, at: float) -> ft.Plan:
    """Two plans, one after the other: the first from 0 to ``at``, the second from there to 1."""
    first, second = plans
    scaled = [at * first.times, at + (1 - at) * second.times]
    return ft.Plan(
        times=np.concatenate([scaled[0][:-1], scaled[1]]),
        evaluators=first.evaluators + second.evaluators,
        weights=block_diag(at * first.weights, (1 - at) * second.weights),
        name=f"{first.name}, {second.name}",
    )


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
    names = {"M": "model", "R": "refiner"}
    base = ft.Plan.parse(f"AB2:{len(REFINED)}@3")
    evaluators = tuple(names[letter] for letter in REFINED)
    return ft.Plan(times=base.times, evaluators=evaluators, weights=base.weights, name=REFINED)


def refusal(error: ValueError) -> str:
    """The reason in the message of a refusal."""
    found = re.search(r"cannot run: (.*); take a plan without", str(error))
    assert found, error
    return found[1]


def conditional(name: str) -> str:
    """What a conditional evaluation saves, counted."""
    cell, pipe = built(name)
    try:
        enable(pipe, plan=BRANCHED)
    except ValueError as error:
        return f"no: {refusal(error)}"
    with counted(pipe) as rows:
        final(cell, pipe, 5)
    disable(pipe)
    n = pipelines.BATCH
    saved = {
        (2 * n, 2 * n, n, 2 * n, n): "half the batch",
        (n, n, n, n, n, n, n, n): "one call of two",
    }
    return saved[tuple(rows)]


def refiner(name: str) -> str:
    """The states that a refiner is shown."""
    cell, pipe = built(name)
    shown = Extrapolated()
    try:
        enable(pipe, plan=refined(), refiner=shown)
    except ValueError as error:
        return f"no: {refusal(error)}"
    with counted(pipe) as rows:
        final(cell, pipe, len(REFINED))
        with_it = len(rows)
    disable(pipe)
    with counted(pipe) as rows, enabled(pipe, f"AB2:{len(REFINED)}@3"):
        final(cell, pipe, len(REFINED))
    assert with_it * len(REFINED) == len(rows) * REFINED.count("M")
    (shape,) = shown.shapes
    return LAYOUTS[len(shape)]


def orders(name: str) -> str:
    """The orders of convergence of AB2 and of Heun's method, to one digit."""
    return f"{order(name, 'AB2:16', 'AB2:32'):.1f}, {order(name, 'H8', 'H16'):.1f}"


def row(name: str, measured: str) -> list[str]:
    """The row of the table; ``measured`` are the orders."""
    cell, pipe = built(name)
    guided = family_of(pipe, network_of(pipe)).guided if family_of(pipe, network_of(pipe)) else None
    edits = "yes" if guided and name in CELLS else ""
    return [f"`{cell.pipeline}`", name, measured, conditional(name), refiner(name), edits]
