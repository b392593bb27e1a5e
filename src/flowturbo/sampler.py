"""The only sampling loop of the library.

A plan is a table (``flowturbo.plan``); sampling runs down its rows::

    for k in range(K):
        v_k = evaluator_k(x, t_k, history)
        x   = x + sum_{j <= k} W[k, j] * v_j

The update acts on the state it is given, so a callback may edit ``x`` between evaluations. Nothing
is kept between calls: two threads can share a plan, a model and a refiner.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from flowturbo.field import Field, Guidance
from flowturbo.path import predicted_data
from flowturbo.plan import Plan

__all__ = ["Callback", "History", "Refiner", "Step", "advance", "prepare_refiner", "sample"]

History = Sequence[tuple[float, Tensor]]


class Refiner(Protocol):
    """A light network that predicts a velocity from the velocities before it.

    It may have attributes that say how it is used:

    - ``distinct_times``: at how many distinct times it must be shown velocities (1 if missing);
    - ``guided``: False if it refines single branches, so that each call is guided like the model's
      (and costs two); by default it is called once, on guided velocities;
    - ``guidance_range``: (lowest, highest) scale it was made for; such a refiner is told the scale
      as ``guidance=...``.
    """

    def __call__(self, x: Tensor, t: Any, cond: Any, history: History) -> Tensor:
        """The velocity at ``x``, ``t``; ``history`` holds (time, velocity) pairs, oldest first."""
        ...


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


def sample(
    plan: Plan | str,
    model: Field,
    x: Tensor,
    cond: Any = None,
    *,
    guidance: float | Tensor = 1.0,
    negative: Any = None,
    refiner: Refiner | None = None,
    callback: Callback | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Carry ``x`` from ``plan.times[0]`` to ``plan.times[-1]`` along the field ``model``.

    Args:
        plan: the table to run, or its notation.
        model: any field ``(x, t, cond) -> v``; it is told ``t`` as a 0-dim tensor.
        x: the state to start from, (B, ...); float16 and bfloat16 states are kept in float32.
        cond: the condition, passed on as it is.
        guidance: scale of classifier-free guidance, one number or one per image (B,); 1 is off.
        negative: the condition to guide away from; the model's null condition by default.
        refiner: evaluates the rows of ``plan`` that ask for one, guided as its attributes say.
        callback: called with a ``Step`` after each update; a tensor it returns replaces the state.
        differentiable: keep the graph, to differentiate through the sampler.

    Returns:
        The state at ``plan.times[-1]``, of the shape and dtype of ``x``.

    Warns:
        UserWarning: once, if a fitted plan is used with other weights than it was fitted to, or
            more than a quarter outside its range of guidance.

    Raises:
        ValueError: if the plan needs a refiner and there is none, or the refiner needs another plan
            or scale, ``x`` holds no floating point numbers, ``guidance`` is no number, or the
            model, the refiner or the callback returns anything but a tensor of the shape of ``x``.
    """
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"x of {x.dtype}: the state must be floating point; pass x.float()")
    if plan.nfe["refiner"] and refiner is None:
        raise ValueError(
            f"plan {plan.name!r} has {plan.nfe['refiner']} refiner evaluations, and refiner=None; "
            "pass refiner=..., or take a plan without R"
        )
    _warn_if_foreign(plan, model, guidance)
    if isinstance(guidance, Tensor) or guidance != 1.0:
        model = Guidance(model, guidance, null=negative)
    if refiner is not None and plan.nfe["refiner"]:
        refiner = prepare_refiner(plan, model, refiner)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        state = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return _run(plan, model, state, cond, refiner, callback).to(x.dtype)


def prepare_refiner(plan: Plan, model: Field, refiner: Refiner) -> Refiner:
    """``refiner`` as the rows of ``plan`` call it beside ``model``, which may be a ``Guidance``.

    Raises:
        ValueError: if ``plan`` shows it too few velocities, or the scale is not one it knows.
    """
    needed = getattr(refiner, "distinct_times", 1)
    for k, evaluator in enumerate(plan.evaluators):
        shown = len({plan.told[j] for j in plan.seen_by(k)})
        if evaluator == "refiner" and shown < needed:
            raise ValueError(
                f"plan {plan.name!r}: evaluation {k} shows the refiner velocities at {shown} "
                f"distinct times, and it needs {needed}; take a plan with more evaluations of the "
                "model before the first R"
            )
    guidance = model if isinstance(model, Guidance) else None
    if guidance and not getattr(refiner, "guided", True):
        return partial(_guided, refiner, guidance)
    if hasattr(refiner, "guidance_range"):
        low, high = refiner.guidance_range
        scale = guidance.scale if guidance else 1.0
        asked = (scale.min().item(), scale.max().item()) if isinstance(scale, Tensor) else [scale]
        if min(asked) < low - 1e-6 or max(asked) > high + 1e-6:
            raise ValueError(
                f"guidance={scale}: this refiner was made for {low:g} to {high:g}; use a scale in "
                "that range, another refiner, or a plan without R"
            )
        return partial(refiner, guidance=scale)  # type: ignore[call-arg]
    return refiner


def _warn_if_foreign(plan: Plan, model: Field, guidance: float | Tensor) -> None:
    """Say once that a fitted plan is used where it was not fitted."""
    made_for, here = plan.info.get("fingerprint"), None
    if made_for:
        here = getattr(model, "fingerprint", None)
    if here and here != made_for:
        warnings.warn(
            f"plan {plan.name!r} was fitted to weights {made_for} ({plan.info.get('model')}), not "
            f"{here}: its error here is not known; fit one with flowturbo.tune",
            stacklevel=3,
        )
    if "guidance" in plan.info and not isinstance(guidance, Tensor):
        low, high = plan.info["guidance"]
        if guidance < 0.75 * low or guidance > 1.25 * high:
            warnings.warn(
                f"plan {plan.name!r} was fitted at guidance {low:g} to {high:g}, not {guidance:g}: "
                "its error here is not known; fit one with flowturbo.tune",
                stacklevel=3,
            )


def _guided(
    refiner: Refiner, guidance: Guidance, x: Tensor, t: Any, cond: Any, history: History
) -> Tensor:
    """The refiner under the model's guidance: both branches see the same guided velocities."""

    images = len(x)

    def branches(x: Tensor, t: Any, cond: Any) -> Tensor:
        shown = [(s, torch.cat([v] * (len(x) // images))) for s, v in history]
        return refiner(x, t, cond, shown)

    return guidance.over(branches, x, t, cond)


def _run(
    plan: Plan,
    model: Field,
    x: Tensor,
    cond: Any,
    refiner: Refiner | None,
    callback: Callback | None,
) -> Tensor:
    velocities: dict[int, Tensor] = {}  # those that a later row still uses
    for k, evaluator in enumerate(plan.evaluators):
        t = x.new_tensor(plan.told[k])
        if evaluator == "model":
            v = model(x, t, cond)
        else:
            seen = plan.seen_by(k)
            v = refiner(x, t, cond, [(float(plan.told[j]), velocities[j]) for j in seen])  # type: ignore[misc]
        velocities[k] = v = _like(v, x, evaluator)
        x1 = predicted_data(x, v, float(plan.times[k])) if callback else x
        x = advance(plan, k, x, velocities)
        if callback:
            edited = callback(Step(k, len(plan), float(plan.times[k + 1]), x, v, x1, evaluator))
            if edited is not None:
                x = _like(edited, x, "callback")
    return x


def advance(plan: Plan, k: int, x: Tensor, velocities: dict[int, Tensor]) -> Tensor:
    """``x`` moved by row ``k`` of ``plan``; velocities that no later row uses are dropped.

    Args:
        plan: the table.
        k: the row.
        x: the state before it, (B, ...).
        velocities: by row, each like ``x``; the row's own is among them.
    """
    for j, w in enumerate(plan.weights[k].tolist()):
        if w != 0.0:
            x = torch.add(x, velocities[j], alpha=w)
    for j in plan.released[k]:
        del velocities[j]
    return x


def _like(value: Any, x: Tensor, whose: str) -> Tensor:
    """``value``, refused unless shaped like ``x``; wider numbers would widen the state for good."""
    if not isinstance(value, Tensor):
        raise ValueError(f"the {whose} returned {type(value).__name__}, not a tensor")
    if value.shape != x.shape:
        raise ValueError(f"the {whose} returned {tuple(value.shape)} for {tuple(x.shape)}")
    return value if torch.promote_types(value.dtype, x.dtype) == x.dtype else value.to(x.dtype)
