"""A field during a search: its velocities are checked, its evaluations counted and reported."""

from __future__ import annotations

import copy
import time

from torch import Tensor

from flowturbo.field import CountCalls, Field
from flowturbo.guidance import Guidance
from flowturbo.progress import Progress, Report
from flowturbo.types import Condition, Time

__all__ = ["monitored"]

EVERY = 10.0  # seconds between two reports


def monitored(field: Field, report: Report) -> Field:
    """``field``, with a `Progress` every ten seconds of its evaluations.

    It raises ``ValueError`` for a velocity that is not a tensor of the shape of the state.
    """
    if not isinstance(field, Guidance):
        return _Monitored(field, report)
    made = copy.copy(field)  # the sampling loop tells one from other fields
    made.field = _Monitored(field.field, report)
    return made


class _Monitored(CountCalls):
    def __init__(self, field: Field, report: Report) -> None:
        super().__init__(field)
        self._report, self._next = report, time.monotonic() + EVERY

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        v = super().__call__(x, t, cond)
        if not isinstance(v, Tensor) or v.shape != x.shape:
            got = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(
                f"the field returned {got} at t={float(t):.4g} for states {tuple(x.shape)}: must "
                "be a tensor like the states"
            )
        if time.monotonic() > self._next:
            self._report(Progress("evaluations", self.calls, None))
            self._next = time.monotonic() + EVERY
        return v
