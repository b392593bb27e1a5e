"""How pipelines call their networks, by the class of the network or of the pipeline.

A refiner's output replaces the network's, so the hook must know the form of the network's input and
output: the sign, how latents are packed into tokens, lists or batches. How the pipeline scales time
does not matter, since the scheduler knows the time of each row. Nor does guidance, in one batch or
in two calls: all branches get the same velocity, and so does the scheduler.

To add a family, add an entry, ``FAMILIES["MyTransformer2DModel"] = Family(name="Mine")``, or pass
``enable(..., family=Family(name="Mine"))``. A pipeline that calls its network differently from
other pipelines of that network has an entry under its own name, which takes precedence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from flowturbo.types import Pipeline, ReadOnlyJson

__all__ = ["FAMILIES", "Family", "Kind", "family_of", "pack", "unpack"]

Kind = Literal["refiner", "conditional", "end"]  # the last: an evaluation at t = 1


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the networks of a family are called by their pipelines.

    Attributes:
        name: shown in summaries and messages.
        state: the name of the network's first argument, the state.
        negated: whether the pipeline negates the network's output.
        listed: whether input and output are lists of (C, 1, H, W).
        sides: if states are packed into tokens: a function that reads the sides from the network's
            arguments by name and the number of tokens: ``(h, w)`` of an image packed 2x2 to (B,
            h*w, 4*C), or ``(f, h, w)`` of a video (B, f*h*w, C).
        channels_last: whether the axis of the channels is the last.
        conditional: where the conditional branch of guidance is: the "first" or "second" half of a
            batch, or the first of two "calls"; None if it is not known, and plans with conditional
            evaluations are refused.
        axes: the axis of the batch, by the name of the network's argument, if it is not the first.
        refused: evaluations that are refused, "refiner", "conditional", or "end", at t = 1, and the
            reason, a clause.
        scale: from the pipeline's ``guidance_scale`` to the ``w`` of ``u + w*(c - u)``; None if the
            pipeline does not keep it.
        guided: the arguments of the pipeline's call for the scale ``w`` of ``u + w*(c - u)``, 1 for
            off; None if they are not known, and editing is refused.
        time: the name of the network's argument for its time.
        pooled: the name of its argument for a pooled vector of the prompt (B, P), if it has one,
            which is the part of the condition that a refiner can use.
        rescaled: whether the pipeline rescales guided velocities, which `as_field` does not.
        video: whether the autoencoder takes videos (B, 3, 1, H, W).
        blocks: classes of the repeated blocks, for ``compile_repeated_blocks`` where diffusers does
            not list them.
    """

    name: str
    state: str = "hidden_states"
    negated: bool = False
    listed: bool = False
    sides: Callable[[ReadOnlyJson, int], tuple[int, ...]] | None = None
    channels_last: bool = False
    conditional: Literal["first", "second", "calls"] | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[Kind, str] = field(default_factory=dict)
    scale: Callable[[float], float] | None = None
    guided: Callable[[float], ReadOnlyJson] | None = None
    time: str = "timestep"
    pooled: str | None = None
    rescaled: bool = False
    video: bool = False
    blocks: tuple[str, ...] = ()


def unpack(tokens: Tensor, sides: tuple[int, ...]) -> Tensor:
    """States (B, C, 2*h, 2*w) from tokens (B, h*w, 4*C), as FLUX packs them.

    With sides (f, h, w), states (B, C, f, h, w) from tokens (B, f*h*w, C), as LTX-Video does.
    """
    if len(sides) == 3:
        return tokens.transpose(1, 2).unflatten(2, sides)
    h, w = sides
    x = tokens.reshape(len(tokens), h, w, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(tokens), -1, 2 * h, 2 * w)


def pack(x: Tensor) -> Tensor:
    """The tokens of states (B, C, 2*h, 2*w) or (B, C, f, h, w), see ``unpack``."""
    if x.ndim == 5:
        return x.flatten(2).transpose(1, 2)
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


def _ltx(arguments: ReadOnlyJson, tokens: int) -> tuple[int, int, int]:
    return arguments["num_frames"], arguments["height"], arguments["width"]


def _guidance_scale(scale: float) -> ReadOnlyJson:
    return {"guidance_scale": scale}


def _at_least_1(scale: float) -> float:
    return max(scale, 1.0)


def _plans_alone(why: str) -> dict[Kind, str]:
    """What is refused where plans run, but no evaluations that need a hook."""
    return {"refiner": why, "conditional": why}


EMBEDDED: Mapping[Kind, str] = {
    "conditional": "guidance is an input of its network, which has only one branch"
}
LATER = "its first frame is a given image, and only the others are stepped"
SOUND = "its network predicts a video and its sound, each with a scheduler of its own"

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
    "WanTransformer3DModel": Family(name="Wan", conditional="calls", scale=_at_least_1),
    "Flux2Transformer2DModel": Family(
        name="FLUX.2 Klein", sides=_flux, conditional="calls", scale=_at_least_1
    ),
    "LTXVideoTransformer3DModel": Family(
        name="LTX-Video", sides=_ltx, conditional="second", scale=_at_least_1
    ),
    "HunyuanVideoTransformer3DModel": Family(name="HunyuanVideo", conditional="calls"),
    "ChromaTransformer2DModel": Family(
        name="Chroma", sides=_flux, conditional="calls", scale=_at_least_1
    ),
    "CogView4Transformer2DModel": Family(name="CogView4", conditional="calls", scale=_at_least_1),
    "HunyuanImageTransformer2DModel": Family(name="HunyuanImage", conditional="calls"),
    "HiDreamImageTransformer2DModel": Family(
        name="HiDream",
        negated=True,
        conditional="second",
        axes={"encoder_hidden_states_llama3": 1},
        scale=_at_least_1,
    ),
    "Kandinsky5Transformer3DModel": Family(
        name="Kandinsky 5", channels_last=True, conditional="calls", scale=_at_least_1
    ),
    "MochiTransformer3DModel": Family(name="Mochi", conditional="second", scale=_at_least_1),
    "AceStepTransformer1DModel": Family(name="ACE-Step", channels_last=True, conditional="first"),
    "LTX2VideoTransformer3DModel": Family(
        name="LTX-2",
        refused={**_plans_alone(SOUND), "end": "it divides by the noise level"},
    ),
}
FAMILIES |= {  # networks of the above, of which not all that they answer is stepped
    pipeline: Family(name=f"{name} image to video", refused=_plans_alone(LATER))
    for pipeline, name in (
        ("LTXImageToVideoPipeline", "LTX-Video"),
        ("HunyuanVideoImageToVideoPipeline", "HunyuanVideo"),
        ("Kandinsky5I2VPipeline", "Kandinsky 5"),
    )
}
FAMILIES |= {  # and without a branch to leave out
    pipeline: replace(FAMILIES[network], name=name, conditional=None, guided=None, refused=EMBEDDED)
    for pipeline, network, name in (
        ("FluxFillPipeline", "FluxTransformer2DModel", "FLUX.1 Fill"),
        ("Flux2Pipeline", "Flux2Transformer2DModel", "FLUX.2"),
        ("Flux2KleinKVPipeline", "Flux2Transformer2DModel", "FLUX.2 Klein KV"),
    )
}


def family_of(pipe: Pipeline, network: object) -> Family | None:
    """The entry of the class of ``pipe``, or else of that of its ``network``, if there is one."""
    return FAMILIES.get(type(pipe).__name__, FAMILIES.get(type(network).__name__))
