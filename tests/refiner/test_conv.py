"""The small convolutional network."""

from __future__ import annotations

import pytest

from flowturbo.refiner import SmallNetwork


def test_the_small_network_is_small_and_checks_the_shape():
    n = sum(p.numel() for p in SmallNetwork((3, 32, 32)).parameters())
    assert 50_000 < n < 150_000
    with pytest.raises(ValueError, match="must be"):
        SmallNetwork((3, 32))
    with pytest.raises(ValueError, match=r"\(C, F, H, W\)"):
        SmallNetwork((3, 2, 2, 8, 8))
