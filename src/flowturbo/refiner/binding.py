"""What the sampling loop requires of a refiner, and how one is bound to a plan, model and scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.field import Field, embedded, fingerprint_of
from flowturbo.guidance import Branches, Guidance
from flowturbo.plan import Plan, Row
from flowturbo.types import Condition, GuidanceScale, Time

__all__ = [
    "GuidedRefiner",
    "History",
    "Refiner",
    "bind_refiner",
    "check_refiner",
    "embedded_rows",
    "in_guidance_range",
    "needed_refiner",
    "prepare_refiner",
    "scales_text",
    "warn_on_mismatch",
]

History = Sequence[tuple[float, Tensor]]


class Refiner(Protocol):
    """A light network that predicts a velocity from the velocities before it.

    Optional attributes describe how it is used:

    - ``distinct_times``: at how many distinct times it needs velocities (1 if missing);
    - ``per_image_times``: True if ``t``, the times of ``history`` and the scale may be tensors
      (B,), and of ``history`` it uses only the latest velocities at ``distinct_times`` times;
    - ``guided``: False if it refines single branches, so that guidance is applied to its calls as
      to the model's (and each costs two); by default it is called once, on guided velocities;
    - ``guidance_range``: (lowest, highest) scale it was made for; such a refiner receives the
      scale as ``guidance=...``;
    - ``embed_condition``: as a field may have it;
    - ``embed_rows(rows, cond)``: likewise, for the rows of a plan that are the refiner's, by their
      ``k``; with the scale as ``guidance=...`` too, if it has a ``guidance_range``.
    """

    def __call__(self, x: Tensor, t: Time, cond: Condition, history: History) -> Tensor:
        """The velocity at ``x``, ``t``; ``history`` holds (time, velocity) pairs, oldest first."""
        ...


def needed_refiner(plan: Plan, refiner: Refiner | None) -> Refiner | None:
    """``refiner`` if ``plan`` has rows for one, else None.

    Raises:
        ValueError: if it has, and ``refiner`` is None.
    """
    if plan.nfe["refiner"] and refiner is None:
        raise ValueError(
            f"plan {plan.name!r} has {plan.nfe['refiner']} refiner evaluations, and refiner=None; "
            "pass refiner=..., or take a plan without R"
        )
    return refiner if plan.nfe["refiner"] else None


def prepare_refiner(plan: Plan, model: Field, refiner: Refiner) -> Refiner:
    """``refiner`` as the rows of ``plan`` call it, guided like ``model`` if that is a ``Guidance``.

    Raises:
        ValueError: if ``plan`` gives it too few velocities, or it was not made for the scale.
    """
    scale: GuidanceScale = 1.0
    channels = None
    if isinstance(model, Guidance):
        scale, channels = model.scale, model.channels
    check_refiner(plan, refiner, scale)
    if channels is not None and hasattr(refiner, "guidance_range"):
        raise ValueError(
            f"guidance_channels={channels}: this refiner was made for velocities guided in all "
            "channels; leave guidance_channels out, or take another refiner or a plan without R"
        )
    return bind_refiner(model, refiner)


def check_refiner(plan: Plan, refiner: object, scale: GuidanceScale) -> None:
    """The ``ValueError`` of ``prepare_refiner`` for a scale of guidance."""
    needed = getattr(refiner, "distinct_times", 1)
    for row in plan.rows:
        shown = len({t for _, t in row.history})
        if row.evaluator == "refiner" and shown < needed:
            raise ValueError(
                f"plan {plan.name!r}: evaluation {row.k} has velocities for the refiner at "
                f"{shown} distinct times, and it needs {needed}; take a plan with more evaluations "
                "of the model before the first R"
            )
    if hasattr(refiner, "guidance_range"):
        low, high = refiner.guidance_range
        asked = (scale.min().item(), scale.max().item()) if isinstance(scale, Tensor) else [scale]
        if min(asked) < low - 1e-6 or max(asked) > high + 1e-6:
            raise ValueError(
                f"guidance={scale}: this refiner was made for {scales_text(low, high)}; use such a "
                "scale, another refiner, or a plan without R"
            )


def bind_refiner(model: Field, refiner: Refiner) -> Refiner:
    """``prepare_refiner`` without its checks, which look at the scale."""
    guidance = model if isinstance(model, Guidance) else None
    if guidance and not getattr(refiner, "guided", True):
        return GuidedRefiner(refiner, guidance)
    if hasattr(refiner, "guidance_range"):
        return _ScaledRefiner(refiner, guidance.scale if guidance else 1.0)
    return refiner


def warn_on_mismatch(
    plan: Plan, model: Field, refiner: Refiner | None, guidance: GuidanceScale | None
) -> None:
    """Warn about a plan or refiner that was made for something else; a scale of None is unknown."""
    made = {"fingerprint": plan.info.get("fingerprint"), "refiner": plan.info.get("refiner")}
    for what, used in (("fingerprint", model), ("refiner", refiner)):
        here = fingerprint_of(used) if made[what] else None
        if here and here != made[what]:
            source = "a refiner with weights" if what == "refiner" else "weights"
            checks.warn(
                f"plan {plan.name!r} was fitted to {source} {made[what]} "
                f"({plan.info.get('model')}), not {here}: its error here is not known; fit one "
                "with flowturbo.tune"
            )
    made_for = (getattr(refiner, "card", None) or {}).get("model") or {}
    here = fingerprint_of(model) if made_for.get("fingerprint") else None
    if here and here != made_for["fingerprint"]:
        checks.warn(
            f"the refiner was made for {made_for.get('name')!r}, weights "
            f"{made_for['fingerprint']}, not {here}: its error here is not known; make one with "
            "flowturbo.train_refiner"
        )
    if isinstance(guidance, float | int) and not in_guidance_range(plan, guidance):
        low, high = plan.info["guidance"]
        checks.warn(
            f"plan {plan.name!r} was fitted at guidance {scales_text(low, high)}, not "
            f"{guidance:g}: its error here is not known; fit one with flowturbo.tune"
        )


def in_guidance_range(plan: Plan, guidance: float) -> bool:
    """Whether ``guidance`` is within a quarter of the range ``plan`` was fitted to, if it was."""
    if "guidance" not in plan.info:
        return True
    low, high = plan.info["guidance"]
    return bool(0.75 * low <= guidance <= 1.25 * high)


def scales_text(low: float, high: float) -> str:
    """A range of guidance scales, or the one scale, as messages show it."""
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


class _ScaledRefiner:
    """A refiner called with the guidance scale."""

    def __init__(self, refiner: Callable[..., Tensor], scale: GuidanceScale) -> None:
        self.refiner, self.scale = refiner, scale

    def embed_rows(self, rows: Sequence[Row], cond: Condition) -> dict[int, Condition]:
        return embedded_rows(self.refiner, rows, cond, guidance=self.scale)

    def __call__(self, x: Tensor, t: Time, cond: Condition, history: History) -> Tensor:
        return self.refiner(x, t, cond, history, guidance=self.scale)


class GuidedRefiner:
    """A refiner under the model's guidance: both branches see the same guided velocities."""

    def __init__(self, refiner: Refiner, guidance: Guidance) -> None:
        self.refiner, self.guidance = refiner, guidance

    def embed_condition(self, cond: Condition) -> Branches:
        """The condition of both branches, as the refiner embeds it."""
        return self.guidance.branches(self.refiner, cond)

    def __call__(self, x: Tensor, t: Time, cond: Condition, history: History) -> Tensor:
        """The guided velocity, like ``x``."""
        images = len(x)

        def branches(x: Tensor, t: Time, cond: Condition) -> Tensor:
            shown = [(s, torch.cat([v] * (len(x) // images))) for s, v in history]
            return self.refiner(x, t, cond, shown)

        shown = cond if isinstance(cond, Branches) else self.embed_condition(cond)
        return self.guidance.apply_to(branches, x, t, shown)


def embedded_rows(
    refiner: object, rows: Sequence[Row], cond: Condition, **scale: GuidanceScale
) -> dict[int, Condition]:
    """What ``refiner`` is shown in place of ``cond`` at each of its ``rows``."""
    if hasattr(refiner, "embed_rows"):
        found: dict[int, Condition] = refiner.embed_rows(rows, cond, **scale)
        return found
    return dict.fromkeys((row.k for row in rows), embedded(refiner, cond))
