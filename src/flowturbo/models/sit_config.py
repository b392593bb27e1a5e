"""The architecture of a SiT: the paper's sizes, and additional options."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

from flowturbo.types import JsonObject

__all__ = ["MOST", "SIZES", "SiTConfig"]

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
    """The architecture of a SiT.

    Attributes:
        size: height and width of the state, a multiple of ``patch``.
        channels: channels of the state.
        patch: side of a patch in pixels.
        width: channels of a token, a multiple of ``heads`` and of 4.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLPs over ``width``.
        classes: number of classes, 0 for none; one more embedding is the null class.
        vocabulary: number of text tokens, including the padding 0, or 0 for no text.
        text_length: tokens in a prompt, padded with 0.
        styles: number of styles of a text model, 0 for none; with styles, a condition is the style,
            from 1, or 0 for any, followed by the tokens.
        learn_sigma: the network outputs twice as many channels, and the second half is dropped
            (legacy of DiT, kept by the official checkpoints).
        stem: "patch", or "conv": 3x3 convolutions before the patches and after them.
        stem_width: channels between the convolutions and the patches.
        head_blocks: residual blocks of two 3x3 convolutions in the convolutional head, which mix
            neighbouring patches; 0 for none.
        modulation: "block", or "shared": one modulation layer for all blocks and a learned offset
            for each (Chen et al. 2023, arXiv 2310.00426, section 2.3).
        prediction: "velocity"; "data": the network predicts the clean image; "noise": its inputs
            are the states and times of a diffusion model, and it predicts the noise.
        time_scale: factor of the times before they are embedded; 1 in SiT, 1000 in DiT.
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
    def from_dict(cls, values: JsonObject) -> SiTConfig:
        """The configuration of ``asdict``; an unknown key raises and names the nearest known."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(str(key)[:60], known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                raise ValueError(f"unknown SiT option {_short(key)}{hint}")
        return cls(**values)

    to_dict = asdict


def _short(value: object) -> str:
    huge = isinstance(value, int) and abs(value) >= 10**30
    text = "a huge number" if huge else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
