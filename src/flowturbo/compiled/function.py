"""The whole sampler as one function of tensors, to be compiled, captured or exported.

    f(x, cond, null, scale) -> x1

``x`` (B, ...) is the state, ``cond`` the condition of B rows or None; with guidance, ``null`` is
the condition of the unconditional branch, of B rows too, and ``scale`` (B,); without, both are
None. The plan is constant, so control flow does not depend on data, and no values are read from the
device.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowturbo.field import Cast, Field
from flowturbo.guidance import Guidance
from flowturbo.plan import Plan, Row
from flowturbo.refiner.binding import Refiner, bind_refiner
from flowturbo.sampling import Evaluate, evaluators, run
from flowturbo.types import Condition

__all__ = ["Function", "in_dtype"]


class Function(nn.Module):
    """``sample`` for one plan and field, without its checks.

    Args:
        plan: the table.
        field: the field, unguided.
        refiner: for the rows that need one.
        dtype: to run the field in; None leaves it as it is.
        interval: of guidance, see ``flowturbo.Guidance``.
        channels: of guidance, likewise.
    """

    def __init__(
        self,
        plan: Plan,
        field: Field,
        refiner: Refiner | None,
        *,
        dtype: torch.dtype | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        channels: int | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.rows = plan, plan.rows
        self.field, self.refiner = field, refiner
        self.dtype, self.interval, self.channels = dtype, interval, channels

    def replaced(self, field: Field, refiner: Refiner | None) -> Function:
        """The same with another field, which casts itself, and another refiner."""
        return Function(self.plan, field, refiner, interval=self.interval, channels=self.channels)

    def cast(self) -> Field:
        """The field on states in the precision of the sampler's."""
        return self.field if self.dtype is None else Cast(self.field, self.dtype)

    def evaluators(
        self, cond: Condition, null: Condition, scale: Tensor | None, rows: Sequence[Row]
    ) -> dict[str, Evaluate]:
        """What ``rows`` call."""
        model = self.cast()
        if scale is not None:
            model = Guidance(
                model, scale, null=null, interval=self.interval, channels=self.channels
            )
        refiner = None if self.refiner is None else bind_refiner(model, self.refiner)
        return evaluators(model, refiner, cond, rows)

    def forward(self, x: Tensor, cond: Condition, null: Condition, scale: Tensor | None) -> Tensor:
        """The state at the end of the plan."""
        return run(self.rows, self.evaluators(cond, null, scale, self.rows), x)


def in_dtype(module: Any, dtype: torch.dtype | None) -> Any:
    """A copy of a module in ``dtype``; itself if it is so already, or no module."""
    if dtype is None or not isinstance(module, nn.Module):
        return module
    if all(p.dtype == dtype for p in module.state_dict().values() if p.is_floating_point()):
        return module
    return copy.deepcopy(module).to(dtype)
