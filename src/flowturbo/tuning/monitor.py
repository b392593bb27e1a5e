"""A field that is watched while a search runs: its velocities checked, its evaluations told."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from flowturbo.field import CountCalls, Field
from flowturbo.guidance import Guidance

__all__ = ["watched"]

EVERY = 10.0  # seconds between two lines


def watched(field: Field, say: Callable[[str], None]) -> Field:
    """``field``, with a line to ``say`` every ten seconds of its evaluations.

    It raises ``ValueError`` for a velocity that is no tensor of the shape of the state.
    """
    if not isinstance(field, Guidance):
        return _Watched(field, say)
    made = copy.copy(field)  # the sampling loop tells one from other fields
    made.field = _Watched(field.field, say)
    return made


class _Watched(CountCalls):
    def __init__(self, field: Field, say: Callable[[str], None]) -> None:
        super().__init__(field)
        self._say, self._next = say, time.monotonic() + EVERY

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Tensor:
        v = super().__call__(x, t, cond)
        if not isinstance(v, Tensor) or v.shape != x.shape:
            got = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(
                f"the field gives {got} at t={float(t):.4g} for states {tuple(x.shape)}: must be a "
                "tensor like the states"
            )
        if time.monotonic() > self._next:
            self._say(f"{self.calls} evaluations of the model so far")
            self._next = time.monotonic() + EVERY
        return v
