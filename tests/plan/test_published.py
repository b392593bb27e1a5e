"""Tables of other papers as plans, against their update written out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from fields import mixture

import flowturbo as ft
from flowturbo.plan.published import neural_solver, optimal_steps

STEPS = [0.1002, 0.35, 0.2501, 0.2999]
COEFFS = [[0, 0, 0, 0], [-1.2, 0, 0, 0], [1.0, -2.0, 0, 0], [-0.3, 0.9, -1.5, 0]]
FILE = f"""
FM_DATA = dict(
    step2=dict(timedeltas=[0.4, 0.6], coeffs=[[0.0, 0.0], [-0.5, 0.0]]),
    step4=dict(timedeltas={STEPS}, coeffs={COEFFS}),
)

import something_that_is_not_installed

raise SystemExit("run")
"""
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def update(steps, coeffs, x):
    """NeuralSolver's loop: the last coefficient of a row is what is left to 1."""
    t, known = 0.0, []
    for dt, row in zip(steps, coeffs, strict=True):
        known.append(mixture(x, t))
        *earlier, last = known
        used = row[: len(earlier)]
        v = sum((c * v for c, v in zip(used, earlier, strict=True)), (1 - sum(used)) * last)
        x, t = x + dt * v, t + dt
    return x


@pytest.mark.parametrize(("count", "steps", "coeffs"), [
    (2, [0.4, 0.6], [[0, 0], [-0.5, 0]]), (4, STEPS, COEFFS),
])  # fmt: skip
def test_a_table_of_neural_solver_is_a_plan(count, steps, coeffs, tmp_path):
    path = tmp_path / "ns_sampling.py"
    path.write_text(FILE)
    plan = neural_solver(path, count)
    assert plan == neural_solver({"timedeltas": steps, "coeffs": coeffs})
    assert plan.nfe["model"] == count
    torch.testing.assert_close(ft.sample(plan, mixture, X), update(steps, coeffs, X))
    plan.save(tmp_path / "plan.json")
    assert ft.Plan.load(tmp_path / "plan.json") == plan


def test_a_list_of_steps_is_an_euler_plan():
    levels = np.linspace(0, 1, 11) ** 1.5
    plan = optimal_steps([3, 6, 10], levels)
    x, times = X, [0.0, 1 - levels[6], 1 - levels[3], 1.0]
    for a, b in pairwise(times):
        x = x + (b - a) * mixture(x, a)
    torch.testing.assert_close(ft.sample(plan, mixture, X), x)
    assert plan == optimal_steps([10, 6, 3], list(levels))
    assert plan.name == "OptimalSteps, 3 evaluations"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no FM_DATA; pass the copy"),
        ("FM_DATA = dict(step2=3)", "its FM_DATA cannot be read"),
        ("FM_DATA = dict(step2=dict(timedeltas=f(), coeffs=[]))", "its FM_DATA cannot be read"),
        ("FM_DATA = dict(", "its FM_DATA cannot be read"),
        (FILE, "evaluations=3: ns_sampling.py has tables of 2, 4 evaluations"),
    ],
)
def test_refuses_files_without_tables(text, message, tmp_path):
    path = tmp_path / "ns_sampling.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        neural_solver(path, 3)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"timedeltas": [1.0]}, "has no coeffs"),
        (
            {"timedeltas": [0.4, 0.4], "coeffs": [[0, 0], [0, 0]]},
            r"with the sum 0\.8, .* the sum 1",
        ),
        ({"timedeltas": [-1.0, 2.0], "coeffs": [[0, 0], [0, 0]]}, "above 0"),
        ({"timedeltas": [0.4, 0.6], "coeffs": [[0, 0]]}, r"coeffs \(1, 2\); must be"),
        ({"timedeltas": [0.4, 0.59], "coeffs": [[0, 0], [0, 0]]}, r"with the sum 0\.99, "),
        ({"timedeltas": [0.4, 0.6], "coeffs": [[0, 1], [0, 0]]}, "must be 0 on the diagonal"),
        ({"timedeltas": [float("nan")], "coeffs": [[0]]}, "timedeltas=.*: must be finite"),
    ],
)
def test_refuses_tables_that_are_none(table, message):
    with pytest.raises(ValueError, match=message):
        neural_solver(table)


def test_a_table_alone_has_no_number_to_choose_by():
    with pytest.raises(ValueError, match="evaluations=2: source is one table; leave it out"):
        neural_solver({"timedeltas": [0.4, 0.6], "coeffs": [[0, 0], [0, 0]]}, 2)


@pytest.mark.parametrize(
    ("steps", "levels", "message"),
    [
        ([], [0, 1], "must be one or more indices, each once"),
        ([1, 1], [0, 1], "each once"),
        ([0], [0, 1], "steps=0: must be a whole number from 1 to 1"),
        ([2], [0, 1], "steps=2: must be a whole number from 1 to 1"),
        ([1], [0.1, 1], "must ascend from 0"),
        ([1], [0, 0.5, 0.4], "must ascend from 0"),
        ([1], [0, 1.5], "at most 1"),
        ([1], "levels", "noise_levels"),
        ([1], [], "must ascend"),
        ([1], [[0, 1]], "in one row"),
        (5, [0, 1], "steps=5: must be a list of indices"),
        ("12", [0, 1], "steps='12': must be a list of indices"),
    ],
)
def test_refuses_steps_that_are_none(steps, levels, message):
    with pytest.raises(ValueError, match=message):
        optimal_steps(steps, levels)
