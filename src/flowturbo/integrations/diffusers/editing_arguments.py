"""The arguments of editing with pipelines: prompts, arguments of the calls, sizes of images."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from inspect import signature
from typing import Any, NamedTuple, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.images import crop_box
from flowturbo.integrations.diffusers.families import FAMILIES, Family
from flowturbo.integrations.diffusers.pipeline import components_of, network_of
from flowturbo.tasks.sources import Box, Prompts, texts_of
from flowturbo.types import JsonObject, Pipeline, ReadOnlyJson

__all__ = [
    "SET",
    "CallArguments",
    "PromptArguments",
    "both",
    "box_in",
    "call_arguments",
    "check_effect",
    "checked",
    "image_shape",
    "prompt_arguments",
    "rows",
    "spread",
    "without",
]

PromptArguments: TypeAlias = Prompts | ReadOnlyJson
"""Prompts, or arguments of a pipeline's call by name."""
SET = (  # of a pipeline's call, by ``edit`` and ``as_field``
    "generator",
    "latents",
    "num_images_per_prompt",
    "num_inference_steps",
    "output_type",
    "return_dict",
    "sigmas",
    "timesteps",
)
OWN = ("guidance", "height", "keep", "method", "plan", "seed", "size", "width")  # of ``edit``
SIDE = 128  # of latents, if a pipeline does not define it


class CallArguments(NamedTuple):
    """Arguments of a pipeline's calls other than the prompts.

    Attributes:
        forward: with the target prompt.
        backward: with the source prompt.
        negative: prompts that belong to the target.
    """

    forward: JsonObject
    backward: JsonObject
    negative: JsonObject


def checked(pipe: Pipeline) -> tuple[Family, frozenset[str]]:
    """The family of a text-to-image pipeline, and the names of its call's arguments.

    Raises:
        ValueError: if it is not such a pipeline, is of no family that supports editing, or lacks
            its autoencoder.
    """
    components_of(pipe)
    name, network = type(pipe).__name__, type(network_of(pipe)).__name__
    family = FAMILIES.get(network)
    if family is None or family.guided is None:
        known = ", ".join(entry.name for entry in FAMILIES.values() if entry.guided)
        raise ValueError(
            f"pipe={name} with a {network}: edit takes the text-to-image pipelines of {known}"
        )
    names = frozenset(signature(type(pipe).__call__).parameters) - {"self"}
    if "latents" not in names or names & {"image", "control_image"}:
        raise ValueError(
            f"pipe={name}: edit takes the text-to-image pipeline, "
            "diffusers.AutoPipelineForText2Image.from_pipe(pipe)"
        )
    if getattr(pipe, "vae", None) is None:
        raise ValueError(f"pipe={name}: has no autoencoder; load it with its vae")
    return family, names


def call_arguments(
    family: Family,
    names: Collection[str],
    method: str,
    guidance: float | None,
    given: ReadOnlyJson,
) -> CallArguments:
    """The arguments of both calls, from those of ``edit`` that are the pipeline's.

    Args:
        family: of the pipeline.
        names: of the arguments of its call.
        method: of editing.
        guidance: scale for the target; the pipeline's default if it is None.
        given: the arguments.

    Raises:
        ValueError: for one that the pipeline does not have or that ``edit`` sets itself, a scale
            below 1 or given twice, or if ``method`` is not possible.
    """
    assert family.guided is not None
    prompts = {n for n in names if "prompt" in n and not n.startswith("negative_")}
    checks.check_keywords("edit", given, {*names, *OWN} - {*SET} - prompts)
    scale = {} if guidance is None else family.guided(checks.number("guidance", guidance, 1))
    for name in scale:
        if name in given:
            raise ValueError(f"guidance={guidance}, {name}={given[name]}: are the same; give one")
    if method == "flowedit" and family.conditional is None:
        raise ValueError(
            f"method='flowedit': where {family.name} has the conditional branch of guidance is not "
            "known; set conditional=... of its Family, or take another method"
        )
    if method == "flowedit" and given.get("callback_on_step_end") is not None:
        raise ValueError(
            "callback_on_step_end with method='flowedit': its states are not those of the image; "
            "leave it out"
        )
    rest = without("negative_", given)
    return CallArguments(
        forward={**rest, **scale},
        backward={**without("callback", rest), **family.guided(1.0)},
        negative={name: v for name, v in given.items() if name not in rest},
    )


def check_effect(
    pipe: Pipeline, family: Family, guidance: float | None, prompts: ReadOnlyJson
) -> None:
    """Raise ``ValueError`` if ``guidance`` for ``prompts`` would change nothing.

    That is the case if the network takes no guidance (FLUX.1 schnell), or if guidance needs a
    negative prompt (Qwen-Image) and there is none.
    """
    if guidance in (None, 1) or family.conditional != "calls" or family.guided is None:
        return
    negative = [k for k, v in prompts.items() if k.startswith("negative_") and v is not None]
    if "true_cfg_scale" in family.guided(guidance):
        if not negative:
            raise ValueError(
                f"guidance={guidance}: {family.name} is guided away from a negative prompt; pass "
                "negative_prompt=' ', or leave guidance out"
            )
    elif network_of(pipe).config.get("guidance_embeds") is False:  # type: ignore[union-attr,operator]
        raise ValueError(
            f"guidance={guidance}: this {family.name} takes none; leave it out, or pass "
            "true_cfg_scale=... and negative_prompt=..."
        )


def prompt_arguments(name: str, value: object, names: Collection[str]) -> JsonObject:
    """The prompts ``value`` as arguments of a pipeline's call with these ``names``.

    Raises:
        ValueError: naming the argument ``name``, if they are neither prompts nor arguments.
    """
    if not isinstance(value, Mapping):
        return {"prompt": texts_of(name, value)}
    checks.check_keywords(name, value, {n for n in names if "prompt" in n} - {*SET})
    if not any(_length(name, k, v) for k, v in without("negative_", value).items()):
        raise ValueError(f"{name}={shown(value)}: must have a prompt or its embeddings")
    return dict(value)


def rows(name: str, prompts: ReadOnlyJson) -> int:
    """The number of prompts."""
    return max(_length(name, key, value) for key, value in prompts.items())


def spread(name: str, prompts: ReadOnlyJson, n: int) -> JsonObject:
    """``prompts`` for ``n`` images: each argument has ``n`` rows, or one that is repeated.

    Raises:
        ValueError: naming the argument ``name``, if one has another number, or is no prompt.
    """
    found = {}
    for key, value in prompts.items():
        count = _length(name, key, value)
        if value is not None and count not in (1, n):
            raise ValueError(f"{name}: {count} of {key} for {n} images; give one, or {n}")
        listed = [value] if isinstance(value, str) else value
        found[key] = None if listed is None else _joined([listed] * (n // count))
    return found


def both(target: ReadOnlyJson, source: ReadOnlyJson) -> JsonObject:
    """Prompts of twice as many images: of the target, then of the source.

    Negative ones belong to the target, and are repeated.
    """
    plain = without("negative_", target)
    if plain.keys() != without("negative_", source).keys():
        raise ValueError(
            f"prompt with {', '.join(plain)} and source_prompt with {', '.join(source)}: "
            "method='flowedit' needs the same arguments for both"
        )
    pairs = {key: (value, source[key] if key in plain else value) for key, value in target.items()}
    return {key: None if a is None else _joined([a, b]) for key, (a, b) in pairs.items()}


def without(prefix: str, arguments: ReadOnlyJson) -> JsonObject:
    """The arguments whose names do not start so."""
    return {name: v for name, v in arguments.items() if not name.startswith(prefix)}


def _length(name: str, key: str, value: object) -> int:
    """The rows of an argument; 0 for None."""
    if value is None or isinstance(value, str):
        return int(value is not None)
    if not (checks.is_list(value) or (isinstance(value, Tensor) and value.ndim)):
        raise ValueError(f"{name}: {key}={shown(value)}: must be texts or embeddings")
    return len(value)  # type: ignore[arg-type]


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return [row for part in parts for row in part]


def image_shape(
    pipe: Pipeline, height: int | None, width: int | None, image: Image.Image
) -> tuple[tuple[int, int], int]:
    """(H, W) of the images that a pipeline generates, and the number that both are multiples of.

    By default they have the area of the pipeline's own and the shape of ``image``.

    Raises:
        ValueError: if one of ``height`` and ``width`` is missing, or not such a multiple.
    """
    step = 2 * pipe.vae_scale_factor  # networks take 2 x 2 latents for a token
    if height is None and width is None:
        config: Any = getattr(network_of(pipe), "config", {})
        side = getattr(pipe, "default_sample_size", None) or config.get("sample_size") or SIDE
        scale = side * pipe.vae_scale_factor / math.sqrt(image.height * image.width)
        down, across = (max(1, round(scale * s / step)) * step for s in (image.height, image.width))
        return (down, across), step
    if height is None or width is None:
        raise ValueError(f"height={height}, width={width}: give both, or none")
    for name, value in (("height", height), ("width", width)):
        if checks.whole(name, value, 1) % step:
            raise ValueError(f"{name}={value}: must be a multiple of {step}")
    return (int(height), int(width)), step


def box_in(image: Image.Image, shape: tuple[int, int], step: int) -> Box:
    """The part of an image that is edited in the ``shape`` (H, W).

    It is all of it if the shapes differ by no more than rounding to multiples of ``step``.
    """
    height, width = shape
    off = abs(math.log(image.width * height / (image.height * width)))
    if off <= step / 2 * (1 / height + 1 / width):
        return 0, 0, image.width, image.height
    return crop_box(image, height, width)
