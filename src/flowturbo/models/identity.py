"""What tells a field, a refiner or a condition from others, so that results are not mixed up.

A field without weights, a closure say, is known by what it does: the velocities that a few Euler
steps meet from a few of the caller's own states, each as its root mean square and its products with
two fixed random directions, to 4 digits. Weights and a fingerprint count besides, where there are
any, for they decide about states that the probes do not visit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowturbo.field import Field, cut
from flowturbo.models.model import fingerprint
from flowturbo.plan import Plan
from flowturbo.sampler import Refiner, Step, sample

__all__ = ["content", "identity", "refiner_identity", "signature"]

PROBES = 8  # rows of the states, spread evenly
DIRECTIONS = 2


def identity(field: Field, x: Tensor, cond: Any = None, *, guidance: float | Tensor = 1.0) -> str:
    """16 hexadecimal digits that name ``field``, as sampling from ``x`` (N, ...) meets it.

    Args:
        field: any field; weights in another precision, and wrappers that change values, count.
        x: states at t = 0.
        cond: their condition.
        guidance: scale, a number or (N,); 1 is off.
    """
    return _named(field, Plan.euler(3), field, x, cond, guidance, None)


def refiner_identity(
    refiner: Refiner, field: Field, x: Tensor, cond: Any = None, *, guidance: float | Tensor = 1.0
) -> str:
    """The same for a refiner, which is shown velocities of ``field``."""
    shown = max(2, int(getattr(refiner, "distinct_times", 1)))
    return _named(refiner, Plan.parse(f"E{shown}R1"), field, x, cond, guidance, refiner)


def content(value: Any) -> str:
    """16 hexadecimal digits of a condition: tensors, arrays, texts and numbers, however nested.

    Raises:
        ValueError: if it holds anything else.
    """
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()[:16]


def _named(
    whose: Any,
    plan: Plan,
    field: Field,
    x: Tensor,
    cond: Any,
    guidance: float | Tensor,
    refiner: Refiner | None,
) -> str:
    rows = slice(0, len(x), -(-len(x) // PROBES) or 1)
    seen: list[str] = []

    def note(step: Step) -> None:
        if refiner is None or step.evaluator == "refiner":
            seen.append(signature(step.v))

    scale = cut(guidance, rows)
    sample(plan, field, x[rows], cut(cond, rows), guidance=scale, refiner=refiner, callback=note)
    return content([getattr(whose, "fingerprint", None), _weights(whose), seen])


def _weights(whose: Any) -> str | None:
    while not isinstance(whose, nn.Module) and "field" in getattr(whose, "__dict__", {}):
        whose = whose.field  # of a wrapper
    if not isinstance(whose, nn.Module):
        return None
    known = all(isinstance(p, Tensor) for p in whose.state_dict().values())
    return fingerprint(whose) if known else None


def signature(v: Tensor) -> str:
    """A line of the shape and type of ``v``, its size, and its products with random directions."""
    flat = (torch.view_as_real(v) if v.is_complex() else v).detach().double().cpu().flatten()
    size = float(flat.square().mean().sqrt())
    directions = torch.Generator().manual_seed(0)
    parts = [f"{size:.4g}", str(tuple(v.shape)), str(v.dtype)]
    for _ in range(DIRECTIONS):
        along = torch.randn(len(flat), generator=directions, dtype=flat.dtype)
        part = float(along @ flat) / (size * len(flat) ** 0.5) if size else 0.0
        parts.append(f"{round(part, 4) + 0.0:.4f}")  # no -0.0
    return " ".join(parts)


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        digest.update(f"dict {len(value)}".encode())
        for key in sorted(value, key=repr):
            digest.update(repr(key).encode())
            _add(digest, value[key])
    elif isinstance(value, (tuple, list)):
        digest.update(f"list {len(value)}".encode())
        for part in value:
            _add(digest, part)
    elif isinstance(value, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif value is None or isinstance(value, (str, bytes, bool, int, float, complex, np.generic)):
        digest.update(repr(value).encode())
    else:
        raise ValueError(
            f"a condition with a {type(value).__name__} cannot be told from others, which a folder "
            "of results needs; pass tensors, texts and numbers, or leave the folder out"
        )
