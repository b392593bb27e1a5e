"""The registry of solvers: entries are correct, and what is derived from them exists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fields import mixture, runge_kutta

import flowturbo as ft
from flowturbo.integrations.diffusers import tables
from flowturbo.plan.solvers import SOLVERS
from flowturbo.plan.solvers.flowturbo import BLOCKS

CONCEPTS = Path(__file__).parents[2] / "docs" / "concepts.md"


@pytest.mark.parametrize("ends", [(0.1, 0.9), (0.9, 0.1)])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_order_is_that_of_its_entry(name, ends):
    """Away from the ends of the path, where some solvers step more coarsely."""
    solver, sizes = SOLVERS[name], (64, 96, 128)
    start = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = runge_kutta(mixture, start, *ends, 2000)
    grid = dict(start=ends[0], end=ends[1], direction="forward" if ends[0] < 0.5 else "backward")
    errors = []
    for n in sizes:
        count = n if solver.counts == "steps" else n + solver.extra
        plan = ft.Plan.parse(f"{name}:{count}", **grid)
        assert len(plan) == n * solver.evaluations + solver.extra
        errors.append((ft.sample(plan, mixture, start) - exact).square().mean().sqrt().item())
    slope = -np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(solver.order, abs=0.25)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_entry_gives_notation_messages_and_a_name_for_diffusers(name):
    solver, count = SOLVERS[name], 20
    plan = ft.Plan.parse(f" {name.lower()}: {count}@1.6 ")
    assert plan.name == f"{name}:{count}@1.6"
    with pytest.raises(ValueError, match=rf"allowed: .*\b{name}\b"):
        ft.Plan.parse("XYZ:8")
    assert ft.Plan.parse(f"{name}:{count}", direction="backward").times[0] == 1
    single = solver.evaluations == 1 and not solver.extra
    assert (name in tables.SOLVERS) == single


def test_the_table_of_the_documentation_is_the_registry():
    table = CONCEPTS.read_text("utf-8").split("| notation | solver |")[1].split("\n\n")[0]
    rows = [
        f"| `{s.name}:8` | {s.title} | {s.order} | {s.counts} | {s.evaluations} | {s.source} |"
        for s in SOLVERS.values()
    ]
    assert table.splitlines()[2:] == rows


def test_the_table_of_blocks_is_the_registry():
    table = CONCEPTS.read_text("utf-8").split("| block | computes |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")] for row in table.splitlines()[2:]]
    shown = {row[1]: int(row[3].partition(",")[0]) for row in rows}
    paper = {k: b for k, b in BLOCKS.items() if k != "E"}
    assert shown == {f"`{letter}`, {block.title}": block.cost for letter, block in paper.items()}


def test_ipndm_is_adams_bashforth_of_equal_steps():
    even, uneven = (ft.Plan.parse(f"IPNDM:8@{shift}") for shift in (1, 3))
    np.testing.assert_allclose(even.weights, ft.Plan.parse("AB4:8").weights, atol=1e-12)
    shares = uneven.weights[5] / np.diff(uneven.times)[5]
    np.testing.assert_allclose(shares[2:6] * 24, [-9, 37, -59, 55])
    assert np.abs(uneven.weights).sum() < np.abs(ft.Plan.parse("AB4:8@3").weights).sum()


def test_the_papers_ideas_are_named_where_they_are_implemented():
    source = Path(ft.__file__).parent
    for name, place in {
        "pseudo corrector": source / "plan" / "solvers" / "flowturbo.py",
        "velocity refiner": source / "refiner" / "paper.py",
        "sample-aware compilation": source / "compiled" / "sampler.py",
    }.items():
        assert re.search(name.replace(" ", r"\s"), place.read_text("utf-8"), re.I), place
    papers = {"E": "Euler", "H": "Heun", "P": "pseudo corrector", "R": "velocity refiner"}
    assert {letter: BLOCKS[letter].title for letter in papers} == papers


@pytest.mark.parametrize("letter", [letter for letter in BLOCKS if letter != "R"])
def test_a_chain_of_blocks_converges_at_their_order(letter):
    start = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = ft.sample("RK4:200", mixture, start)
    plans = [ft.Plan.parse(f"{letter}{n}") for n in (32, 48, 64)]
    errors = [(ft.sample(p, mixture, start) - exact).square().mean().sqrt() for p in plans]
    slope = np.polyfit(np.log([1 / 32, 1 / 48, 1 / 64]), np.log(errors), 1)[0]
    assert slope == pytest.approx(BLOCKS[letter].order, abs=0.2)
