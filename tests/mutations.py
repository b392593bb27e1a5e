"""Files damaged in the ways that disks and transfers damage them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st


def mutated(data: bytes, draw: Callable[[Any], Any]) -> bytes:
    """``data`` cut, with bits flipped, bytes put in, or a part of it moved."""
    at = draw(st.integers(0, len(data) - 1))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "erase", "repeat"]))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    if kind == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=9)) + data[at:]
    end = min(len(data), at + draw(st.integers(1, 60)))
    return data[:at] + (data[at:end] * 2 if kind == "repeat" else b"") + data[end:]
