"""The network of a pipeline as a field `(x, t, cond) -> v`, on conditions made of prompts.

The pipeline's own call runs once for each prompt, until it calls its network, and what it calls it
with is kept: so text encoders, templates, masks and position ids are the pipeline's, whatever the
family. The field calls the network with these arguments at other states and times. States are
unpacked latents (B, C, H, W), of videos (B, C, F, H, W); a condition holds the numbers by which the
field finds the arguments of its prompts, so that each is kept once however many trajectories it
has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.digests import content
from flowturbo.integrations.diffusers.editing_arguments import (
    SET,
    PromptArguments,
    check_effect,
    prompt_arguments,
    rows,
    spread,
)
from flowturbo.integrations.diffusers.families import FAMILIES, Family, family_of, pack, unpack
from flowturbo.integrations.diffusers.fit import weights_of
from flowturbo.integrations.diffusers.hook import tensor_of
from flowturbo.integrations.diffusers.network_calls import (
    NetworkCall,
    Recorder,
    form_of,
    joined,
    plain,
)
from flowturbo.integrations.diffusers.pipeline import (
    called_network,
    components_of,
    network_of,
    networks_of,
)
from flowturbo.integrations.diffusers.run import cropped
from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler
from flowturbo.tasks.sources import texts_of
from flowturbo.tree import map_condition
from flowturbo.types import Condition, GuidanceRange, JsonObject, Pipeline, ReadOnlyJson, Time

__all__ = ["PipelineField", "as_field", "sides_of"]

NUMBERS = 2**20  # in the states of a call of the network, by default


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
        pipe: the pipeline, which takes prompts alone, of a family in ``families.FAMILIES``; it is
            left as it is. Its dtype, device and offloading hold.
        prompts: texts, or arguments of the pipeline's call by name, such as
            ``{"prompt_embeds": ..., "pooled_prompt_embeds": ...}``; each is encoded once.
        negative: one text to guide away from, or arguments that begin with "negative_"; by default
            what the pipeline takes.
        guidance: scale ``w`` of ``u + w*(c - u)``, or (lowest, highest) of a range; of FLUX.1 the
            scale that its network takes. By default the pipeline's.
        height: of the images, in pixels; by default the pipeline's.
        width: likewise; give both, or none.
        batch: rows of a call of the network, where the branches of guidance are rows of their own;
            by default 4 of SD3 or FLUX at 1024 pixels, and more of smaller latents.
        family: of the network, if it has no entry.
        **arguments: of the pipeline's call, such as ``max_sequence_length``.

    Raises:
        ValueError: if there are no prompts or one is empty, the family is unknown, the pipeline
            does not draw images from prompts alone, or an argument is not as described.
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
    if apart and "true_cfg_scale" in arguments:  # beside what the network takes
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
    """ "height" and "width" of images of a ``size``, 1024 or "1344x768", width first; none of None.

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


class PipelineField:
    """``(x, t, cond) -> v`` of the network of a pipeline; `as_field` makes it.

    Attributes:
        shape: (C, H, W) of a state.
        conditions: of the prompts in their order, a dict of "prompt" (N,), the numbers that the
            field finds their arguments by, and "pooled" (N, P) where the family has such a vector.
        defaults: "guidance", the scale that `flowturbo.tune` guides with, 1 where it is an input of
            the network or off.
        guidance: the same as a scale or range.
        plan_info: what plans tuned to the field keep about the pipeline.
        device: where the network runs.
    """

    def __init__(
        self,
        pipe: Pipeline,
        family: Family,
        prompts: Sequence[JsonObject],
        first: NetworkCall,
        scale: GuidanceRange,
        call: ReadOnlyJson,
        batch: int | None,
    ) -> None:
        self._pipe, self._family = pipe, family
        self._sign = _sign(pipe, family)
        self._time = first.times
        self._dtype = first.state[0].dtype
        self._known: dict[int, JsonObject] = {}
        self.device = torch.device(pipe._execution_device)
        self._sides = family.sides and family.sides(first.one, first.state.shape[1])
        self.shape = tuple(self._unpacked(first.state).shape[1:])
        usual = max(1, NUMBERS // prod(self.shape))
        self._batch = usual if batch is None else batch
        self.conditions = self._condition(prompts)
        self._null = None if first.null is None else self._condition([first.null])
        self.guidance: GuidanceRange = scale if first.null is not None else 1.0
        lowest = self.guidance[0] if isinstance(self.guidance, tuple) else self.guidance
        self.defaults = {"guidance": lowest}
        self.name = _name(pipe)
        scales = ("vae_scale_factor_spatial", "vae_scale_factor")  # the first of videos
        factor = next((int(getattr(pipe, n)) for n in scales if getattr(pipe, n, None)), 1)
        about = {
            "class": type(pipe).__name__,
            "network": type(network_of(pipe)).__name__,
            "family": family.name,
            "base_model": self.name,
            "dtype": str(self._dtype).removeprefix("torch."),
            "size": [n * factor for n in self.shape[-2:]],
            "state": list(self.shape),
            "prompts": len(prompts),
            "branches": 1 if first.null is None else 2,
            "call": {key: v for key, v in call.items() if isinstance(v, int | float | str)},
        }
        ends = list(scale) if isinstance(scale, tuple) else [scale, scale]
        self.plan_info: JsonObject = {"pipeline": about, "guidance": ends}

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """The velocity (B, C, H, W), in the dtype of ``x``.

        Raises:
            ValueError: if ``cond`` is not of `conditions` and `null_condition`.
        """
        found = [self._arguments(key) for key in self._keys(cond, len(x))]
        times = torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))
        v = torch.empty_like(x)
        alike: dict[str, list[int]] = {}
        for i, arguments in enumerate(found):
            alike.setdefault(form_of(arguments), []).append(i)
        for members in alike.values():  # prompts of other lengths are other calls
            for i in range(0, len(members), self._batch):
                part = members[i : i + self._batch]
                v[part] = self._called(x[part], times[part], [found[j] for j in part]).to(v)
        return v

    def random_condition(self, n: int, generator: torch.Generator) -> Condition:
        """The conditions of ``n`` trajectories: all prompts in random order, as often as needed."""
        count = len(self.conditions["prompt"])
        order = [torch.randperm(count, generator=generator) for _ in range(-(-n // count))]
        chosen = torch.cat(order)[:n].to(self.device)
        return map_condition(lambda c: c[chosen], self.conditions)

    def null_condition(self, cond: Condition) -> Condition:
        """The condition of the branch that guidance leads away from, one row.

        Raises:
            ValueError: if the field was made at guidance 1, or its network takes the scale.
        """
        if self._null is None:
            raise ValueError(
                f"{self.name} has no other branch of guidance: its scale is off, or an input of "
                "the network; pass guidance=1, or as_field(..., guidance=...)"
            )
        return self._null

    @cached_property
    def fingerprint(self) -> str | None:
        """Of the network's weights; None where they cannot be read."""
        return weights_of(network_of(self._pipe))

    @torch.no_grad()
    def _called(self, x: Tensor, t: Tensor, given: Sequence[JsonObject]) -> Tensor:
        """The velocities of rows that one call of the network can hold."""
        family = self._family
        arguments = {key: joined([g[key] for g in given]) for key in given[0]}
        x = x.to(self.device, self._dtype)
        packed = self._packed(x)
        state = list(packed.unsqueeze(2).unbind(0)) if family.listed else packed
        start, middle = (float(time.double()) for time in self._time)
        times = (start + 2 * (middle - start) * t).to(self.device, self._time[0].dtype)
        out = called_network(self._pipe)(
            **{**arguments, family.state: state, family.time: times, "return_dict": False}
        )
        return self._sign * self._unpacked(cropped(tensor_of(out), packed))

    def _unpacked(self, state: Any) -> Tensor:
        """States (B, C, H, W) in the form that the network has them."""
        x = state if isinstance(state, Tensor) else torch.stack(list(state)).squeeze(2)
        if self._family.channels_last:
            return x.movedim(-1, 1)
        return x if self._sides is None else unpack(x, self._sides)

    def _packed(self, x: Tensor) -> Tensor:
        """The opposite of `_unpacked`, but for lists."""
        if self._family.channels_last:
            return x.movedim(1, -1)
        return x if self._sides is None else pack(x)

    def _condition(self, prompts: Sequence[JsonObject]) -> JsonObject:
        """What conditions hold of some prompts, whose arguments are kept."""
        keys = [int(content(plain(arguments)), 16) >> 1 for arguments in prompts]
        self._known.update(zip(keys, prompts, strict=True))
        made: JsonObject = {"prompt": torch.tensor(keys, device=self.device)}
        if (name := self._family.pooled) is not None:
            pooled = torch.cat([arguments[name] for arguments in prompts])
            made["pooled"] = pooled.to(self.device, torch.float32)
        return made

    def _keys(self, cond: Condition, n: int) -> list[int]:
        keys = cond.get("prompt") if isinstance(cond, Mapping) else None
        if not isinstance(keys, Tensor) or keys.shape != (n,):
            raise ValueError(
                f"cond={checks.shown(cond)}: must be conditions of this field, {n} rows of "
                "field.conditions"
            )
        return [int(key) for key in keys.tolist()]

    def _arguments(self, key: int) -> JsonObject:
        if key not in self._known:
            raise ValueError(
                "cond: holds a prompt that this field was not made with; pass rows of its own "
                "field.conditions"
            )
        return self._known[key]


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
    """(lowest, highest) scale, by default what the call of the pipeline has."""
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


def _sign(pipe: Pipeline, family: Family) -> int:
    """What the network's output is times, to be dx/dt."""
    sign: int = FlowTurboScheduler.from_config(pipe.scheduler, plan="E1").sign
    return -sign if family.negated else sign


def _name(pipe: Pipeline) -> str:
    """The repository of a pipeline; of one from a folder, the folder's name; else its class."""
    source = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
    return source if source.count("/") == 1 and source[0] not in "./~" else source.split("/")[-1]
