"""What can be wrapped around a field."""

import copy
import pickle

import pytest
import torch
from fields import gaussian

from flowturbo.field import Cast, CountCalls, device_of
from flowturbo.guidance import Guidance
from flowturbo.tree import map_condition


class Scaled:
    """Velocity ``cond * x``, one number per image; the null condition is 0."""

    shape = (3, 2, 2)

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, cond):
        self.batches.append(len(x))
        return cond.reshape(-1, *[1] * (x.ndim - 1)) * x

    def null_condition(self, cond):
        return torch.zeros_like(cond)


X = torch.arange(1.0, 25.0).reshape(2, 3, 2, 2)
COND = torch.tensor([1.0, 2.0])


def each(values):
    return torch.tensor(values).reshape(2, 1, 1, 1)


def test_guidance_is_one_batch():
    field = Scaled()
    v = Guidance(field, 3.0)(X, 0.5, COND)
    assert field.batches == [4]
    assert torch.equal(v, 3 * each([1.0, 2.0]) * X)  # v_u = 0
    assert torch.equal(Guidance(field, 0.0)(X, 0.5, COND), 0 * X)
    assert torch.equal(Guidance(field, 1.0)(X, 0.5, COND), each([1.0, 2.0]) * X)


def test_guidance_away_from_a_given_condition():
    null = torch.tensor([0.5])
    v = Guidance(Scaled(), 3.0, null=null)(X, 0.5, COND)
    assert torch.equal(v, each([0.5 + 3 * 0.5, 0.5 + 3 * 1.5]) * X)
    v = Guidance(lambda x, t, c: Scaled()(x, t, c), 3.0, null=null)(X, 0.5, COND)
    assert torch.equal(v, each([2.0, 5.0]) * X)


def test_guidance_per_image():
    v = Guidance(Scaled(), torch.tensor([1.0, 3.0]))(X, 0.5, COND)
    assert torch.equal(v, each([1.0, 6.0]) * X)


def test_guidance_of_the_first_channels():
    v = Guidance(Scaled(), 3.0, channels=2)(X, 0.5, COND)
    assert torch.equal(v[:, :2], (3 * each([1.0, 2.0]) * X)[:, :2])
    assert torch.equal(v[:, 2:], (each([1.0, 2.0]) * X)[:, 2:])


@pytest.mark.parametrize("tensor", [False, True])
def test_guidance_in_an_interval(tensor):
    field = Scaled()
    guided = Guidance(field, 3.0, interval=(0.2, 0.7))
    for t, scale, batch in [(0.1, 1, 2), (0.2, 3, 4), (0.5, 3, 4), (0.7, 3, 4), (0.8, 1, 2)]:
        t = torch.tensor(t, dtype=torch.float64) if tensor else t
        assert torch.equal(guided(X, t, COND), scale * each([1.0, 2.0]) * X)
        assert field.batches[-1] == batch


def test_guidance_in_an_interval_with_a_time_per_image():
    field = Scaled()
    guided = Guidance(field, torch.tensor([3.0, 5.0]), interval=(0.2, 0.7))
    assert torch.equal(guided(X, torch.tensor([0.5, 0.9]), COND), each([3.0, 2.0]) * X)
    assert torch.equal(guided(X, torch.tensor([0.1, 0.3]), COND), each([1.0, 10.0]) * X)
    assert torch.equal(guided(X, torch.tensor([0.1, 0.9]), COND), each([1.0, 2.0]) * X)
    assert field.batches == [4, 4, 2]


def test_conditions_of_any_structure():
    def field(x, t, cond):
        return Scaled()(x, t, cond["a"][0] + cond["b"])

    null = {"a": (torch.zeros(2), None), "b": torch.zeros(1)}
    cond = {"a": (COND, None), "b": torch.ones(2)}
    assert torch.equal(Guidance(field, 2.0, null=null)(X, 0.5, cond), 2 * each([2.0, 3.0]) * X)
    assert map_condition(lambda c: c, cond).keys() == cond.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": float("nan")}, "finite"),
        ({"scale": torch.tensor([1.0, float("inf")])}, "finite"),
        ({"scale": 2.0, "interval": (0.7, 0.2)}, "from <= to"),
        ({"scale": 2.0, "channels": 0}, "channels=0: must be a whole number from 1"),
    ],
)
def test_bad_guidance(arguments, message):
    with pytest.raises(ValueError, match=message):
        Guidance(Scaled(), **arguments)


def test_guidance_needs_a_condition_to_guide_by():
    with pytest.raises(ValueError, match="has no null_condition"):
        Guidance(gaussian, 2.0)
    with pytest.raises(ValueError, match="cond=None: guidance needs a condition"):
        Guidance(Scaled(), 2.0)(X, 0.5, None)


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


@pytest.mark.parametrize(
    ("cond", "null"),
    [
        (3, 0),
        ({"y": torch.ones(2), "text": "cat"}, {"y": torch.ones(2), "text": ""}),
        (torch.ones(4), torch.ones(2)),
        (torch.ones(4), "cat"),
        (torch.ones(4, 3), torch.ones(4, 2)),
    ],
)
def test_conditions_that_cannot_be_joined_are_refused_not_ignored(cond, null):
    guided = Guidance(lambda x, t, c: x, 2.0, null=null)
    with pytest.raises(ValueError, match="condition"):
        guided(torch.zeros(4, 2), 0.5, cond)


@pytest.mark.parametrize("scale", [None, "2", [1.0, 2.0]])
def test_guidance_is_a_number_or_a_tensor(scale):
    with pytest.raises(ValueError, match=r"must be a finite number .*or a tensor"):
        Guidance(lambda x, t, c: x, scale, null=torch.ones(1))


def test_where_a_field_is():
    weights = torch.nn.Linear(2, 2, device="meta")
    assert device_of(weights).type == "meta"
    assert device_of(Guidance(weights, 2.0, null=torch.zeros(1))).type == "meta"
    assert device_of(torch.nn.Identity()).type == device_of(lambda x, t, cond: x).type == "cpu"

    class Told:
        device = "meta"

    assert device_of(Told()).type == "meta"
