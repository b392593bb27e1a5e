"""Conditions of any structure."""

import torch
from fields import Scaled

from flowturbo.guidance import Guidance
from flowturbo.tree import map_condition

X = torch.arange(1.0, 25.0).reshape(2, 3, 2, 2)


COND = torch.tensor([1.0, 2.0])


def each(values):
    return torch.tensor(values).reshape(2, 1, 1, 1)


def test_conditions_of_any_structure():
    def field(x, t, cond):
        return Scaled()(x, t, cond["a"][0] + cond["b"])

    null = {"a": (torch.zeros(2), None), "b": torch.zeros(1)}
    cond = {"a": (COND, None), "b": torch.ones(2)}
    assert torch.equal(Guidance(field, 2.0, null=null)(X, 0.5, cond), 2 * each([2.0, 3.0]) * X)
    assert map_condition(lambda c: c, cond).keys() == cond.keys()
