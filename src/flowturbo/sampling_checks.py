"""Checks of the inputs of sampling, and of the results of evaluators and the callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.field import check_values
from flowturbo.plan import Plan, Row
from flowturbo.types import Condition

__all__ = [
    "NotFinite",
    "annotated",
    "check_arguments",
    "check_channels",
    "check_inputs",
    "check_result",
    "finite_callback",
    "finite_step",
]

T = TypeVar("T")
StepFunction: TypeAlias = Callable[..., tuple[Tensor, dict[int, Tensor]]]


class NotFinite(ValueError):
    """States became NaN or infinite: the guidance or the plan is unsuitable for the field."""


def check_arguments(
    model: object,
    x: Tensor,
    cond: object,
    negative: object,
    refiner: object,
    callback: object,
    differentiable: object,
) -> None:
    """Check the arguments of ``sample`` that can be checked without the plan."""
    checks.function("model", model, "x, t, cond")
    on_cpu = isinstance(x, Tensor) and x.device.type == "cpu"
    checks.tensor("x", x, ("B", ...), dtypes=checks.DTYPES, finite=on_cpu)
    if refiner is not None:
        checks.function("refiner", refiner, "x, t, cond, history")
    if callback is not None:
        checks.function("callback", callback, "step")
    checks.flag("differentiable", differentiable)
    for name, value in (("cond", cond), ("negative", negative)):
        check_values(name, value, x)
    check_inputs(model, refiner, x, cond, negative)


def check_inputs(
    model: object, refiner: object, x: Tensor, cond: Condition = None, negative: Condition = None
) -> None:
    """Run the ``check_inputs`` of the field and the refiner; see ``flowturbo.field``."""
    for name, evaluator in (("model", model), ("refiner", refiner)):
        check = getattr(evaluator, "check_inputs", None)
        try:
            if check is not None:
                check(x, cond, negative)
        except ValueError as e:
            raise ValueError(f"{name} {checks.shown(evaluator)} is called with {e}") from None


def check_channels(channels: object, x: Tensor) -> None:
    """Check ``guidance_channels`` of ``sample`` against the state."""
    most = x.shape[1] if x.ndim > 1 else 0
    whole = isinstance(channels, int) and not isinstance(channels, bool)
    if not whole or channels not in range(1, most + 1):
        raise ValueError(
            f"guidance_channels={checks.shown(channels)}: must be a whole number, 1 to the {most} "
            "channels of the state, or None for all"
        )


def check_result(value: object, x: Tensor, row: Row, source: str = "") -> Tensor:
    """``value`` in the precision of ``x``, refused unless it is like ``x``."""
    if (
        not isinstance(value, Tensor)
        or value.shape != x.shape
        or value.device != x.device
        or not value.is_floating_point()
    ):
        source, at = source or row.evaluator, row.to if source else row.model_time
        raise ValueError(
            f"the {source} returned {checks.shown(value)} at t={at:g}: must be a tensor of real "
            f"numbers like the state, {tuple(x.shape)} on {x.device}"
        )
    return value if torch.promote_types(value.dtype, x.dtype) == x.dtype else value.to(x.dtype)


def annotated(evaluate: Callable[..., T], cond: Condition) -> Callable[..., T]:
    """``evaluate``; errors of the field get a note about the arguments it was called with."""

    def call(row: Row, x: Tensor, velocities: Mapping[int, Tensor]) -> T:
        try:
            return evaluate(row, x, velocities)
        except Exception as e:
            if not isinstance(e, ValueError):  # these are self-explanatory
                e.add_note(
                    f"flowturbo called the field with x={checks.shown(x)}, t={row.model_time:g} as "
                    f"a tensor of shape (), cond={checks.shown(cond)}; for one time per image, a "
                    "field takes t.expand(len(x)); a condition is passed as cond=..."
                )
            raise

    return call


def finite_step(plan: Plan, step: StepFunction) -> StepFunction:
    """``step``, refusing NaN and infinity with their origin."""

    def finite(
        row: Row,
        evaluate: Mapping[str, Callable[..., Tensor]],
        x: Tensor,
        velocities: Mapping[int, Tensor],
    ) -> tuple[Tensor, dict[int, Tensor]]:
        after, found = step(row, evaluate, x, velocities)
        # the sum is quicker to test, but may be infinite where no number is
        if isfinite(after.sum().item()) or after.isfinite().all():
            return after, found
        known = sorted((j, u) for j, u in {**velocities, **found}.items() if j >= 0)
        k = next((j for j, u in known if not u.isfinite().all()), None)
        reason = f"the velocities of plan {plan.name!r} are too large for {x.dtype}"
        fix = "lower the guidance, or take another plan"
        if k is not None:
            source, at = plan.evaluators[k], plan.model_times[k]
            reason = f"the {source} returned NaN or infinity at t={at:g}, in plan {plan.name!r}"
            if at in (0, 1):
                divisor = "(1 - t)" if at else "t"
                fix = (
                    "a field must be finite at both ends of time, so limit what it divides by, "
                    f"{divisor}.clamp(min=0.05) for example; or {fix}"
                )
        raise NotFinite(
            f"the state is not finite after evaluation {row.k + 1} of {len(plan)}: {reason}; {fix}"
        )

    return finite


def finite_callback(callback: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """``callback``, refusing NaN and infinity in what it returns."""

    def finite(step: Any) -> Tensor | None:
        edited = callback(step)
        if isinstance(edited, Tensor) and not edited.isfinite().all():
            raise ValueError(f"the callback returned NaN or infinity at t={step.time:g}")
        return edited

    return finite
