"""Layers of SiT: embeddings, attention blocks with adaptive layer norm, patches.

Names and shapes of parameters are those of the official checkpoints of SiT and DiT.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowturbo.models.sit_config import SiTConfig

__all__ = [
    "Attention",
    "Block",
    "ConvBlock",
    "FinalLayer",
    "LabelEmbedder",
    "Mlp",
    "PatchEmbed",
    "TextEmbedder",
    "TimestepEmbedder",
    "sincos_grid",
]


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
        """The vectors of times ``t``."""
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
        """The vectors of ``labels``."""
        return self.embedding_table(labels)


class TextEmbedder(nn.Module):
    """Token ids (B, L), 0 is padding, to token vectors (B, L, width) and one vector (B, width).

    Padding has its own vector in the sequence and does not count in the mean, so nothing is masked.
    """

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(1, length, width))
        self.mlp = _mlp(width, width, width, act=nn.SiLU())

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of token ``ids``, and their mean after an MLP."""
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
        """Attention over the tokens of each image."""
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
        """Each token by itself."""
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
        """Tokens to patches, modulated by ``m``."""
        shift, scale = m.chunk(2, dim=1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


class PatchEmbed(nn.Module):
    """Images (B, C, H, W) to tokens (B, N, width)."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens of patches, row by row."""
        # the convolution as a matrix product, whose backward pass is far faster on CPUs
        p = self.proj.stride[0]
        b, c, h, w = x.shape
        x = (
            x.reshape(b, c, h // p, p, w // p, p)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(b, -1, c * p * p)
        )
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class ConvBlock(nn.Module):
    """A residual block of two 3x3 convolutions on (B, C, H, W), initialised to the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``x`` plus the convolutions of it."""
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def sincos_grid(width: int, n: int) -> Tensor:
    """Fixed positions of an n x n grid, (n*n, width): columns in the first half, rows after."""
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(n, dtype=torch.float64)[:, None] * omega
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = one[None, :, :].expand(n, n, -1)
    rows = one[:, None, :].expand(n, n, -1)
    return torch.cat([columns, rows], dim=-1).reshape(n * n, width).float()
