"""Classifier-free guidance: its limits, intervals and conditions."""

import pytest
import torch
from fields import Scaled, gaussian

from flowturbo.guidance import Guidance

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
