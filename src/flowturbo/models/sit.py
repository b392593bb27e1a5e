r"""SiT: a transformer that predicts velocities (Ma et al. 2024, arXiv 2401.08740).

Parameter names, shapes and arithmetic are those of the official class-conditional SiT checkpoints
(S, B, L, XL), which load by name. Departures are options, off by default: text tokens instead of
classes, a convolutional stem and head, one modulation shared by all blocks, and predicting the
clean image, from which the velocity follows as ``(x1 - x) / (1 - t)``, or the noise, as diffusion
models do (see `flowturbo.models.diffusion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.models.diffusion import FIRST, from_linear, variance_preserving

__all__ = ["MOST", "SIZES", "Embedded", "Modulated", "SiT", "SiTConfig", "check_indices"]

SIZES = {  # width, depth, heads
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
MOST = {  # far beyond what anybody trains, and small enough that all sizes stay whole numbers
    "size": 2**14,
    "channels": 2**12,
    "patch": 2**14,
    "width": 2**16,
    "depth": 1000,
    "heads": 2**16,
    "text_length": 2**16,
    "stem_width": 2**16,
    "head_blocks": 1000,
    "classes": 2**24,
    "vocabulary": 2**24,
    "styles": 2**16,
}
_MOST_HIDDEN = 2**20  # channels of an MLP


@dataclass(frozen=True, kw_only=True)
class SiTConfig:
    """What a SiT is made of.

    Attributes:
        size: height and width of the state, a multiple of ``patch``.
        channels: channels of the state.
        patch: side of a patch in pixels.
        width: channels of a token, a multiple of ``heads`` and of 4.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs over ``width``.
        classes: number of classes, 0 for none; one more embedding is the null class.
        vocabulary: number of text tokens with the padding 0, or 0 for no text.
        text_length: tokens in a prompt, padded with 0.
        styles: number of styles of a text model, 0 for none; with styles, a condition is the style,
            from 1, or 0 for any, followed by the tokens.
        learn_sigma: the network puts out twice the channels and the second half is dropped
            (legacy of DiT, kept by the official checkpoints).
        stem: "patch", or "conv": 3x3 convolutions before the patches and after them.
        stem_width: channels between the convolutions and the patches.
        head_blocks: residual blocks of two 3x3 convolutions in the convolutional head, which let
            neighbouring patches meet; 0 for none.
        modulation: "block", or "shared": one modulation layer for all blocks and a learned offset
            for each (Chen et al. 2023, arXiv 2310.00426, section 2.3).
        prediction: "velocity"; "data": the network predicts the clean image; "noise": it is shown
            the states and times of a diffusion model, and predicts the noise.
        time_scale: what times are multiplied by before they are embedded; 1 in SiT, 1000 in DiT.
    """

    size: int = 32
    channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    mlp_ratio: float = 4.0
    classes: int = 0
    vocabulary: int = 0
    text_length: int = 16
    styles: int = 0
    learn_sigma: bool = False
    stem: Literal["patch", "conv"] = "patch"
    stem_width: int = 32
    head_blocks: int = 0
    modulation: Literal["block", "shared"] = "block"
    prediction: Literal["velocity", "data", "noise"] = "velocity"
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            least = 0 if name in ("classes", "vocabulary", "styles", "head_blocks") else 1
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(
                    f"{name}={_short(value)}: must be a whole number, {least} to {most}"
                )
        for name in ("mlp_ratio", "time_scale"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value <= 1e6:
                raise ValueError(f"{name}={_short(value)}: must be a number above 0, at most 1e6")
        hidden = int(self.width * self.mlp_ratio)
        if not 1 <= hidden <= _MOST_HIDDEN:
            raise ValueError(
                f"mlp_ratio={self.mlp_ratio}: makes {hidden} hidden channels; 1 to {_MOST_HIDDEN}"
            )
        if self.size % self.patch:
            raise ValueError(f"size={self.size}: must be a multiple of patch={self.patch}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width={self.width}: must be a multiple of 4 and heads={self.heads}")
        if self.classes and self.vocabulary:
            raise ValueError("classes and vocabulary exclude each other; set one of them to 0")
        if self.styles and not self.vocabulary:
            raise ValueError(f"styles={self.styles}: only text models have styles; set vocabulary")
        if self.head_blocks and self.stem != "conv":
            raise ValueError(
                f"head_blocks={self.head_blocks}: belong to a convolutional head; set stem='conv'"
            )
        for name, choices in (
            ("stem", ("patch", "conv")),
            ("modulation", ("block", "shared")),
            ("prediction", ("velocity", "data", "noise")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={_short(getattr(self, name))}: must be one of {choices}")

    @classmethod
    def named(cls, name: str, **changes: Any) -> SiTConfig:
        """The paper's class-conditional latent models, "S/2" to "XL/8" (ImageNet 256).

        Raises:
            ValueError: if the size or the patch is not one of the paper's.
        """
        size, _, patch = name.upper().removeprefix("SIT-").partition("/")
        if size not in SIZES or patch not in ("2", "4", "8"):
            raise ValueError(f"SiT {name!r}: must be S, B, L or XL, '/' and 2, 4 or 8 ('XL/2')")
        width, depth, heads = SIZES[size]
        made = dict(width=width, depth=depth, heads=heads, patch=int(patch))
        return cls(**{**made, "classes": 1000, "learn_sigma": True, **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SiTConfig:
        """The configuration of ``asdict``; an unknown key raises and names the nearest known."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(str(key)[:60], known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                raise ValueError(f"unknown SiT option {_short(key)}{hint}")
        return cls(**values)

    to_dict = asdict


def _short(value: Any) -> str:
    huge = isinstance(value, int) and abs(value) >= 10**30
    text = "a huge number" if huge else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _mlp(*widths: int, act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(widths[0], widths[1]), act, nn.Linear(widths[1], widths[2]))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class TimestepEmbedder(nn.Module):
    """Times in [0, 1] (B,) to vectors (B, width): 256 cosines and sines, then an MLP."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.mlp = _mlp(frequencies, width, width, act=nn.SiLU())
        self.frequencies = frequencies

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequencies // 2
        exponents = torch.arange(half, dtype=t.dtype, device=t.device) / half
        angles = t[:, None] * 10000.0**-exponents
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(waves.to(self.mlp.get_parameter("0.weight").dtype))


class LabelEmbedder(nn.Module):
    """Class indices (B,) to vectors (B, width); index ``classes`` is the null class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class TextEmbedder(nn.Module):
    """Token ids (B, L), 0 is padding, to token vectors (B, L, width) and one vector (B, width).

    Padding has a vector of its own in the sequence and no part in the mean, so nothing is masked.
    """

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(1, length, width))
        self.mlp = _mlp(width, width, width, act=nn.SiLU())

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.embedding_table(ids)
        real = (ids != 0).to(tokens.dtype)[..., None]
        mean = (tokens * real).sum(1) / real.sum(1).clamp(min=1)
        return tokens + self.position, self.mlp(mean)


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads).unbind(2)
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        # on CPUs the fused kernel is slow backward, and forward below float32
        if x.device.type == "cpu" and (torch.is_grad_enabled() or x.dtype.itemsize < 4):
            out = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, -1))


class Mlp(nn.Module):
    """The token-wise MLP of a block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """A transformer block with adaptive layer norm (adaLN-Zero, arXiv 2212.09748)."""

    def __init__(self, c: SiTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(c.width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(c.width, c.heads)
        self.norm2 = nn.LayerNorm(c.width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(c.width, int(c.width * c.mlp_ratio))
        if c.modulation == "block":
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.width, 6 * c.width))
        else:
            self.offset = nn.Parameter(torch.zeros(6 * c.width))

    def modulate(self, c: Tensor) -> Tensor:
        """(B, 6*width) from ``c``, (B, width), or (B, 6*width) where modulation is shared."""
        own = hasattr(self, "adaLN_modulation")
        return self.adaLN_modulation(c) if own else c + self.offset

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        """``x`` (B, N, width), modulated by ``m``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = m.chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(_modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(_modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens (B, N, width) to patches (B, N, patch*patch*channels)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        shift, scale = m.chunk(2, dim=1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


class PatchEmbed(nn.Module):
    """Images (B, C, H, W) to tokens (B, N, width)."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # the convolution as a product of matrices, whose backward is far faster on CPUs
        p = self.proj.stride[0]
        b, c, h, w = x.shape
        x = (
            x.reshape(b, c, h // p, p, w // p, p)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(b, -1, c * p * p)
        )
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class ConvBlock(nn.Module):
    """A residual block of two 3x3 convolutions on (B, C, H, W), the identity when it is new."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


@dataclass(frozen=True)
class Embedded:
    """A condition as a `SiT` embeds it: ``text`` (B, L, width) or None, ``vector`` (B, width)."""

    text: Tensor | None
    vector: Tensor


@dataclass(frozen=True)
class Modulated:
    """All a `SiT` derives from time, condition and numbers: that of one evaluation but its images.

    Attributes:
        text: (B, L, width) or None.
        blocks: (B, 6*width) of each block.
        final: (B, 2*width) of the last layer.
    """

    text: Tensor | None
    blocks: tuple[Tensor, ...]
    final: Tensor


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
    (B,), token ids (B, text_length), with the style before them if it has styles, any of them as
    ``embed_condition`` puts it, or None for the unconditional velocity; ``v`` is like ``x``. What
    ``modulate`` makes of a time, a condition and numbers may be passed in place of the condition;
    it has all of them.

    A refiner is shown more: ``images`` of ``channels`` each, concatenated in ``x`` with the state
    first, and further ``numbers`` (B, n), embedded like the time.
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
        grid = _sincos(c.width, c.size // c.patch)[None]
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

    def check_inputs(self, x: Any, cond: Any = None, negative: Any = None) -> None:
        """Refuse what the network cannot take, before it computes.

        Raises:
            ValueError: unless ``x`` is (B, *shape) on the device of the weights, ``cond`` the
                indices or ids of B rows, embedded, or None, and ``negative`` the same of B rows
                or one. The indices are looked at, on any device.
        """
        checks.tensor("x", x, ("B", *self.shape))
        home = self.pos_embed.device
        if x.device != home:
            raise ValueError(f"x={shown(x)}: is not on {home} as the weights are; pass x.to(...)")
        self._check_condition("cond", cond, (len(x),))
        self._check_condition("negative", negative, (1, len(x)))

    @property
    def largest_indices(self) -> list[int]:
        """The largest index in each column of a condition, whose smallest is 0."""
        c = self.config
        if c.classes:
            return [c.classes]
        words = [c.vocabulary - 1] * c.text_length if c.vocabulary else []
        return [c.styles, *words] if c.styles else words

    def _check_condition(self, name: str, cond: Any, rows: tuple[int, ...]) -> None:
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
        whole = isinstance(cond, Tensor) and cond.dtype in (torch.int32, torch.int64)
        if not whole or cond.shape not in shapes:
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
        t: float | Tensor,
        cond: Tensor | Embedded | Modulated | None = None,
        numbers: Tensor | None = None,
    ) -> Tensor:
        """The velocity at ``x``, ``t`` under ``cond``."""
        config = self.config
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        t = t if isinstance(t, Tensor) else x.new_full((), t, dtype=precise)  # without a copy
        t = t.to(x.device, precise).expand(len(x))
        shown, told = x, t
        if config.prediction == "noise":
            level = t.clamp(min=FIRST)[:, None, None, None]
            shown, told = variance_preserving(x, level).to(x.dtype), from_linear(t)
        m = cond if isinstance(cond, Modulated) else self.modulate(told, cond, numbers)
        h = F.silu(self.stem(shown)) if config.stem == "conv" else shown
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

    def embed_condition(self, cond: Tensor | None) -> Any:
        """What does not depend on the time, to pass in place of ``cond``: once a sample will do."""
        if cond is None or not (self.config.classes or self.config.vocabulary):
            return cond
        if self.config.classes:
            return Embedded(None, self.y_embedder(cond))
        if self.config.styles:
            text, vector = self.text_embedder(cond[:, 1:])
            return Embedded(text, vector + self.style_embedder(cond[:, 0]))
        return Embedded(*self.text_embedder(cond))

    def embed(self, t: Tensor, cond: Any) -> tuple[Tensor | None, Tensor]:
        """Text tokens (B, L, width) or None, and the vector (B, width) that modulates."""
        config = self.config
        c = self.t_embedder(config.time_scale * t)
        if cond is None and config.classes:
            cond = torch.full((len(t),), config.classes, device=t.device)
        elif cond is None and config.vocabulary:
            columns = config.text_length + bool(config.styles)
            cond = torch.zeros(len(t), columns, dtype=torch.long, device=t.device)
        shown = cond if isinstance(cond, Embedded) else self.embed_condition(cond)
        return (shown.text, c + shown.vector) if isinstance(shown, Embedded) else (None, c)

    def modulate(self, t: Tensor, cond: Any, numbers: Tensor | None = None) -> Modulated:
        """What the layers are told at times (B,), but for the images."""
        text, c = self.embed(t, cond)
        if numbers is not None:
            for embedder, number in zip(self.number_embedders, numbers.unbind(1), strict=True):
                c = c + embedder(number)
        shared = self.adaLN_modulation(c) if self.config.modulation == "shared" else c
        each: Any = self.blocks
        blocks = tuple(block.modulate(shared) for block in each)
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
        zero: list[Any] = [
            b.get_submodule("adaLN_modulation.1")
            for b in self.blocks
            if self.config.modulation == "block"
        ]
        zero += [self.final_layer.adaLN_modulation[1]]
        if self.config.modulation == "shared":
            zero.append(self.adaLN_modulation[1])
        zero.append(self.head if self.config.stem == "conv" else self.final_layer.linear)
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def _sincos(width: int, n: int) -> Tensor:
    """Fixed positions of an n x n grid, (n*n, width): columns in the first half, rows after."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(n, dtype=torch.float64)[:, None] * omega
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = one[None, :, :].expand(n, n, -1)
    rows = one[:, None, :].expand(n, n, -1)
    return torch.cat([columns, rows], dim=-1).reshape(n * n, width).float()
