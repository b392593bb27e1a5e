"""Plan, guidance and refiner to sample a model with: those that are given, else the model's own."""

from __future__ import annotations

from dataclasses import dataclass

from flowturbo.checks import did_you_mean, function, shown
from flowturbo.models.model import Model
from flowturbo.plan import Plan, as_plan
from flowturbo.refiner.binding import Refiner, in_guidance_range, needed_refiner
from flowturbo.refiner.checkpoint import REFINER_WEIGHTS, load_refiner

__all__ = [
    "FALLBACK_PLAN",
    "Resolved",
    "default_guidance",
    "own_refiner",
    "plan_of_steps",
    "resolve",
    "resolve_plan",
    "resolve_refiner",
]

FALLBACK_PLAN = "AB2:12@1.6"
"""Replaces a default plan that was fitted at another guidance scale."""


@dataclass(frozen=True)
class Resolved:
    """What a model is sampled with.

    Attributes:
        plan: a table.
        guidance: the scale.
        refiner: for the plan; None if it needs none.
    """

    plan: Plan
    guidance: float
    refiner: Refiner | None


def resolve(
    model: Model,
    plan: Plan | str | None = None,
    guidance: float | None = None,
    refiner: Refiner | None = None,
) -> Resolved:
    """What ``model`` is sampled with.

    Args:
        model: from `flowturbo.load`.
        plan: a plan, its notation, or the name of one of ``model.plans``; by default the card's, or
            `FALLBACK_PLAN` where that was fitted at another guidance.
        guidance: the scale; by default the card's.
        refiner: by default the one that came with the model, if the plan needs one.

    Raises:
        ValueError: if the plan is malformed, or needs a refiner and there is none.
    """
    table = resolve_plan(model, plan, guidance)
    return Resolved(
        table, default_guidance(model, guidance), resolve_refiner(model, table, refiner)
    )


def resolve_refiner(model: Model, plan: Plan, refiner: Refiner | None) -> Refiner | None:
    """The refiner alone; see `resolve`."""
    if refiner is not None:
        function("refiner", refiner, "x, t, cond, history")
    elif plan.nfe["refiner"]:
        refiner = own_refiner(model)
    return needed_refiner(plan, refiner)


def resolve_plan(model: Model, plan: Plan | str | None, guidance: float | None = None) -> Plan:
    """The plan alone; see `resolve`."""
    if plan is None:
        usual = resolve_plan(model, str(model.defaults["plan"]))
        served = guidance is None or in_guidance_range(usual, guidance)
        return usual if served else Plan.parse(FALLBACK_PLAN)
    if not isinstance(plan, str):
        return as_plan(plan)
    if plan in model.plans:
        return model.plans[plan]
    try:
        return Plan.parse(plan)
    except ValueError as e:
        if not model.plans:
            raise
        names, hint = ", ".join(model.plans), did_you_mean(plan, model.plans)
        if any(c.isdigit() for c in plan):
            raise ValueError(f"{e}; or a plan of {model.name!r}: {names}") from None
        raise ValueError(
            f"plan {shown(plan)}: {model.name!r} has no such plan{hint}; it has {names}, and takes "
            "notation such as AB2:8"
        ) from None


def plan_of_steps(steps: int) -> Plan:
    """The plain solver of so many evaluations, on the grid of `FALLBACK_PLAN`; Euler for one."""
    return Plan.parse(f"AB2:{steps}@1.6" if steps > 1 else "E1")


def default_guidance(model: object, guidance: float | None = None) -> float:
    """``guidance`` itself, or the default on the card of ``model``; 1, off, of a field without."""
    if guidance is None:
        guidance = getattr(model, "defaults", {}).get("guidance", 1.0)
    return float(guidance)


def own_refiner(model: Model) -> Refiner | None:
    """The refiner that came with ``model``, if there is one; its attribute ``refiner`` if set."""
    if (own := getattr(model, "refiner", None)) is not None:
        return own  # type: ignore[no-any-return]
    if model.folder is None or not (model.folder / REFINER_WEIGHTS).is_file():
        return None
    return load_refiner(model.folder, model)
