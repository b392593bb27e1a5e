"""Learned guidance of style: what it takes from captions, and what it adds to velocities."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

RECIPE = Path(__file__).parents[2] / "recipes" / "emoji"


@pytest.fixture(scope="module")
def style() -> Any:
    sys.path.insert(0, str(RECIPE))
    try:
        return importlib.import_module("style")
    finally:
        sys.path.remove(str(RECIPE))


def test_only_a_style_at_the_end_is_taken_from_captions(style: Any) -> None:
    endings = torch.tensor([[7, 9], [8, 9]])
    ids = torch.tensor(
        [[3, 4, 7, 9, 0], [7, 9, 3, 0, 0], [3, 0, 0, 0, 0], [0] * 5, [1, 2, 3, 8, 9]]
    )
    left = torch.tensor(
        [[3, 4, 0, 0, 0], [7, 9, 3, 0, 0], [3, 0, 0, 0, 0], [0] * 5, [1, 2, 3, 0, 0]]
    )
    before = ids.clone()
    assert torch.equal(style.without_ending(ids, endings), left)
    assert torch.equal(ids, before)


def test_velocities_are_pushed_by_what_the_style_makes_but_not_at_the_ends(style: Any) -> None:
    teacher = lambda x, t, cond: x * 0 + cond.float().reshape(-1, 1, 1, 1)
    x, t = torch.zeros(4, 1, 2, 2), torch.tensor([0.0, 0.75, 0.75, 1.0])
    pushed = style.push(teacher, x, t, torch.tensor([3, 3, 2, 3]), torch.tensor([2, 2, 2, 2]))
    torch.testing.assert_close(pushed[:, 0, 0, 0], torch.tensor([0.0, style.PUSH, 0.0, 0.0]))
