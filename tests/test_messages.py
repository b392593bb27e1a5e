"""Messages: unknown keywords, and any value on one short line."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowturbo import checks


def test_unknown_keywords():
    @checks.known_keywords
    def run(model, *, minutes=1, seed=0):
        return minutes

    assert run(0, minutes=2) == 2
    assert list(inspect.signature(run).parameters) == ["model", "minutes", "seed"]
    with pytest.raises(ValueError, match=r"run\(minuts=1\): .*'minuts'; did you mean 'minutes'"):
        run(0, minuts=1)
    with pytest.raises(ValueError, match=r"'q'; it takes minutes, model, seed"):
        run(0, q=1)
    with pytest.raises(TypeError, match="missing"):
        run()


def test_unknown_keywords_of_classes():
    @checks.known_keywords
    class Wrapper:
        def __init__(self, field, scale=1.0):
            self.scale = scale

    assert Wrapper(0, scale=2).scale == 2
    with pytest.raises(ValueError, match=r"Wrapper\(scael=2\): .*did you mean 'scale'"):
        Wrapper(0, scael=2)


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.text() | st.binary() | st.integers() | st.floats(), st.lists))
def test_any_value_is_shown_on_one_short_line(value):
    for text in (checks.shown(value), checks.shown([value] * 1000), checks.shown({"a": value})):
        assert len(text.splitlines()) == 1
        assert len(text) <= 80


def test_long_values_are_shown_short():
    values = ["a" * 10**6, list(range(10**6)), torch.zeros(100, 100), np.zeros(10**5), 10**6000]
    assert all(len(checks.shown(v)) <= 80 for v in (*values, *([v] for v in values)))
