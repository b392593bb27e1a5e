"""What can be wrapped around a field."""

import copy
import pickle

import pytest
import torch
from fields import Scaled

from flowturbo.field import Cast, CountCalls, device_of
from flowturbo.guidance import Guidance

X = torch.arange(1.0, 25.0).reshape(2, 3, 2, 2)


COND = torch.tensor([1.0, 2.0])


def test_counting():
    field = CountCalls(Guidance(Scaled(), 2.0))
    assert field.calls == 0
    field(X, 0.5, COND)
    field(X, 0.5, COND)
    assert field.calls == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_cast_keeps_the_state_and_never_rounds_times(dtype):
    seen = []

    def field(x, t, cond):
        seen.append((x.dtype, t.dtype, cond["text"].dtype, cond["ids"].dtype))
        return x

    cond = {"text": torch.ones(2), "ids": torch.ones(2, dtype=torch.long), "none": None}
    v = Cast(field, dtype)(X, torch.tensor(0.123, dtype=torch.float64), cond)
    assert v.dtype == X.dtype
    assert seen == [(dtype, torch.float64, dtype, torch.long)]


def test_wrappers_pass_attributes_through_and_copy():
    field = Cast(CountCalls(Scaled()), torch.float64)
    assert field.shape == (3, 2, 2)
    assert field.calls == 0
    with pytest.raises(AttributeError):
        _ = field.missing
    for other in (copy.deepcopy(field), pickle.loads(pickle.dumps(field))):
        assert torch.equal(other(X, 0.5, COND), field(X, 0.5, COND))


def test_where_a_field_is():
    weights = torch.nn.Linear(2, 2, device="meta")
    assert device_of(weights).type == "meta"
    assert device_of(Guidance(weights, 2.0, null=torch.zeros(1))).type == "meta"
    assert device_of(torch.nn.Identity()).type == device_of(lambda x, t, cond: x).type == "cpu"

    class Told:
        device = "meta"

    assert device_of(Told()).type == "meta"
