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

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.field import Field, embedded
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
from flowturbo.sampling_checks import (
    annotated,
    check_arguments,
    check_channels,
    check_result,
    finite_callback,
    finite_step,
)
from flowturbo.types import Condition, GuidanceScale

__all__ = [
    "Callback",
    "Evaluate",
    "Step",
    "Velocities",
    "evaluated",
    "evaluators",
    "run",
    "sample",
    "step",
    "update",
    "weighted_sum",
]

Velocities = Mapping[int, Tensor]
"""Velocities by evaluation, and guidance terms, as `flowturbo.plan.Row` names them."""
Evaluate = Callable[[Row, Tensor, Velocities], Tensor | tuple[Tensor, Tensor]]
"""(row, x, velocities) -> v, together with the guidance term if the row keeps it."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a callback receives after an evaluation and its update.

    Attributes:
        index: which evaluation, 0 .. total - 1.
        total: evaluations in the plan.
        time: the time of the state ``x``, in [0, 1].
        x: the state after the update, (B, ...).
        v: the velocity of this evaluation, (B, ...); for a conditional one it includes the guidance
            that the plan estimates.
        x1: the clean image predicted from it, (B, ...).
        evaluator: "model", "conditional" or "refiner".
    """

    index: int
    total: int
    time: float
    x: Tensor
    v: Tensor
    x1: Tensor
    evaluator: str


Callback = Callable[[Step], Tensor | None]


def update(row: Row, x: Tensor, found: Velocities, velocities: Velocities) -> Tensor:
    """Apply a row's update to ``x`` (B, ...); ``found`` is the row's own evaluation."""
    return weighted_sum(x, row.update, {**velocities, **found})


def weighted_sum(x: Tensor, terms: Sequence[tuple[int, float]], velocities: Velocities) -> Tensor:
    """``x`` and weighted velocities; missing guidance terms are 0, as without guidance."""
    for j, w in terms:
        if j in velocities:
            x = torch.add(x, velocities[j], alpha=w)
    return x


def evaluated(
    row: Row, evaluate: Mapping[str, Evaluate], x: Tensor, velocities: Velocities
) -> dict[int, Tensor]:
    """The velocity of a row, and its guidance term if it keeps that."""
    v = evaluate[row.evaluator](row, x, velocities)
    return {row.k: v[0], ~row.k: v[1]} if isinstance(v, tuple) else {row.k: v}


def step(
    row: Row, evaluate: Mapping[str, Evaluate], x: Tensor, velocities: Velocities
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run one row; return the new state and the row's evaluation."""
    found = evaluated(row, evaluate, x, velocities)
    return update(row, x, found, velocities), found


def run(
    rows: Sequence[Row],
    evaluate: Mapping[str, Evaluate],
    x: Tensor,
    callback: Callback | None = None,
    step: Callable[..., tuple[Tensor, dict[int, Tensor]]] = step,
) -> Tensor:
    """The loop: run all rows of a plan from ``x``, without checks of arguments."""
    velocities: dict[int, Tensor] = {}  # those that a later row still uses
    for row in rows:
        before = x if callback else None
        x, found = step(row, evaluate, x, velocities)
        v = found[row.k]
        velocities.update(found)
        for j in row.frees:
            velocities.pop(j, None)
        if callback and before is not None:
            x1 = predicted_data(before, v, row.time)
            edited = callback(Step(row.k, len(rows), row.to, x, v, x1, row.evaluator))
            if edited is not None:
                x = check_result(edited, x, row, "callback")
    return x


@checks.known_keywords
def sample(
    plan: Plan | str,
    model: Field,
    x: Tensor,
    cond: Condition = None,
    *,
    guidance: GuidanceScale = 1.0,
    negative: Condition = None,
    guidance_channels: int | None = None,
    refiner: Refiner | None = None,
    callback: Callback | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Carry ``x`` from ``plan.times[0]`` to ``plan.times[-1]`` along the field ``model``.

    Args:
        plan: the table to run, or its notation.
        model: any field ``(x, t, cond) -> v``; ``t`` is passed as a 0-dim tensor.
        x: the state to start from, (B, ...) of real numbers; float16 and bfloat16 states are kept
            in float32. An empty batch (B = 0) is returned unchanged; the model is not called.
        cond: the condition, passed to the model unchanged; with guidance, tensors with B rows.
        guidance: scale of classifier-free guidance, one number or one per image (B,); 1 is off.
        negative: the condition to guide away from; the model's null condition by default.
        guidance_channels: number of leading channels of the state to guide (official SiT samplers:
            3 of 4); all by default.
        refiner: evaluates the refiner rows of ``plan``, guided as its attributes specify.
        callback: called with a ``Step`` after each update; a tensor it returns replaces the state.
        differentiable: keep the graph, to differentiate through the sampler.

    Returns:
        The state at ``plan.times[-1]``, of the shape and dtype of ``x``.

    Warns:
        UserWarning: once, if a fitted plan or a refiner is used with weights other than those it
            was made for, or a plan at a guidance scale more than a quarter outside its range.

    Raises:
        ValueError: if an argument is not as described, or the field has a ``check_inputs`` that
            refuses it; the plan needs a refiner and there is none, or the refiner needs another
            plan or scale; the model, the refiner or the callback returns anything but a real tensor
            of the shape of ``x``, or, on the CPU, NaN or infinity (elsewhere reading the
            values would wait for the device, and they stay in the result).
    """
    plan = as_plan(plan)
    if not torch.compiler.is_compiling():
        check_arguments(model, x, cond, negative, refiner, callback, differentiable)
    if guidance_channels is not None:
        check_channels(guidance_channels, x)
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
        if not torch.compiler.is_compiling():
            for name in ("model", "conditional"):
                evaluate[name] = annotated(evaluate[name], cond)
        step_fn = step
        if state.device.type == "cpu" and checks.can_look(state):
            step_fn = finite_step(plan, step)
            callback = callback and finite_callback(callback)
        return run(plan.rows, evaluate, state, callback, step_fn).to(x.dtype)


def evaluators(
    model: Field, refiner: Refiner | None, cond: Condition, rows: Sequence[Row]
) -> dict[str, Evaluate]:
    """The evaluators of ``rows``, (row, x, velocities) -> v; the condition is embedded once.

    ``model`` may be a ``Guidance``; ``refiner`` is as ``prepare_refiner`` makes it.
    """
    embedding = embedded(model, cond)

    def evaluate(row: Row, x: Tensor, _: Velocities) -> Tensor | tuple[Tensor, Tensor]:
        if row.keeps_term and isinstance(model, Guidance):
            v, term = model.with_term(x, row.model_time, embedding)
            return check_result(v, x, row), term.to(x.dtype)
        return check_result(model(x, _time(model, row, x), embedding), x, row)

    table: dict[str, Evaluate] = {"model": evaluate, "conditional": evaluate}
    if isinstance(model, Guidance) and any(row.evaluator == "conditional" for row in rows):
        guidance, one = model, embedded(model.field, cond)

        def conditional(row: Row, x: Tensor, velocities: Velocities) -> Tensor:
            v = check_result(guidance.conditional(x, row.model_time, one), x, row)
            inside = guidance.applies_at(row.model_time)
            return weighted_sum(v, row.estimate, velocities) if inside else v

        table["conditional"] = conditional
    if refiner is not None:
        conditions = embedded_rows(refiner, [r for r in rows if r.evaluator == "refiner"], cond)

        def refine(row: Row, x: Tensor, velocities: Velocities) -> Tensor:
            history = [(t, velocities[j]) for j, t in row.history]
            return check_result(
                refiner(x, _time(refiner, row, x), conditions[row.k], history), x, row
            )

        table["refiner"] = refine
    return table


def _time(evaluator: object, row: Row, x: Tensor) -> float | Tensor:
    """The row's time: a float if guidance compares it with an interval, else a 0-dim tensor."""
    number = isinstance(evaluator, (Guidance, GuidedRefiner))
    return row.model_time if number else x.new_full((), row.model_time)
