"""The function to compile, and its inputs, from a model, a plan and a `CompileSpec`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.compiled.function import Function, in_dtype
from flowturbo.compiled.shapes import Shapes
from flowturbo.compiled.spec import CompileSpec, fixed_scale
from flowturbo.field import Field
from flowturbo.guidance import Guidance
from flowturbo.models.model import Model
from flowturbo.plan import Plan, as_plan
from flowturbo.refiner.binding import Refiner, check_refiner, needed_refiner, warn_on_mismatch
from flowturbo.refiner.resolve import default_guidance
from flowturbo.sampling_checks import check_inputs
from flowturbo.tree import slice_condition, tensors
from flowturbo.types import Condition

__all__ = ["NullCondition", "prepare"]

NullCondition: TypeAlias = Callable[[Condition], Condition]


def prepare(
    model: Field,
    plan: Plan | str,
    spec: CompileSpec,
    refiner: Refiner | None = None,
    cond: Condition = None,
) -> tuple[Function, Shapes, NullCondition]:
    """The function to compile, its inputs, and a function from a condition to its null condition.

    Arguments and errors are those of ``compile``.
    """
    plan = as_plan(plan)
    checks.function("model", model, "x, t, cond")
    if refiner is not None:
        checks.function("refiner", refiner, "x, t, cond, history")
    refiner = needed_refiner(plan, refiner)
    guide = model if isinstance(model, Guidance) else None
    field = guide.field if guide else model
    shapes, guidance = _shapes(field, guide, spec, cond)
    if shapes.guidance is not None:
        guide = guide or Guidance(field, guidance)  # checks
        if shapes.cond is None:
            raise ValueError("guidance needs a condition: pass an example as cond, or guidance=1")
    check_inputs(field, refiner, shapes.example(1)[0], shapes.cond)
    if refiner is not None:
        check_refiner(plan, refiner, guidance)
    warn_on_mismatch(plan, field, refiner, guidance)
    function = Function(
        plan,
        in_dtype(field, spec.dtype),
        in_dtype(refiner, spec.dtype),
        dtype=spec.dtype,
        interval=guide.interval if guide else (0.0, 1.0),
        channels=guide.channels if guide else None,
    )

    def null(cond: Condition) -> Condition:
        if guide is None or guide.null is None:
            return field.null_condition(cond)  # type: ignore[union-attr]
        return guide.null

    return function.eval(), shapes, null


def _shapes(
    field: Field, guide: Guidance | None, spec: CompileSpec, cond: Condition
) -> tuple[Shapes, float]:
    """What the sampler takes, and its default guidance scale."""
    guidance = spec.guidance
    if guidance is None:
        guidance = fixed_scale(guide.scale if guide else default_guidance(field))
    shape = getattr(field, "shape", None) if spec.shape is None else spec.shape
    if shape is None:
        raise ValueError("shape=None: the field has none; pass shape=(channels, height, width)")
    cond = _example(field, cond)
    weight = next(field.parameters(), None) if isinstance(field, nn.Module) else None
    device = _device(spec, cond, weight)
    kept = spec.dtype or (weight.dtype if weight is not None else torch.float32)
    shapes = Shapes(
        shape=checks.sizes("shape", shape),
        batch=tuple(spec.batch),  # type: ignore[arg-type]
        dtype=torch.float64 if kept == torch.float64 else torch.float32,
        device=torch.empty(0, device=device).device,  # with its index
        cond=slice_condition(cond, slice(1)),
        guidance=None if guidance == 1.0 and guide is None else guidance,
    )
    return shapes, guidance


def _example(field: Field, cond: Condition) -> Condition:
    """The example of a condition, by default the model's; ``ValueError`` if it has no rows."""
    if cond is None and isinstance(field, Model) and field.conditioning:
        return field.condition([""])
    for c in [cond] if isinstance(cond, np.ndarray) else tensors(cond):
        if not len(checks.tensor("cond", c, ("B", ...))):
            raise ValueError(f"cond={shown(c)}: an example needs a row at least")
    return cond


def _device(spec: CompileSpec, cond: Condition, weight: nn.Parameter | None) -> torch.device | str:
    """The device to compile for; ``ValueError`` unless the model and the example are on it."""
    placed = tensors(cond) + ([] if weight is None else [weight])
    device = spec.device
    if device is None:
        device = placed[-1].device if placed else "cpu"
    for part in placed:
        if part.device != torch.device(device):
            name = "the model" if part is weight else "cond"
            raise ValueError(f"device={str(device)!r}: {name} is on {part.device}; move it there")
    return device
