"""Digests of contents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowturbo.digests import content


def test_contents_have_digests_of_their_own():
    one = torch.ones(4)
    values = [
        None, "1", 1, True, [1], [[1]], [1, 1], {"a": 1}, {"b": 1}, one, one.double(), one.long(),
        one.bfloat16(), one.reshape(2, 2), [one], {"a": one}, 2 * one, torch.ones(()),
    ]  # fmt: skip
    assert len({content(v) for v in values}) == len(values)
    assert content({"a": 1, "b": [one, None]}) == content({"b": [one.clone(), None], "a": 1})
    assert content(np.ones(4, np.float32)) == content(one)
    with pytest.raises(ValueError, match="with a object cannot be identified"):
        content([object()])
