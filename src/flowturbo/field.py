"""The velocity field, and what can be wrapped around one.

A field is any callable ``(x, t, cond) -> v``:

- ``x`` (B, ...), the state;
- ``t``, a scalar (float or 0-dim tensor) or one per image (B,), in [0, 1], 0 is noise;
- ``cond``, the condition: ``None``, a tensor of B rows, or a tuple, list or dict of such;
- ``v``, like ``x``, the velocity ``dx/dt``.

A field may have a method ``embed_condition(cond)``: what of the condition need be computed but once
a sample, to be passed in its place.

Wrappers are fields again and pass every other attribute (``shape``, ``condition``, ...) through.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = [
    "Branches",
    "Cast",
    "CountCalls",
    "Field",
    "Guidance",
    "cut",
    "device_of",
    "embedded",
    "guided",
    "map_condition",
]


class Field(Protocol):
    """A velocity field: any callable ``(x, t, cond) -> v``."""

    def __call__(self, x: Tensor, t: Any, cond: Any) -> Tensor:
        """The velocity at state ``x``, time ``t``, under condition ``cond``."""
        ...


def map_condition(fn: Any, *conds: Any) -> Any:
    """Apply ``fn`` to the corresponding tensors of conditions of one structure."""
    first = conds[0]
    if isinstance(first, dict):
        return {k: map_condition(fn, *(c[k] for c in conds)) for k in first}
    if isinstance(first, (tuple, list)):
        return type(first)(map_condition(fn, *cs) for cs in zip(*conds, strict=True))
    return fn(*conds)


def embedded(field: Any, cond: Any) -> Any:
    """``cond`` as ``field`` embeds it once a sample; itself where it does not."""
    embed = getattr(field, "embed_condition", None)
    return cond if embed is None else embed(cond)


def cut(cond: Any, rows: slice) -> Any:
    """The ``rows`` of a condition, or of scales of guidance; what is no tensor is for all rows."""
    return map_condition(lambda c: c[rows] if isinstance(c, Tensor) else c, cond)


def device_of(field: Any) -> torch.device:
    """Where a field's weights are, or what it says of itself; by default the CPU."""
    weights = getattr(field, "parameters", None)
    weight = next(weights(), None) if callable(weights) else None
    return torch.device(getattr(field, "device", "cpu")) if weight is None else weight.device


class _Wrapper:
    """A field around a field."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def __getattr__(self, name: str) -> Any:
        if name == "field":  # not yet set: unpickling and copying look it up early
            raise AttributeError(name)
        return getattr(self.field, name)


class CountCalls(_Wrapper):
    """Counts evaluations in ``calls``; a guided evaluation in one batch is one."""

    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self.calls = 0

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Tensor:
        """``field(x, t, cond)``, counted."""
        self.calls += 1
        return self.field(x, t, cond)


class Cast(_Wrapper):
    """Runs ``field`` in ``dtype`` on a state kept in its own; times are never rounded."""

    def __init__(self, field: Field, dtype: torch.dtype) -> None:
        super().__init__(field)
        self.dtype = dtype

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Tensor:
        """``field(x, t, cond)`` computed in ``dtype``, returned in the dtype of ``x``."""
        cond = map_condition(self._to, cond)
        return self.field(x.to(self.dtype), t, cond).to(x.dtype)

    def embed_condition(self, cond: Any) -> Any:
        """What ``field`` embeds of ``cond`` in ``dtype``."""
        return embedded(self.field, map_condition(self._to, cond))

    def _to(self, c: Any) -> Any:
        return c.to(self.dtype) if isinstance(c, Tensor) and c.is_floating_point() else c


@dataclass(frozen=True)
class Branches:
    """What a guided field is shown, embedded: ``both`` branches as one batch, and ``one`` alone."""

    both: Any
    one: Any


class Guidance(_Wrapper):
    """Classifier-free guidance, ``v_u + scale*(v_c - v_u)`` (Ho & Salimans 2022, arXiv 2207.12598).

    Both branches run as one batch, ``[conditional, unconditional]``. A time that is a number, as
    the sampling loop tells it, settles without a look at the device whether both are needed; the
    field is told a 0-dim tensor.

    Args:
        field: the field to guide.
        scale: a number, or one per image (B,); 1 is off and costs nothing. Values on another device
            than the CPU are not waited for.
        null: the condition of the unconditional branch (a negative prompt, say), of the structure
            of ``cond``; by default ``field.null_condition(cond)``.
        interval: guide only at ``interval[0] <= t <= interval[1]`` (Kynkaanniemi et al. 2024, arXiv
            2404.07724); outside, only the conditional branch runs.
        channels: guide only the first so many channels, the rest stay conditional (the official
            SiT and DiT samplers guide 3 of 4); all by default.

    Raises:
        ValueError: if ``scale`` is no number or tensor, or not finite, ``interval`` not in order,
            or there is neither a ``null`` nor a ``field.null_condition``; when called, if ``cond``
            and the null condition cannot be joined in one batch.
    """

    def __init__(
        self,
        field: Field,
        scale: float | Tensor,
        *,
        null: Any = None,
        interval: tuple[float, float] = (0.0, 1.0),
        channels: int | None = None,
    ) -> None:
        super().__init__(field)
        if not isinstance(scale, (Real, Tensor)):
            raise ValueError(f"guidance={scale!r}: must be a number or a tensor, one per image")
        here = not isinstance(scale, Tensor) or scale.device.type == "cpu"
        looked = here and not torch.compiler.is_compiling()
        if looked and not torch.as_tensor(scale).isfinite().all():
            raise ValueError(f"guidance={scale}: must be finite (1 = off)")
        if not interval[0] <= interval[1]:
            raise ValueError(f"interval={interval}: must be (from, to) with from <= to")
        if channels is not None and channels < 1:
            raise ValueError(f"channels={channels}: guide at least 1 channel, or None for all")
        if null is None and not hasattr(field, "null_condition"):
            raise ValueError(
                f"guidance={scale} needs the condition of the unconditional branch, and the field "
                "has no null_condition(cond); pass null=..., or guidance=1 if it is guided already"
            )
        self.scale, self.null, self.interval, self.channels = scale, null, interval, channels

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Tensor:
        """The guided velocity, like ``x``."""
        return self.over(self.field, x, t, cond)

    def embed_condition(self, cond: Any) -> Branches:
        """The condition of both branches, embedded once."""
        return self.branches(self.field, cond)

    def branches(self, field: Any, cond: Any) -> Branches:
        """The same as another field embeds it, joined with the same null condition."""
        if cond is None:
            raise ValueError("guidance needs a condition: pass cond, or guidance=1")
        null = self.field.null_condition(cond) if self.null is None else self.null  # type: ignore[attr-defined]
        one = cond if self._whole else embedded(field, cond)
        return Branches(embedded(field, map_condition(_cat, cond, null)), one)

    def over(self, field: Field, x: Tensor, t: Any, cond: Any) -> Tensor:
        """The velocity of another field guided the same way, with the same null condition.

        ``cond`` may be what ``branches`` made of it for that field.
        """
        low, high = self.interval
        if isinstance(t, (int, float)):  # of rounded times, the border is inside
            guided = self._whole or low - 1e-9 <= t <= high + 1e-9
            t = x.new_full((), float(t), dtype=torch.promote_types(x.dtype, torch.float32))
        else:
            guided = self._whole or bool(torch.as_tensor((t >= low) & (t <= high)).any())
        if not guided:
            return field(x, t, cond.one if isinstance(cond, Branches) else cond)
        shown = cond if isinstance(cond, Branches) else self.branches(field, cond)
        t2 = torch.cat([t, t]) if t.ndim == 1 else t
        v_c, v_u = field(torch.cat([x, x]), t2, shown.both).chunk(2)
        out = v_u + self._scale(x, t) * (v_c - v_u)
        if self.channels is not None:
            out = torch.cat([out[:, : self.channels], v_c[:, self.channels :]], dim=1)
        return out

    @property
    def _whole(self) -> bool:
        return self.interval[0] <= 0 and self.interval[1] >= 1

    def _scale(self, x: Tensor, t: Tensor) -> float | Tensor:
        scale = self.scale
        if not self._whole and t.ndim == 1:  # images on both sides of a border
            inside = (t >= self.interval[0]) & (t <= self.interval[1])
            scale = torch.where(inside, torch.as_tensor(scale, dtype=x.dtype, device=x.device), 1.0)
        if isinstance(scale, Tensor) and scale.ndim == 1:
            scale = scale.to(x).reshape(-1, *[1] * (x.ndim - 1))
        return scale


def guided(
    field: Field, scale: float | Tensor, *, null: Any = None, channels: int | None = None
) -> Field:
    """``field`` under ``Guidance``; itself where the scale is the number 1, which needs no null."""
    off = not isinstance(scale, Tensor) and scale == 1.0
    return field if off else Guidance(field, scale, null=null, channels=channels)


def _cat(a: Any, b: Any) -> Any:
    if not isinstance(a, Tensor):
        if a is not b and a != b:  # one batch can hold but one of them
            raise ValueError(
                f"guidance between the conditions {a!r} and {b!r}: only tensors of a row per image "
                "can differ between the two branches; pass tensors"
            )
        return a
    if not isinstance(b, Tensor) or b.shape[1:] != a.shape[1:] or len(b) not in (1, len(a)):
        got = tuple(b.shape) if isinstance(b, Tensor) else type(b).__name__
        raise ValueError(
            f"the null condition is {got}, the condition {tuple(a.shape)}: it must be alike, with "
            "one row or as many"
        )
    return torch.cat([a, b.expand(len(a), *b.shape[1:])])
