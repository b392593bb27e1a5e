"""The bundled digits: a reader that knows real digits reads them as the digit asked for."""

from __future__ import annotations

import pytest
import torch
from digit_reader import load_reader

import flowturbo as ft


def share_read(model: ft.Model, n: int, plan: str, guidance: float = 2.0) -> float:
    """The share of ``n`` digits, classes in turn, that the reader reads as asked for."""
    read, right = load_reader(), 0
    for first in range(0, n, 100):
        rows = range(first, min(first + 100, n))
        cond = model.condition([i % 10 for i in rows])
        x0 = ft.noise.draw(rows, model.shape)
        x1 = ft.sample(ft.Plan.parse(plan), model, x0, cond, guidance=guidance)
        right += int((read(x1).argmax(1) == cond).sum())
    return right / n


def test_a_hundred_digits_at_eight_evaluations(digits):
    assert share_read(digits, 100, "AB2:8@1.6") >= 0.97


@pytest.mark.slow
def test_a_thousand_digits_at_a_converged_plan(digits):
    """40 evaluations differ from 80 by less than a grey level on average, so it has converged."""
    x0, cond = ft.noise.draw(range(20), digits.shape), digits.condition(list(range(10)) * 2)
    fine, finer = (
        ft.sample(ft.Plan.parse(f"AB4RK:{n}@1.6"), digits, x0, cond, guidance=2.0) for n in (40, 80)
    )
    assert (fine - finer).square().mean().sqrt() < 0.02
    share = share_read(digits, 1000, "AB4RK:40@1.6")
    print(f"read as asked for: {share:.3f} of 1000")
    assert share >= 0.97


def test_the_reader_is_no_yes_man(digits):
    """Digits drawn for another class are read as that class."""
    x0 = ft.noise.draw(range(20), digits.shape)
    cond = digits.condition([3] * 20)
    x1 = ft.sample(ft.Plan.parse("AB2:8@1.6"), digits, x0, cond, guidance=2.0)
    assert (load_reader()(x1).argmax(1) == torch.tensor(7)).float().mean() < 0.1
