"""Fields `(x, t, cond) -> v` of pipelines, with conditions made from prompts.

The pipeline's own call runs once for each prompt, until it calls its network, and the arguments of
that call are kept. Text encoders, templates, masks and position ids are thus the pipeline's, for
any family. The field calls the network with these arguments at other states and times.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from flowturbo import checks
from flowturbo.integrations.diffusers.editing_arguments import (
    SET,
    PromptArguments,
    check_effect,
    prompt_arguments,
    rows,
    spread,
)
from flowturbo.integrations.diffusers.families import FAMILIES, Family, family_of
from flowturbo.integrations.diffusers.network_calls import Recorder
from flowturbo.integrations.diffusers.pipeline import components_of, network_of, networks_of
from flowturbo.integrations.diffusers.pipeline_field import PipelineField
from flowturbo.tasks.sources import texts_of
from flowturbo.types import GuidanceRange, JsonObject, Pipeline, ReadOnlyJson

__all__ = ["PipelineField", "as_field", "sides_of"]


def as_field(
    pipe: Pipeline,
    prompts: PromptArguments,
    *,
    negative: PromptArguments | None = None,
    guidance: GuidanceRange | None = None,
    height: int | None = None,
    width: int | None = None,
    batch: int | None = None,
    family: Family | None = None,
    **arguments: Any,
) -> PipelineField:
    """The network of a pipeline as a field, for `flowturbo.tune` and others.

    Args:
        pipe: the pipeline, which generates from prompts only, of a family in ``families.FAMILIES``;
            it is not changed. Its dtype, device and offloading apply.
        prompts: texts, or arguments of the pipeline's call by name, such as
            ``{"prompt_embeds": ..., "pooled_prompt_embeds": ...}``; each is encoded once.
        negative: one text to guide away from, or arguments that begin with "negative_"; by default
            the pipeline's.
        guidance: scale ``w`` of ``u + w*(c - u)``, or (lowest, highest) of a range; for FLUX.1 the
            scale that its network takes as input. By default the pipeline's.
        height: of the images, in pixels; by default the pipeline's.
        width: likewise; give both, or none.
        batch: rows of a call of the network, where each branch of guidance is a row; by default 4
            for SD3 or FLUX at 1024 pixels, and more for smaller latents.
        family: of the network, if it has no entry.
        **arguments: of the pipeline's call, such as ``max_sequence_length``.

    Raises:
        ValueError: if there are no prompts or one is empty, the family is unknown, the pipeline
            does not generate images from prompts only, or an argument is not as described.
    """
    components_of(pipe)
    name, network = type(pipe).__name__, network_of(pipe)
    family = family_of(pipe, network) if family is None else family
    if family is None or network is None:
        known = ", ".join(entry.name for entry in FAMILIES.values())
        raise ValueError(
            f"pipe={name} with a {type(network).__name__}: how its pipeline calls it is not known; "
            f"known are {known}, or pass family=Family(...)"
        )
    if len(networks_of(pipe)) > 1 or family.axes:
        why = "two networks take turns" if not family.axes else "its arguments have no common batch"
        raise ValueError(f"pipe={name}: cannot be made a field, since {why}")
    parameters = signature(type(pipe).__call__).parameters
    if {"image", "control_image", "prompt"} & {*parameters} != {"prompt"}:
        raise ValueError(
            f"pipe={name}: must draw images from prompts alone; pass the text-to-image pipeline, "
            "diffusers.AutoPipelineForText2Image.from_pipe(pipe)"
        )
    checks.check_keywords("as_field", arguments, {*parameters} - {*SET, "self", "prompt"})
    if (height is None) != (width is None):
        raise ValueError(f"height={height}, width={width}: give both, or none")
    sizes = {"height": height, "width": width} if height is not None else {}
    for key, size in sizes.items():
        checks.whole(key, size, 1)
    if batch is not None:
        checks.whole("batch", batch, 1)
    given = _prompts(prompts, negative, {*parameters})
    low, high = _scales(family, guidance, parameters)
    if guidance is not None:
        check_effect(pipe, family, high, given)
    call = {**_guided(family, high, parameters), **sizes, **arguments}
    # the conditional branch is apart from the other at a scale that is on
    seen = Recorder(pipe, family, call)
    first = seen(_row(given, 0))
    others = [seen(_row(given, i), first) for i in range(1, rows("prompts", given))]
    apart = first.null is not None
    if not apart and low != high:
        raise ValueError(
            f"guidance={(low, high)}: the network of {name} takes a scale itself, or none; pass one"
        )
    if not apart and guidance is not None and high != 1 and first.one.get("guidance") is None:
        raise ValueError(
            f"guidance={high:g}: {name} does not guide at this scale; leave guidance out"
        )
    scale: GuidanceRange = low if low == high else (low, high)
    if apart and "true_cfg_scale" in arguments:  # in addition to the network's own guidance
        scale = checks.number("true_cfg_scale", arguments["true_cfg_scale"])
    elif not apart and first.one.get("guidance") is None:
        scale = 1.0
    if apart and family.rescaled and scale != 1.0:
        checks.warn(
            f"{name} rescales guided velocities, and a field does not: plans are tuned without "
            "that, and their error in the pipeline is another"
        )
    return PipelineField(
        pipe, family, [first.one, *(each.one for each in others)], first, scale, call, batch
    )


def sides_of(size: int | str | None) -> dict[str, int]:
    """ "height" and "width" for a ``size``, 1024 or "1344x768", width first; nothing for None.

    Raises:
        ValueError: if it is neither.
    """
    if size is None:
        return {}
    width, cross, height = str(size).lower().partition("x")
    sides = {"height": height if cross else width, "width": width}
    if not all(side.isdecimal() and int(side) for side in sides.values()):
        raise ValueError(f"size={size!r}: must be a number of pixels (1024), or 'WIDTHxHEIGHT'")
    return {name: int(side) for name, side in sides.items()}


def _prompts(
    prompts: PromptArguments, negative: PromptArguments | None, names: set[str]
) -> JsonObject:
    """Arguments of the pipeline's call with a row for each prompt."""
    if checks.is_list(prompts) and not len(prompts):
        raise ValueError("prompts=[]: must hold at least one prompt")
    given = prompt_arguments("prompts", prompts, names)
    for i, text in enumerate(given.get("prompt") or ()):
        if isinstance(text, str) and not text.strip():
            raise ValueError(f"prompts[{i}]={text!r}: is empty; leave it out")
    if negative is not None:
        if isinstance(negative, Mapping):
            away = dict(negative)
            checks.check_keywords("negative", away, {n for n in names if n[:9] == "negative_"})
        else:
            away = {"negative_prompt": texts_of("negative", negative)}
        if rows("negative", away) != 1:
            raise ValueError(f"negative={checks.shown(negative)}: must be one prompt")
        given |= away
    return spread("prompts", given, rows("prompts", given))


def _row(prompts: ReadOnlyJson, i: int) -> JsonObject:
    return {key: None if value is None else value[i : i + 1] for key, value in prompts.items()}


def _guided(family: Family, w: float, parameters: Mapping[str, Any]) -> ReadOnlyJson:
    """The arguments of the pipeline's call for the scale ``w``."""
    if family.guided is not None:
        return family.guided(w)
    return {"guidance_scale": w} if "guidance_scale" in parameters else {}


def _scales(
    family: Family, guidance: GuidanceRange | None, parameters: Mapping[str, Any]
) -> tuple[float, float]:
    """(lowest, highest) scale, by default that of the pipeline's call."""
    if guidance is None:
        name = next(iter(_guided(family, 1.0, parameters)), "")
        usual = parameters[name].default if name else None
        if not isinstance(usual, int | float):
            return 1.0, 1.0
        scale = family.scale(usual) if family.scale and name == "guidance_scale" else float(usual)
        return scale, scale
    ends = guidance if isinstance(guidance, tuple | list) else (guidance, guidance)
    scales = [checks.number("guidance", end, 1) for end in ends]
    if len(scales) != 2 or scales != sorted(scales):
        raise ValueError(
            f"guidance={checks.shown(guidance)}: must be a scale, or (lowest, highest)"
        )
    return scales[0], scales[1]
