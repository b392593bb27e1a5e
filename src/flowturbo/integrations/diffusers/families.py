"""How pipelines call their networks, by the class of the network.

A refiner's output takes the place of the network's, so the hook must know the form of the network's
input and output: the sign, how latents are packed to tokens, lists or batches. How the pipeline
scales time does not matter, since the scheduler knows the time of each row. Nor does guidance, in
one batch or in two calls: all branches get the same velocity ``v``, and ``v + w*(v - v) = v``.

Another family is one more entry, ``FAMILIES["MyTransformer2DModel"] = Family(name="Mine")``, or
``enable(..., family=Family(name="Mine"))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flowturbo.types import ReadOnlyJson

__all__ = ["FAMILIES", "Family", "pack", "unpack"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the networks of a family are called by their pipelines.

    Attributes:
        name: shown in summaries and messages.
        state: the name of the network's first argument, the state.
        negated: whether the pipeline negates the network's output.
        listed: whether input and output are lists of (C, 1, H, W).
        sides: if states are packed 2x2 to tokens (B, h*w, 4*C): a function that reads ``(h, w)``
            from the network's arguments by name and the number of tokens.
        conditional: where the conditional branch of guidance is: the "first" or "second" half of a
            batch, or the first of two "calls"; None if it is not known, and plans with conditional
            evaluations are refused.
        scale: from the pipeline's ``guidance_scale`` to the ``w`` of ``u + w*(c - u)``; None if the
            pipeline does not keep it.
        guided: the arguments of the pipeline's call for the scale ``w`` of ``u + w*(c - u)``, 1 for
            off; None if they are not known, and editing is refused.
        time: the name of the network's argument for its time.
        pooled: the name of its argument for a pooled vector of the prompt (B, P), if it has one:
            what a refiner can see of the condition.
        rescaled: whether the pipeline rescales guided velocities, which `as_field` does not.
        video: whether the autoencoder takes videos (B, 3, 1, H, W).
        blocks: classes of the repeated blocks, for ``compile_repeated_blocks`` where diffusers does
            not list them.
    """

    name: str
    state: str = "hidden_states"
    negated: bool = False
    listed: bool = False
    sides: Callable[[ReadOnlyJson, int], tuple[int, int]] | None = None
    conditional: Literal["first", "second", "calls"] | None = None
    scale: Callable[[float], float] | None = None
    guided: Callable[[float], ReadOnlyJson] | None = None
    time: str = "timestep"
    pooled: str | None = None
    rescaled: bool = False
    video: bool = False
    blocks: tuple[str, ...] = ()


def unpack(tokens: Tensor, sides: tuple[int, int]) -> Tensor:
    """States (B, C, 2*h, 2*w) from tokens (B, h*w, 4*C), as FLUX packs them."""
    h, w = sides
    x = tokens.reshape(len(tokens), h, w, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(tokens), -1, 2 * h, 2 * w)


def pack(x: Tensor) -> Tensor:
    """Tokens (B, h*w, 4*C) from states (B, C, 2*h, 2*w)."""
    b, c, height, width = x.shape
    tokens = x.reshape(b, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(b, -1, 4 * c)


def _flux(arguments: ReadOnlyJson, tokens: int) -> tuple[int, int]:
    ids = arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    last = ids[:tokens].amax(0).tolist()
    return int(last[1]) + 1, int(last[2]) + 1


def _qwen(arguments: ReadOnlyJson, tokens: int) -> tuple[int, int]:
    shape = arguments["img_shapes"]
    while isinstance(shape[0], (list, tuple)):
        shape = shape[0]
    return int(shape[-2]), int(shape[-1])


def _guidance_scale(scale: float) -> ReadOnlyJson:
    return {"guidance_scale": scale}


def _at_least_1(scale: float) -> float:
    return max(scale, 1.0)


FAMILIES = {
    "SD3Transformer2DModel": Family(
        name="SD3",
        conditional="second",
        scale=_at_least_1,
        guided=_guidance_scale,
        pooled="pooled_projections",
        blocks=("JointTransformerBlock",),
    ),
    "FluxTransformer2DModel": Family(
        name="FLUX.1",
        sides=_flux,
        conditional="calls",
        guided=_guidance_scale,
        pooled="pooled_projections",
    ),
    "Lumina2Transformer2DModel": Family(
        name="Lumina2",
        negated=True,
        conditional="calls",
        scale=_at_least_1,
        rescaled=True,
        blocks=("Lumina2TransformerBlock",),
    ),
    "SanaTransformer2DModel": Family(
        name="Sana",
        conditional="second",
        scale=_at_least_1,
        guided=_guidance_scale,
        blocks=("SanaTransformerBlock",),
    ),
    "QwenImageTransformer2DModel": Family(
        name="Qwen-Image",
        sides=_qwen,
        conditional="calls",
        guided=lambda w: {"true_cfg_scale": w},
        rescaled=True,
        video=True,
    ),
    "ZImageTransformer2DModel": Family(
        name="Z-Image",
        state="x",
        time="t",
        negated=True,
        listed=True,
        conditional="first",
        scale=lambda s: 1 + max(s, 0.0),
        guided=lambda w: {"guidance_scale": w - 1},
    ),
    "AuraFlowTransformer2DModel": Family(
        name="AuraFlow",
        conditional="second",
        scale=_at_least_1,
        blocks=("AuraFlowJointTransformerBlock", "AuraFlowSingleTransformerBlock"),
    ),
    "UNet2DConditionModel": Family(
        name="velocity U-Net", state="sample", conditional="second", scale=_at_least_1
    ),
}
