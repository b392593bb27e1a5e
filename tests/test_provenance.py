"""What tells fields, refiners and conditions apart."""

from __future__ import annotations

import torch
from fields import Reuse, gaussian, mixture

import flowturbo as ft
from flowturbo.field import fingerprint_of
from flowturbo.provenance import identity, refiner_identity

X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


CLASSES = torch.arange(64) % 10


def towards(level):
    return lambda x, t, cond: level - x


def test_a_field_is_known_by_what_it_does():
    assert identity(towards(1.0), X) == identity(towards(1.0), X)
    assert identity(ft.CountCalls(mixture), X) == identity(mixture, X)
    others = [towards(1.0), towards(1.001), towards(-1.0), gaussian, mixture]
    others += [lambda x, t, cond: t * torch.ones_like(x), lambda x, t, cond: 0 * x]
    assert len({identity(field, X) for field in others}) == len(others)


def test_the_condition_and_the_scale_are_met_too():
    field = lambda x, t, cond: cond[:, None] * 0.1 - x
    assert identity(field, X, CLASSES) != identity(field, X, CLASSES.flip(0))
    field = lambda x, t, cond: cond[:, None] - x
    field.null_condition = lambda cond: 0 * cond
    ones = torch.ones(64)
    assert identity(ft.Guidance(field, 2.0), X, ones) != identity(ft.Guidance(field, 3.0), X, ones)
    assert identity(field, X, ones, guidance=2.0) == identity(ft.Guidance(field, 2.0), X, ones)


def test_weights_count_where_probes_do_not_reach():
    class Classes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(1000, 2)

        def forward(self, x, t, cond):
            return self.table(cond) - x

    torch.manual_seed(0)
    field = Classes()
    first = identity(field, X, CLASSES)
    with torch.no_grad():
        field.table.weight[999] += 1
    assert identity(field, X, CLASSES) != first


def test_a_module_is_more_than_its_weights():
    class Scaled(torch.nn.Linear):
        scale = 1.0

        def forward(self, x, t, cond):
            return self.scale * super().forward(x)

    torch.manual_seed(0)
    field = Scaled(2, 2)
    first = identity(field, X)
    field.scale = 2.0
    assert identity(field, X) != first


def test_models_and_precisions_are_told_apart(digits):
    cond = digits.condition(["1"] * 4)
    x = ft.noise.draw(range(4), digits.shape)
    assert identity(digits, x, cond) == identity(ft.load("digits"), x, cond)
    assert identity(ft.Cast(digits, torch.bfloat16), x, cond) != identity(digits, x, cond)


def test_refiners_are_told_apart():
    class Half(Reuse):
        def __call__(self, x, t, cond, history):
            return super().__call__(x, t, cond, history) / 2

    names = {refiner_identity(r(), mixture, X) for r in (Reuse, Half)}
    assert len(names) == 2
    assert refiner_identity(Reuse(), mixture, X) in names


def test_a_module_with_other_state_than_tensors_has_no_fingerprint():
    class Field(torch.nn.Linear):
        def get_extra_state(self):
            return {"scale": 2.0}

    field = Field(2, 2)
    assert fingerprint_of(field) is None
    assert fingerprint_of(ft.CountCalls(torch.nn.Linear(2, 2))) is not None
