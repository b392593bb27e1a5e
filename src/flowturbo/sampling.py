"""The only sampling loop of the library.

A plan is a table (``flowturbo.plan``); sampling runs down its rows::

    for k in range(K):
        v_k = evaluator_k(x, t_k, history)
        x   = x + sum_{j <= k} W[k, j] * v_j

The update acts on the state it is given, so a callback may edit ``x`` between evaluations. Nothing
is kept between calls: two threads can share a plan, a model and a refiner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.field import Field, check_values, embedded
from flowturbo.guidance import Guidance, guided
from flowturbo.path import predicted_data
from flowturbo.plan import Plan, Row, as_plan
from flowturbo.refiner.binding import (
    GuidedRefiner,
    Refiner,
    embedded_rows,
    needed_refiner,
    prepare_refiner,
    warn_on_mismatch,
)

__all__ = [
    "Callback",
    "Evaluate",
    "Step",
    "Velocities",
    "check_inputs",
    "evaluators",
    "run",
    "sample",
    "step",
    "update",
]

Velocities = Mapping[int, Tensor]
Evaluate = Callable[[Row, Tensor, Velocities], Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """What a callback sees after an evaluation and its update.

    Attributes:
        index: which evaluation, 0 .. total - 1.
        total: evaluations in the plan.
        time: the time of the state ``x``, in [0, 1].
        x: the state after the update, (B, ...).
        v: the velocity of this evaluation, (B, ...).
        x1: the clean image predicted from it, (B, ...).
        evaluator: "model" or "refiner".
    """

    index: int
    total: int
    time: float
    x: Tensor
    v: Tensor
    x1: Tensor
    evaluator: str


Callback = Callable[[Step], Tensor | None]


@checks.known_keywords
def sample(
    plan: Plan | str,
    model: Field,
    x: Tensor,
    cond: Any = None,
    *,
    guidance: float | Tensor = 1.0,
    negative: Any = None,
    guidance_channels: int | None = None,
    refiner: Refiner | None = None,
    callback: Callback | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Carry ``x`` from ``plan.times[0]`` to ``plan.times[-1]`` along the field ``model``.

    Args:
        plan: the table to run, or its notation.
        model: any field ``(x, t, cond) -> v``; it is told ``t`` as a 0-dim tensor.
        x: the state to start from, (B, ...) of real numbers; float16 and bfloat16 states are kept
            in float32. Of no images, B = 0, comes a state of none, and nothing is evaluated.
        cond: the condition, passed on as it is; with guidance, tensors of B rows.
        guidance: scale of classifier-free guidance, one number or one per image (B,); 1 is off.
        negative: the condition to guide away from; the model's null condition by default.
        guidance_channels: guide only the first so many channels of the state, the official SiT
            samplers 3 of 4; all by default.
        refiner: evaluates the rows of ``plan`` that ask for one, guided as its attributes say.
        callback: called with a ``Step`` after each update; a tensor it returns replaces the state.
        differentiable: keep the graph, to differentiate through the sampler.

    Returns:
        The state at ``plan.times[-1]``, of the shape and dtype of ``x``.

    Warns:
        UserWarning: once, if a fitted plan or a refiner is used with other weights than it was made
            for, or a plan more than a quarter outside its range of guidance.

    Raises:
        ValueError: if an argument is not as said above, or the field has a ``check_inputs`` that
            refuses it; the plan needs a refiner and there is none, or the refiner needs another
            plan or scale; the model, the refiner or the callback returns anything but a real tensor
            of the shape of ``x``, or, on the CPU, NaN or infinity (elsewhere a look at the values
            would wait for the device, and they stay in the result).
    """
    plan = as_plan(plan)
    if not torch.compiler.is_compiling():
        _check(model, x, cond, negative, refiner, callback, differentiable)
    if guidance_channels is not None:
        _check_channels(guidance_channels, x)
    refiner = needed_refiner(plan, refiner)
    model = guided(model, guidance, null=negative, channels=guidance_channels)
    if isinstance(model, Guidance):
        model.check(x, cond)
    warn_on_mismatch(plan, model, refiner, guidance)
    refiner = None if refiner is None else prepare_refiner(plan, model, refiner)
    if len(x) == 0:
        return x.clone()
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        state = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        evaluate = evaluators(model, refiner, cond, plan.rows)
        each = step
        if state.device.type == "cpu" and checks.can_look(state):
            each = _finite_step(plan)
            callback = callback and _finite_callback(callback)
        return run(plan.rows, evaluate, state, callback, each).to(x.dtype)


def step(
    row: Row, evaluate: Mapping[str, Evaluate], x: Tensor, velocities: Velocities
) -> tuple[Tensor, Tensor]:
    """One row: the state moved, and the velocity evaluated."""
    v = evaluate[row.evaluator](row, x, velocities)
    return update(row, x, v, velocities), v


def update(row: Row, x: Tensor, v: Tensor, velocities: Velocities) -> Tensor:
    """The state ``x`` (B, ...) moved by a row whose evaluation gave ``v``; earlier ones by row."""
    for j, w in row.update:
        x = torch.add(x, v if j == row.k else velocities[j], alpha=w)
    return x


def run(
    rows: Sequence[Row],
    evaluate: Mapping[str, Evaluate],
    x: Tensor,
    callback: Callback | None = None,
    step: Callable[..., tuple[Tensor, Tensor]] = step,
) -> Tensor:
    """The loop: ``x`` moved by the rows of a plan, without checks."""
    velocities: dict[int, Tensor] = {}  # those that a later row still uses
    for row in rows:
        before = x if callback else None
        x, v = step(row, evaluate, x, velocities)
        velocities[row.k] = v
        for j in row.frees:
            del velocities[j]
        if callback and before is not None:
            x1 = predicted_data(before, v, row.time)
            edited = callback(Step(row.k, len(rows), row.to, x, v, x1, row.evaluator))
            if edited is not None:
                x = _like(edited, x, row, "callback")
    return x


def evaluators(
    model: Field, refiner: Refiner | None, cond: Any, rows: Sequence[Row]
) -> dict[str, Evaluate]:
    """What ``rows`` of a plan call, (row, x, velocities) -> v; the condition is embedded once.

    ``model`` may be a ``Guidance``; ``refiner`` is as ``prepare_refiner`` makes it.
    """
    shown = embedded(model, cond)
    made = {"model": lambda row, x, _: _like(model(x, _time(model, row, x), shown), x, row)}
    if refiner is not None:
        seen = embedded_rows(refiner, [r for r in rows if r.evaluator == "refiner"], cond)

        def refine(row: Row, x: Tensor, velocities: Velocities) -> Tensor:
            history = [(t, velocities[j]) for j, t in row.history]
            return _like(refiner(x, _time(refiner, row, x), seen[row.k], history), x, row)

        made["refiner"] = refine
    return made


def _time(evaluator: Any, row: Row, x: Tensor) -> float | Tensor:
    """The time, filled in on the device; guidance settles its interval by the number."""
    known = isinstance(evaluator, (Guidance, GuidedRefiner))
    return row.model_time if known else x.new_full((), row.model_time)


def _like(value: Any, x: Tensor, row: Row, whose: str = "") -> Tensor:
    """``value``, refused unless it is like ``x``; wider numbers would widen the state for good."""
    alike = isinstance(value, Tensor) and value.shape == x.shape and value.device == x.device
    if not alike or not value.is_floating_point():
        whose, at = whose or row.evaluator, row.to if whose else row.model_time
        raise ValueError(
            f"the {whose} returned {checks.shown(value)} at t={at:g}: must be a tensor of real "
            f"numbers like the state, {tuple(x.shape)} on {x.device}"
        )
    return value if torch.promote_types(value.dtype, x.dtype) == x.dtype else value.to(x.dtype)


def _check(
    model: Any,
    x: Any,
    cond: Any,
    negative: Any,
    refiner: Any,
    callback: Any,
    differentiable: Any,
) -> None:
    """The ``ValueError`` of ``sample`` for arguments that need no plan to be seen wrong."""
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
    model: Any, refiner: Any, x: Tensor, cond: Any = None, negative: Any = None
) -> None:
    """The ``ValueError`` of a field's or refiner's own check; see ``flowturbo.field``."""
    for name, evaluator in (("model", model), ("refiner", refiner)):
        check = getattr(evaluator, "check_inputs", None)
        try:
            if check is not None:
                check(x, cond, negative)
        except ValueError as e:
            raise ValueError(f"{name} {checks.shown(evaluator)} is called with {e}") from None


def _finite_step(plan: Plan) -> Callable[..., tuple[Tensor, Tensor]]:
    """``step`` that refuses NaN and infinity, and says where they come from."""

    def finite(
        row: Row, evaluate: Mapping[str, Evaluate], x: Tensor, velocities: Velocities
    ) -> tuple[Tensor, Tensor]:
        after, v = step(row, evaluate, x, velocities)
        # the sum is quicker to look at, but may be infinite where no number is
        if isfinite(after.sum().item()) or after.isfinite().all():
            return after, v
        every = sorted({**velocities, row.k: v}.items())
        k = next((j for j, u in every if not u.isfinite().all()), None)
        reason = f"the velocities of plan {plan.name!r} are too large for {x.dtype}"
        fix = "lower the guidance, or take another plan"
        if k is not None:
            whose, at = plan.evaluators[k], plan.model_times[k]
            reason = f"the {whose} returned NaN or infinity at t={at:g}, in plan {plan.name!r}"
            if at in (0, 1):
                fix = (
                    "a field must be finite at both ends of time, so limit what it divides by, "
                    f"(1 - t).clamp(min=0.05) say; or {fix}"
                )
        raise ValueError(
            f"the state is not finite after evaluation {row.k + 1} of {len(plan)}: {reason}; {fix}"
        )

    return finite


def _finite_callback(callback: Callback) -> Callback:
    def finite(step: Step) -> Tensor | None:
        edited = callback(step)
        if isinstance(edited, Tensor) and not edited.isfinite().all():
            raise ValueError(f"the callback returned NaN or infinity at t={step.time:g}")
        return edited

    return finite


def _check_channels(channels: Any, x: Tensor) -> None:
    most = x.shape[1] if x.ndim > 1 else 0
    whole = isinstance(channels, int) and not isinstance(channels, bool)
    if not whole or not 1 <= channels <= most:
        raise ValueError(
            f"guidance_channels={channels!r}: must be a whole number, 1 to the {most} channels of "
            "the state, or None for all"
        )
