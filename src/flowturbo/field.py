"""The velocity field, and wrappers for fields.

A field is any callable ``(x, t, cond) -> v``:

- ``x`` (B, ...), the state;
- ``t``, a scalar (float or 0-dim tensor) or one per image (B,), in [0, 1], 0 is noise;
- ``cond``, the condition: ``None``, a tensor of B rows, or a tuple, list or dict of such;
- ``v``, like ``x``, the velocity ``dx/dt``.

A field may have a method ``embed_condition(cond)``, which returns the part of the condition that
needs to be computed only once per sample, to be passed in place of ``cond``; and a method
``check_inputs(x, cond, negative)``, called before anything is computed, which raises ``ValueError``
for states or conditions that the field cannot take.

Wrappers are fields themselves, and pass every other attribute (``shape``, ``condition``, ...)
through.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.digests import fingerprint
from flowturbo.tree import map_condition, tensors
from flowturbo.types import Condition, Time

__all__ = [
    "Cast",
    "CountCalls",
    "Field",
    "Wrapper",
    "check_values",
    "device_of",
    "embedded",
    "fingerprint_of",
    "time_of",
    "unwrapped",
    "weights_fingerprint",
]


class Field(Protocol):
    """A velocity field: any callable ``(x, t, cond) -> v``."""

    def __call__(self, x: Tensor, t: Time, cond: Condition) -> Tensor:
        """The velocity at state ``x``, time ``t``, under condition ``cond``."""
        ...


def embedded(field: object, cond: Condition) -> Condition:
    """``cond`` as ``field`` embeds it once per sample, or unchanged if it does not."""
    embed = getattr(field, "embed_condition", None)
    return cond if embed is None else embed(cond)


def device_of(field: object) -> torch.device:
    """The device of a field's weights, or its attribute ``device``; by default the CPU."""
    weights = getattr(field, "parameters", None)
    weight = next(weights(), None) if callable(weights) else None
    return torch.device(getattr(field, "device", "cpu")) if weight is None else weight.device


def fingerprint_of(field: object) -> str | None:
    """The fingerprint of a field's weights: its own, or that of its module."""
    own = getattr(field, "fingerprint", None)
    if own is None and isinstance(field, (Wrapper, nn.Module)):
        module = unwrapped(field)
        has_weights = isinstance(module, nn.Module) and any(True for _ in module.parameters())
        own = weights_fingerprint(module) if has_weights else None
    return None if own is None else str(own)


def unwrapped(field: object) -> object:
    """The field inside all wrappers, which have it as their attribute ``field``."""
    while not isinstance(field, nn.Module) and "field" in getattr(field, "__dict__", {}):
        field = vars(field)["field"]
    return field


def weights_fingerprint(field: object) -> str | None:
    """The fingerprint of the module inside ``field``; None without one, or with other state."""
    module = unwrapped(field)
    if not isinstance(module, nn.Module):
        return None
    state = module.state_dict(keep_vars=True).values()
    return fingerprint(module) if all(isinstance(p, Tensor) for p in state) else None


def check_values(name: str, cond: Condition, x: Tensor) -> None:
    """Raise ``ValueError`` if only one of a condition and the states ``x`` has values."""
    for c in tensors(cond):
        if c.is_meta != x.is_meta:
            without = name if c.is_meta else "x"
            raise ValueError(
                f"{name}={shown(c)}, x={shown(x)}: {without} holds no values; pass both on one "
                "device"
            )


class Wrapper:
    """A field that wraps another."""

    def __init__(self, field: Field) -> None:
        self.field = checks.function("field", field, "x, t, cond", exactly=False)

    def __getattr__(self, name: str) -> Any:
        if name == "field":  # not yet set: unpickling and copying look it up early
            raise AttributeError(name)
        return getattr(self.field, name)


@checks.known_keywords
class CountCalls(Wrapper):
    """Counts evaluations in ``calls``, a guided one in one batch as one, and states in ``rows``."""

    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self.calls = 0
        self.rows = 0

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """``field(x, t, cond)``, counted."""
        self.calls += 1
        self.rows += len(x)
        return self.field(x, t, cond)


@checks.known_keywords
class Cast(Wrapper):
    """Runs ``field`` in ``dtype`` on a state kept in its own; times are never rounded."""

    def __init__(self, field: Field, dtype: torch.dtype) -> None:
        super().__init__(field)
        self.dtype = checks.dtype("dtype", dtype)

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """``field(x, t, cond)`` computed in ``dtype``, returned in the dtype of ``x``."""
        checks.tensor("x", x)
        cond = map_condition(self._to, cond)
        return self.field(x.to(self.dtype), t, cond).to(x.dtype)

    def embed_condition(self, cond: Condition) -> Condition:
        """``cond`` as ``field`` embeds it, in ``dtype``."""
        return embedded(self.field, map_condition(self._to, cond))

    def _to(self, c: object) -> object:
        return c.to(self.dtype) if isinstance(c, Tensor) and c.is_floating_point() else c


def time_of(t: Time, x: Tensor) -> Tensor | float:
    """A time as passed to a field: a number in [0, 1], or a tensor () or (B,); ``x`` (B, ...)."""
    if not isinstance(t, Tensor):
        time = checks.number("t", t)
        if not -1e-6 <= time <= 1 + 1e-6:  # sums of steps are rounded
            raise ValueError(f"t={shown(t)}: must be from 0 (noise) to 1 (data)")
        return time
    checks.tensor("t", t, dtypes=checks.REALS)
    if t.shape not in ((), (len(x),)) or (t.is_meta and not x.is_meta):
        raise ValueError(
            f"t={shown(t)}: must be one time, or one per image, and there are {len(x)} on "
            f"{x.device}"
        )
    return t
