r"""A refiner that sees the history, after guidance.

From the last two guided velocities at distinct times ``t_b``, ``t_a`` it predicts the next by a
correction to their linear extrapolation, scaled by the gap (in eighths, about 1 in few-step plans),

.. math:: v(t) \approx v_a + e + 8\,(t - t_a)\,n(x, v_a, e, t, t - t_a, t_a - t_b, w, c),
    \qquad e = \frac{t - t_a}{t_a - t_b}\,(v_a - v_b),

so a network ``n = 0`` extrapolates, and velocities linear in time are exact. The scale of guidance
``w`` is an input: one refiner serves a range, and a call is never doubled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from flowturbo.digests import fingerprint
from flowturbo.field import embedded
from flowturbo.models.sit import Embedded, Modulated, SiT
from flowturbo.plan import Row
from flowturbo.refiner.binding import History
from flowturbo.refiner.borrow import borrowed, network_of
from flowturbo.refiner.conv import SmallNetwork
from flowturbo.types import Condition, GuidanceScale, JsonObject, Time

__all__ = ["VelocityRefiner"]

T = TypeVar("T")
_SCALE = 32.0  # gaps are embedded in units of 1/32, which waves of period 2*pi tell apart


class VelocityRefiner(nn.Module):
    """``(x, t, cond, history, guidance) -> v`` for states of any shape.

    Attributes:
        network: ``(3 states, t, cond, 3 numbers) -> correction``, a SiT or a `SmallNetwork`.
        guidance_range: (lowest, highest) scale it is made for.
        card: how it was made.
    """

    distinct_times = 2
    per_image_times = True
    guided = True

    def __init__(
        self,
        network: SiT | SmallNetwork,
        guidance_range: tuple[float, float] = (1.0, 1.0),
        card: JsonObject | None = None,
    ) -> None:
        super().__init__()
        low, high = (float(w) for w in guidance_range)
        if not low <= high:
            raise ValueError(f"guidance={guidance_range}: must be (lowest, highest)")
        self.network, self.guidance_range, self.card = network, (low, high), card or {}

    @property
    def kind(self) -> str:
        """ "velocity" for a block of a SiT, "conv" for a small network."""
        return "velocity" if isinstance(self.network, SiT) else "conv"

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights in half precision."""
        return fingerprint(self.network)

    @classmethod
    def from_model(
        cls,
        model: object,
        guidance_range: tuple[float, float] = (1.0, 1.0),
        *,
        block: int = -1,
        width: int | None = None,
        heads: int | None = None,
    ) -> VelocityRefiner:
        """A refiner with the embedders and one block of a SiT, by default the last.

        It starts as linear extrapolation. With another ``width`` (and ``heads``), only parameters
        that fit are borrowed.

        Raises:
            ValueError: if ``model`` is no SiT or has no such block.
        """
        config = network_of(model).config
        config = replace(
            config,
            depth=1,
            prediction="velocity",
            learn_sigma=False,
            width=config.width if width is None else width,
            heads=config.heads if heads is None else heads,
        )
        return cls(borrowed(model, config, block, images=3, numbers=3), guidance_range)

    @classmethod
    def small(
        cls,
        shape: Sequence[int],
        guidance_range: tuple[float, float] = (1.0, 1.0),
        **options: int,
    ) -> VelocityRefiner:
        """A refiner of a `SmallNetwork` for states of ``shape``; see there."""
        return cls(SmallNetwork(shape, **options), guidance_range)

    def check_inputs(self, x: Tensor, cond: Condition = None, negative: Condition = None) -> None:
        """Refuse states and conditions that its network cannot take, with a ``ValueError``."""
        self.network.check_inputs(x, cond, negative)

    def embed_condition(self, cond: Condition) -> Condition:
        """Embed ``cond`` once per sample; the result is passed in its place."""
        return embedded(self.network, cond)

    def embed_rows(
        self, rows: Sequence[Row], cond: Condition, guidance: GuidanceScale = 1.0
    ) -> dict[int, Condition]:
        """What to pass at ``rows`` of a plan in place of ``cond``, by their k.

        It contains everything that does not depend on the state, computed for all rows as one
        batch.
        """
        shown, network = self.embed_condition(cond), self.network
        if not rows or not isinstance(network, SiT):
            return dict.fromkeys((row.k for row in rows), shown)
        text, vector = (shown.text, shown.vector) if isinstance(shown, Embedded) else (None, None)
        sizes = [len(c) for c in (vector, guidance) if isinstance(c, Tensor) and c.ndim]
        images = network.pos_embed.new_empty(max(sizes, default=1))
        times, numbers = [], []
        for row in rows:
            (t_a, _), (t_b, _) = _last_two([(t, j) for j, t in row.history])
            times.append(_rows(row.model_time, images))
            numbers.append(_numbers(row.model_time - t_a, t_a - t_b, guidance, images))
        if vector is not None:
            shown = Embedded(None, vector.repeat(len(rows), 1))
        made = network.modulate(torch.cat(times), shown, torch.cat(numbers))
        parts = zip(*(m.split(len(images)) for m in (*made.blocks, made.final)), strict=True)
        return {r.k: Modulated(text, p[:-1], p[-1]) for r, p in zip(rows, parts, strict=True)}

    def forward(
        self, x: Tensor, t: Time, cond: Condition, history: History, guidance: GuidanceScale = 1.0
    ) -> Tensor:
        """The velocity (B, ...) at ``x``, ``t`` from the last two times of ``history``.

        If several evaluations share a time, the latest is used; one at ``t`` is returned unchanged.

        Raises:
            ValueError: if ``history`` has fewer than two distinct times.
        """
        return self.predict(x, t, cond, *_last_two(history), guidance)

    def predict(
        self,
        x: Tensor,
        t: Time,
        cond: Condition,
        a: tuple[Time, Tensor],
        b: tuple[Time, Tensor],
        guidance: GuidanceScale = 1.0,
    ) -> Tensor:
        """The velocity from ``a = (t_a, v_a)``, the last, and ``b``, the one before.

        Times and ``guidance`` are scalars or one per image (B,).
        """
        (t_a, v_a), (t_b, v_b) = a, b
        t, t_a, t_b = (_rows(time, x) for time in (t, t_a, t_b))
        gap, before = t - t_a, t_a - t_b
        shape = (-1, *[1] * (x.ndim - 1))
        step = (gap / before).reshape(shape).to(x.dtype) * (v_a - v_b)
        shown = torch.cat([x, v_a, step], dim=1)
        known = isinstance(cond, Modulated)
        numbers = None if known else _numbers(gap, before, guidance, x)
        dtype = next(self.network.parameters()).dtype
        correction = self.network(shown.to(dtype), t, cond, numbers).to(x.dtype)
        return v_a + step + (8 * gap).reshape(shape).to(x.dtype) * correction


def _last_two(history: Sequence[tuple[Time, T]]) -> tuple[tuple[Time, T], tuple[Time, T]]:
    """The latest (time, ...) of ``history``, and the latest at another time."""
    for b in history[-2::-1]:
        a = history[-1]
        if isinstance(a[0], Tensor) or a[0] != b[0]:  # times of rows are taken as they come
            return a, b
    raise ValueError("history: the refiner needs velocities at 2 distinct times, and has fewer")


def _numbers(gap: Time, before: Time, guidance: GuidanceScale, x: Tensor) -> Tensor:
    """The inputs of the network besides the time, (B, 3)."""
    return torch.stack([_rows(n, x) for n in (_SCALE * gap, _SCALE * before, guidance)], dim=1)


def _rows(value: Time, x: Tensor) -> Tensor:
    """``value`` for each image, (B,), in full precision, without a copy to the device."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if isinstance(value, Tensor):
        return value.to(x.device, dtype).expand(len(x))
    return torch.full((len(x),), float(value), dtype=dtype, device=x.device)
