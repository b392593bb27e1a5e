"""Checks of arguments: what they let through, and the one line for what they do not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from flowturbo import checks


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_any_type(value):
    found = checks.whole("n", value, 1, 5)
    assert (type(found), found) == (int, 3)


@pytest.mark.parametrize(
    "value",
    [
        2.0,
        np.float32(2),
        True,
        np.True_,
        torch.tensor(True),
        torch.tensor([2]),
        "2",
        None,
        0,
        6,
        [2],
    ],
)
def test_other_than_whole_numbers_in_range_are_refused(value):
    with pytest.raises(ValueError, match=r"^n=.+: must be a whole number from 1 to 5$"):
        checks.whole("n", value, 1, 5)


def test_numbers_that_cannot_be_looked_at_or_written_out():
    for value in (torch.empty((), device="meta"), np.array(2.5), 10**6000):
        with pytest.raises(ValueError, match=r"^n=.+: must be a whole number from 1 to 5$"):
            checks.whole("n", value, 1, 5)


def test_open_ranges_and_large_limits_are_readable():
    assert checks.whole("n", -7) == -7
    for limits, told in (
        ((1,), "from 1"),
        ((None, 9), ", at most 9"),
        ((0, 2**63 - 1), "2..63 - 1"),
    ):
        with pytest.raises(ValueError, match=told):
            checks.whole("n", 10**30 if len(limits) > 1 else 0, *limits)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int8(1), Fraction(1)])
def test_real_numbers(value):
    found = checks.number("w", value)
    assert (type(found), found) == (float, 1.0)


@pytest.mark.parametrize("value", [True, "1", None, 1j, float("nan"), float("inf"), 10**400, [1.0]])
def test_other_than_finite_numbers_are_refused(value):
    with pytest.raises(ValueError, match=r"^w=.+: must be a finite number$"):
        checks.number("w", value)


def test_ranges_of_numbers():
    assert checks.number("w", 0.5, 0, 1) == 0.5
    with pytest.raises(ValueError, match=r"w=-0\.1: must be a finite number from 0 to 1"):
        checks.number("w", -0.1, 0, 1)
    with pytest.raises(ValueError, match=r"w=0: must be a finite number above 0"):
        checks.number("w", 0, above=0)


def test_devices():
    assert checks.device("device", "cpu") == checks.device("device", torch.device("cpu"))
    for value, told in [
        ("gpu", "did you mean 'cuda'"),
        ("GPU:1", "did you mean 'cuda:1'"),
        ("cdua", "did you mean 'cuda'"),
        ("meta", "holds no values"),
        ("cuda:999", "not available here"),
        (True, "must be a device"),
        (None, "must be a device"),
        (2.5, "must be a device"),
        (10**30, "must be a device"),
    ]:
        with pytest.raises(ValueError, match=rf"^device=.*{told}"):
            checks.device("device", value)


@pytest.mark.parametrize(
    "value", [torch.int32, torch.complex64, "float32", np.float32, None, float]
)
def test_types_that_networks_do_not_compute_in(value):
    with pytest.raises(ValueError, match=r"^dtype=.*: must be one of torch\.float16"):
        checks.dtype("dtype", value)


def test_tensors():
    x = torch.zeros(4, 2, 3)
    assert checks.tensor("x", x, ("B", 2, 3), finite=True) is x
    assert checks.tensor("x", x, ("B", 2, ...)) is x
    for value, told in [
        (
            np.zeros((4, 2, 3)),
            r"<array .* of float64>: .*\(B, 2, \.\.\.\).*as_tensor\(x\)",
        ),
        (x[:, :1], r"<tensor \(4, 1, 3\) of torch.float32>: must be a tensor \(B, 2, \.\.\.\)"),
        (torch.zeros(()), r"x=tensor\(0\.\)"),
        (x.to_sparse(), "dense"),
        (x.int(), r"must be of torch\.float32"),
        (x / 0, "NaN or infinity"),
        (None, "x=None: must be a tensor"),
    ]:
        with pytest.raises(ValueError, match=told):
            checks.tensor("x", value, ("B", 2, ...), dtypes=[torch.float32], finite=True)


def test_texts_of_a_list():
    assert checks.one_of("scope", "row", ["plan", "row"]) == "row"
    with pytest.raises(ValueError, match=r"scope='rwo': must be one of .*; did .*'row'"):
        checks.one_of("scope", "rwo", ["plan", "row"])
