r"""SiT: a transformer that predicts velocities (Ma et al. 2024, arXiv 2401.08740).

Parameter names, shapes and arithmetic are those of the official class-conditional SiT checkpoints
(S, B, L, XL), which load by name. All differences from them are optional and off by default: text
tokens instead of classes, a convolutional stem and head, one modulation shared by all blocks, and
predicting the clean image, from which the velocity follows as ``(x1 - x) / (1 - t)``, or the noise,
as diffusion models do (see `flowturbo.models.diffusion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.models.diffusion import FIRST, from_linear, variance_preserving
from flowturbo.models.layers import (
    Block,
    ConvBlock,
    FinalLayer,
    LabelEmbedder,
    PatchEmbed,
    TextEmbedder,
    TimestepEmbedder,
    sincos_grid,
)
from flowturbo.models.sit_config import SiTConfig
from flowturbo.types import Time

__all__ = ["Embedded", "Modulated", "SiT", "SiTConfig", "check_indices"]


@dataclass(frozen=True)
class Embedded:
    """A condition as a `SiT` embeds it: ``text`` (B, L, width) or None, ``vector`` (B, width)."""

    text: Tensor | None
    vector: Tensor


@dataclass(frozen=True)
class Modulated:
    """All that a `SiT` derives from time, condition and numbers for one evaluation.

    Attributes:
        text: (B, L, width) or None.
        blocks: (B, 6*width) of each block.
        final: (B, 2*width) of the last layer.
    """

    text: Tensor | None
    blocks: tuple[Tensor, ...]
    final: Tensor


SiTCondition: TypeAlias = Tensor | Embedded | Modulated | None
"""Indices or ids, the same embedded, or the modulation of an evaluation; None is unconditional."""


def check_indices(name: str, cond: Tensor, largest: Sequence[int], wanted: str) -> None:
    """Refuse a condition (B,) or (B, n) with an index outside of 0 to its column's ``largest``.

    Raises:
        ValueError: naming the condition, the index and what is ``wanted``.
    """
    columns = cond if cond.ndim > 1 else cond[:, None]
    outside = (columns < 0) | (columns > torch.tensor(largest, device=cond.device))
    if outside.any():
        wrong = max(columns[outside].tolist(), key=abs)
        raise ValueError(f"{name}={shown(cond)}: holds {wrong}, and must be {wanted}")


class SiT(nn.Module):
    """A velocity field ``(x, t, cond) -> v``.

    ``x`` is (B, channels, size, size); ``t`` a scalar or (B,) in [0, 1]; ``cond`` class indices
    (B,), token ids (B, text_length), preceded by the style if it has styles, either of these
    embedded by ``embed_condition``, or None for the unconditional velocity; ``v`` is like ``x``.
    The result of ``modulate``, which includes the time, may be passed in place of the condition.

    A refiner takes more inputs: ``images`` of ``channels`` each, concatenated in ``x`` with the
    state first, and further ``numbers`` (B, n), embedded like the time.
    """

    def __init__(self, config: SiTConfig, *, images: int = 1, numbers: int = 0) -> None:
        super().__init__()
        c = self.config = config
        conv = c.stem == "conv"
        inner = c.stem_width if conv else images * c.channels
        self.out_channels = c.channels * (2 if c.learn_sigma else 1)
        outer = c.stem_width if conv else self.out_channels
        if conv:
            self.stem = nn.Conv2d(images * c.channels, inner, 3, padding=1)
            if c.head_blocks:
                self.head_blocks = nn.Sequential(*(ConvBlock(outer) for _ in range(c.head_blocks)))
            self.head = nn.Conv2d(outer, self.out_channels, 3, padding=1)
        self.x_embedder = PatchEmbed(inner, c.patch, c.width)
        self.t_embedder = TimestepEmbedder(c.width)
        if numbers:
            self.number_embedders = nn.ModuleList(TimestepEmbedder(c.width) for _ in range(numbers))
        if c.classes:
            self.y_embedder = LabelEmbedder(c.classes, c.width)
        if c.vocabulary:
            self.text_embedder = TextEmbedder(c.vocabulary, c.text_length, c.width)
        if c.styles:
            self.style_embedder = nn.Embedding(c.styles + 1, c.width)
        if c.modulation == "shared":
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.width, 6 * c.width))
        grid = sincos_grid(c.width, c.size // c.patch)[None]
        self.pos_embed = nn.Parameter(grid, requires_grad=False)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.final_layer = FinalLayer(c.width, c.patch**2 * outer)
        self._initialise()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the state."""
        return (self.config.channels, self.config.size, self.config.size)

    def null_condition(self, cond: Tensor) -> Tensor:
        """The unconditional condition, of the shape of ``cond``."""
        return torch.full_like(cond, self.config.classes if self.config.classes else 0)

    def check_inputs(self, x: object, cond: object = None, negative: object = None) -> None:
        """Refuse what the network cannot take, before it computes.

        Raises:
            ValueError: unless ``x`` is (B, *shape) on the device of the weights, ``cond`` has
                indices or ids for B rows, is embedded, or is None, and ``negative`` is the same
                with B rows or one. The indices are read, on any device.
        """
        x = checks.tensor("x", x, ("B", *self.shape))
        home = self.pos_embed.device
        if x.device != home:
            raise ValueError(f"x={shown(x)}: is not on {home} as the weights are; pass x.to(...)")
        self._check_condition("cond", cond, (len(x),))
        self._check_condition("negative", negative, (1, len(x)))

    @property
    def largest_indices(self) -> list[int]:
        """The largest index in each column of a condition; the smallest is 0."""
        c = self.config
        if c.classes:
            return [c.classes]
        words = [c.vocabulary - 1] * c.text_length if c.vocabulary else []
        return [c.styles, *words] if c.styles else words

    def _check_condition(self, name: str, cond: object, rows: tuple[int, ...]) -> None:
        c = self.config
        if cond is None or isinstance(cond, (Embedded, Modulated)):
            return
        if not (c.classes or c.vocabulary):
            raise ValueError(f"{name}={shown(cond)}: the model takes no condition; leave it out")
        most = c.classes or c.vocabulary - 1
        styled = bool(c.styles)
        shapes = [(n,) if c.classes else (n, styled + c.text_length) for n in rows]
        what = f"a tensor {shapes[-1]} of {'class indices' if c.classes else 'token ids'}"
        what = f"a style from 0 to {c.styles} before each row of {what}" if styled else what
        wanted = f"{what} from 0 to {most}, as model.condition([...]) makes it"
        whole = (torch.int32, torch.int64)
        if not isinstance(cond, Tensor) or cond.dtype not in whole or cond.shape not in shapes:
            raise ValueError(f"{name}={shown(cond)}: must be {wanted}")
        if cond.device != self.pos_embed.device:
            raise ValueError(
                f"{name}={shown(cond)}: is not on {self.pos_embed.device} as the weights are; pass "
                f"{name}.to(...)"
            )
        if checks.can_look(cond):
            check_indices(name, cond, self.largest_indices, wanted)

    def forward(
        self,
        x: Tensor,
        t: Time,
        cond: SiTCondition = None,
        numbers: Tensor | None = None,
    ) -> Tensor:
        """The velocity at ``x``, ``t`` under ``cond``."""
        config = self.config
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        t = t if isinstance(t, Tensor) else x.new_full((), t, dtype=precise)  # without a copy
        t = t.to(x.device, precise).expand(len(x))
        seen, model_time = x, t
        if config.prediction == "noise":
            level = t.clamp(min=FIRST)[:, None, None, None]
            seen, model_time = variance_preserving(x, level).to(x.dtype), from_linear(t)
        m = cond if isinstance(cond, Modulated) else self.modulate(model_time, cond, numbers)
        h = F.silu(self.stem(seen)) if config.stem == "conv" else seen
        h = self.x_embedder(h) + self.pos_embed
        h = h if m.text is None else torch.cat([m.text, h], dim=1)
        for block, modulation in zip(self.blocks, m.blocks, strict=True):
            h = block(h, modulation)
        h = h[:, -self.pos_embed.shape[1] :]
        out = self.unpatchify(self.final_layer(h, m.final))
        if config.head_blocks:
            out = self.head_blocks(out)
        if config.stem == "conv":
            out = self.head(F.silu(out))
        out = out[:, : config.channels]
        if config.prediction == "data":  # velocities within 5 % of the data are damped
            rest = (1 - t).clamp(min=0.05)[:, None, None, None]
            out = ((out - x) / rest).to(out.dtype)
        if config.prediction == "noise":
            out = (x - out) / level
        return out

    def embed_condition(self, cond: Tensor | None) -> Tensor | Embedded | None:
        """The part of ``cond`` that does not depend on the time, to pass in its place."""
        if cond is None or not (self.config.classes or self.config.vocabulary):
            return cond
        if self.config.classes:
            return Embedded(None, self.y_embedder(cond))
        if self.config.styles:
            text, vector = self.text_embedder(cond[:, 1:])
            return Embedded(text, vector + self.style_embedder(cond[:, 0]))
        return Embedded(*self.text_embedder(cond))

    def embed(self, t: Tensor, cond: Tensor | Embedded | None) -> tuple[Tensor | None, Tensor]:
        """Text tokens (B, L, width) or None, and the vector (B, width) that modulates."""
        config = self.config
        c = self.t_embedder(config.time_scale * t)
        if cond is None and config.classes:
            cond = torch.full((len(t),), config.classes, device=t.device)
        elif cond is None and config.vocabulary:
            columns = config.text_length + bool(config.styles)
            cond = torch.zeros(len(t), columns, dtype=torch.long, device=t.device)
        made = cond if isinstance(cond, Embedded) else self.embed_condition(cond)
        return (made.text, c + made.vector) if isinstance(made, Embedded) else (None, c)

    def modulate(
        self, t: Tensor, cond: Tensor | Embedded | None, numbers: Tensor | None = None
    ) -> Modulated:
        """What modulates the layers at times (B,), and the text tokens."""
        text, c = self.embed(t, cond)
        if numbers is not None:
            for embedder, number in zip(self.number_embedders, numbers.unbind(1), strict=True):
                c = c + embedder(number)
        shared = self.adaLN_modulation(c) if self.config.modulation == "shared" else c
        blocks = tuple(block.modulate(shared) for block in self.blocks)  # type: ignore[operator]
        return Modulated(text, blocks, self.final_layer.adaLN_modulation(c))

    def unpatchify(self, h: Tensor) -> Tensor:
        """Patches (B, N, p*p*C) to images (B, C, H, W)."""
        p, n = self.config.patch, self.config.size // self.config.patch
        h = h.reshape(len(h), n, n, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(len(h), -1, n * p, n * p)

    def _initialise(self) -> None:
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)
            elif isinstance(m, nn.Embedding):
                nn.init.normal_(m.weight, std=0.02)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        for embedder in (m for m in self.modules() if isinstance(m, TimestepEmbedder)):
            for name in ("mlp.0.weight", "mlp.2.weight"):
                nn.init.normal_(embedder.get_parameter(name), std=0.02)
        shared = self.config.modulation == "shared"
        modulated: list[nn.Module] = [self if shared else b for b in self.blocks]
        zero = [m.get_submodule("adaLN_modulation.1") for m in [*modulated, self.final_layer]]
        zero.append(self.head if self.config.stem == "conv" else self.final_layer.linear)
        for layer in zero:
            for p in layer.parameters():
                nn.init.zeros_(p)
