"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), as a wrapper of fields."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.field import Field, Wrapper, check_values, embedded, time_of
from flowturbo.tree import map_condition, tensors
from flowturbo.types import Condition, GuidanceScale, Time

__all__ = ["Branches", "Guidance", "check_scale", "guided"]


@dataclass(frozen=True)
class Branches:
    """The embedded condition: of ``both`` branches as one batch, and of the conditional ``one``."""

    both: Condition
    one: Condition


@checks.known_keywords
class Guidance(Wrapper):
    """Classifier-free guidance, ``v_u + scale*(v_c - v_u)`` (Ho & Salimans 2022, arXiv 2207.12598).

    Both branches run as one batch, ``[conditional, unconditional]``. Whether both are needed is
    known without waiting for the device if the time is a number, as the sampling loop passes it;
    the field receives a 0-dim tensor.

    Args:
        field: the field to guide.
        scale: a number, or one per image (B,); 1 is off and costs nothing. Values on devices other
            than the CPU are not waited for.
        null: the condition of the unconditional branch, such as a negative prompt, of the
            structure of ``cond``; by default ``field.null_condition(cond)``.
        interval: guide only at ``interval[0] <= t <= interval[1]`` (Kynkaanniemi et al. 2024, arXiv
            2404.07724); outside, only the conditional branch runs.
        channels: guide only this many channels, from the first on; the rest stay conditional (the
            official SiT and DiT samplers guide 3 of 4); all by default.

    Raises:
        ValueError: if an argument is not as described, the field is guided already, or there is
            neither a ``null`` nor a ``field.null_condition``; when called, if ``scale`` is not one
            per image, or ``cond`` and the null condition cannot be joined in one batch.
    """

    scale: GuidanceScale

    def __init__(
        self,
        field: Field,
        scale: GuidanceScale,
        *,
        null: Condition = None,
        interval: tuple[float, float] = (0.0, 1.0),
        channels: int | None = None,
    ) -> None:
        super().__init__(field)
        if (inner := _guidance_in(field)) is not None:
            raise ValueError(
                f"guidance={shown(scale)}: the field is guided already, at {shown(inner.scale)}; "
                "leave it at 1, or pass the field inside"
            )
        scale = check_scale(scale)
        interval = _interval(interval)
        if channels is not None:
            channels = checks.whole("channels", channels, 1)
        if null is None and not hasattr(field, "null_condition"):
            raise ValueError(
                f"guidance={shown(scale)} needs the condition of the unconditional branch, and the "
                "field has no null_condition(cond); give it one, pass negative=... to "
                "flowturbo.sample or null=... to flowturbo.Guidance, or guidance=1 if it is guided "
                "already"
            )
        self.scale, self.null, self.interval, self.channels = scale, null, interval, channels

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """The guided velocity, like ``x``."""
        return self.apply_to(self.field, x, t, cond)

    def embed_condition(self, cond: Condition) -> Branches:
        """The condition of both branches, embedded once."""
        return self.branches(self.field, cond)

    def branches(self, field: object, cond: Condition) -> Branches:
        """The condition as another field embeds it, joined with the same null condition."""
        if cond is None:
            _check_rows(cond, 0)
        null = self._null(cond) if self.null is None else self.null
        _check_alike(cond, null)
        one = cond if self._whole else embedded(field, cond)
        return Branches(embedded(field, map_condition(_cat, cond, null)), one)

    def check(self, x: Tensor, cond: Condition) -> None:
        """Raise ``ValueError`` unless scale, channels and condition fit the images ``x`` (B, ...).

        The result of ``branches`` for a condition is accepted.
        """
        scale = self.scale
        if isinstance(scale, Tensor) and (
            scale.numel() not in (1, len(x)) or (scale.is_meta and not x.is_meta)
        ):
            raise ValueError(
                f"guidance={shown(scale)}: must be one number, or one per image, and there are "
                f"{len(x)} on {x.device}"
            )
        if self.channels is not None and (x.ndim < 2 or self.channels > x.shape[1]):
            raise ValueError(
                f"channels={self.channels}: must be at most the second size of the "
                f"state, which is {tuple(x.shape)}"
            )
        if not isinstance(cond, Branches):
            _check_rows(cond, len(x))
            check_values("cond", cond, x)

    def apply_to(self, field: Field, x: Tensor, t: Time, cond: Condition) -> Tensor:
        """The velocity of another field guided the same way, with the same null condition.

        ``cond`` may be the result of ``branches`` for that field.
        """
        return self._apply(field, x, t, cond)[0]

    def with_term(self, x: Tensor, t: Time, cond: Condition) -> tuple[Tensor, Tensor]:
        """The guided velocity, and its guidance term: its difference from the conditional one."""
        out, v_c = self._apply(self.field, x, t, cond)
        return out, out - v_c

    def conditional(self, x: Tensor, t: float, cond: Condition) -> Tensor:
        """The velocity of the conditional branch alone; ``cond`` is its condition, embedded."""
        return self.field(x, x.new_full((), t, dtype=_time_dtype(x)), cond)

    def applies_at(self, t: float) -> bool:
        """Whether ``t`` is in the interval; its borders are inside, even if times are rounded."""
        return self._whole or self.interval[0] - 1e-9 <= t <= self.interval[1] + 1e-9

    def _apply(self, field: Field, x: Tensor, t: Time, cond: Condition) -> tuple[Tensor, Tensor]:
        """The guided velocity, and the conditional one."""
        self.check(checks.tensor("x", x, ("B", ...), dtypes=checks.DTYPES), cond)
        low, high = self.interval
        t = time_of(t, x)
        if isinstance(t, float):
            guided = self.applies_at(t)
            t = x.new_full((), t, dtype=_time_dtype(x))
        else:
            guided = self._whole or bool(torch.as_tensor((t >= low) & (t <= high)).any())
        if not guided:
            v = field(x, t, cond.one if isinstance(cond, Branches) else cond)
            return v, v
        if not isinstance(cond, Branches):
            cond = self.branches(field, cond)
        t2 = torch.cat([t, t]) if t.ndim == 1 else t
        v_c, v_u = _halves(field(torch.cat([x, x]), t2, cond.both), x)
        out = v_u + self._scale(x, t) * (v_c - v_u)
        if self.channels is not None:
            out = torch.cat([out[:, : self.channels], v_c[:, self.channels :]], dim=1)
        return out, v_c

    def _null(self, cond: Condition) -> Condition:
        try:
            return self.field.null_condition(cond)  # type: ignore[attr-defined]
        except (TypeError, AttributeError) as e:
            raise ValueError(
                f"cond={shown(cond)}: the null_condition of the field cannot take it ({e}); pass "
                "what it takes, or the null condition itself"
            ) from e

    @property
    def _whole(self) -> bool:
        return self.interval[0] <= 0 and self.interval[1] >= 1

    def _scale(self, x: Tensor, t: Tensor) -> GuidanceScale:
        scale = self.scale
        if not self._whole and t.ndim == 1:  # images on both sides of a border
            inside = (t >= self.interval[0]) & (t <= self.interval[1])
            scale = torch.where(inside, torch.as_tensor(scale, dtype=x.dtype, device=x.device), 1.0)
        if isinstance(scale, Tensor) and scale.ndim == 1:
            scale = scale.to(x).reshape(-1, *[1] * (x.ndim - 1))
        return scale


def guided(
    field: Field, scale: GuidanceScale, *, null: Condition = None, channels: int | None = None
) -> Field:
    """``field`` in ``Guidance``; ``field`` itself if the scale is the number 1, without a null."""
    scale = check_scale(scale)
    off = not isinstance(scale, Tensor) and scale == 1.0
    return field if off else Guidance(field, scale, null=null, channels=channels)


def _time_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def check_scale(scale: object) -> GuidanceScale:
    """A scale of guidance: a finite number, or a tensor () or (B,) of them."""
    if not isinstance(scale, Tensor):
        try:
            return checks.number("guidance", scale)
        except ValueError:
            raise ValueError(
                f"guidance={shown(scale)}: must be a finite number (1 = off), or a tensor of one "
                "per image"
            ) from None
    if scale.ndim > 1 or scale.dtype not in checks.REALS:
        raise ValueError(
            f"guidance={shown(scale)}: must be a number (1 = off), or a tensor (B,) of one real "
            "number per image"
        )
    if scale.device.type == "cpu" and checks.can_look(scale) and not scale.isfinite().all():
        raise ValueError(f"guidance={shown(scale.tolist())}: must be finite (1 = off)")
    return scale


def _check_rows(cond: Condition, rows: int, name: str = "cond") -> None:
    """Raise ``ValueError`` unless a condition has tensors of ``rows`` rows, as guidance needs."""
    if cond is None:
        raise ValueError(f"{name}=None: guidance needs a condition; pass {name}, or guidance=1")
    for c in tensors(cond) or [cond]:
        if not isinstance(c, Tensor) or c.is_nested or c.shape[:1] != (rows,):
            raise ValueError(
                f"{name}={shown(c)}: guidance joins two conditions of a row per image; pass a "
                f"tensor ({rows}, ...), or a tuple, list or dict of such, or guidance=1"
            )


def _guidance_in(field: object) -> Guidance | None:
    """The guidance that a field is wrapped in, if any."""
    while isinstance(field, Wrapper) and not isinstance(field, Guidance):
        field = field.field
    return field if isinstance(field, Guidance) else None


def _interval(interval: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (checks.number("interval", end) for end in interval)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if low > high:
        raise ValueError(f"interval={shown(interval)}: must be two times (from, to), from <= to")
    return low, high


def _halves(v: object, x: Tensor) -> tuple[Tensor, Tensor]:
    """The velocities of both branches, if the field returned one for each of their rows."""
    if not isinstance(v, Tensor) or v.shape != (2 * len(x), *x.shape[1:]):
        got = f"{tuple(v.shape)}" if isinstance(v, Tensor) else f"{type(v).__name__}, not a tensor"
        raise ValueError(
            f"the field returned {got} for {(2 * len(x), *x.shape[1:])}, both branches of guidance"
        )
    one, other = v.chunk(2)
    return one, other


def _check_alike(cond: Condition, null: Condition) -> None:
    """Raise ``ValueError`` unless the null condition is a nest of the same form."""
    if not isinstance(cond, (dict, tuple, list)):
        return
    alike = type(cond) is type(null) and len(cond) == len(null)
    if alike and isinstance(cond, dict):
        alike = cond.keys() == null.keys()
    if not alike:
        raise ValueError(
            f"the null (negative) condition is {shown(null)}, the condition {shown(cond)}: it must "
            "be alike"
        )
    pairs = (
        [(cond[k], null[k]) for k in cond]
        if isinstance(cond, dict)
        else [*zip(cond, null, strict=True)]
    )
    for c, n in pairs:
        _check_alike(c, n)


def _cat(a: Condition, b: Condition) -> Condition:
    if not isinstance(a, Tensor):
        if a is not b and (isinstance(b, Tensor) or a != b):  # one batch can hold only one of them
            raise ValueError(
                f"guidance between the conditions {shown(a)} and {shown(b)}: only tensors of a row "
                "per image can differ between the two branches; pass tensors"
            )
        return a
    alike = isinstance(b, Tensor) and not b.is_nested and b.shape[1:] == a.shape[1:]
    if not alike or b.ndim != a.ndim or len(b) not in (1, len(a)) or b.device != a.device:
        raise ValueError(
            f"the null (negative) condition is {shown(b)}, the condition {shown(a)}: it must be "
            "alike, with one row or as many"
        )
    return torch.cat([a, b.expand(len(a), *b.shape[1:])])
