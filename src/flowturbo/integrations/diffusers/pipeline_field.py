"""The network of a pipeline as a velocity field; `flowturbo.integrations.diffusers.field` makes it.

It calls the network with arguments recorded from the pipeline's own call, at other states and
times. States are unpacked latents (B, C, H, W), of videos (B, C, F, H, W); a condition contains the
numbers by which the field finds the arguments of its prompts, so that these are kept once however
many trajectories use them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.digests import content
from flowturbo.integrations.diffusers.families import Family, pack, unpack
from flowturbo.integrations.diffusers.fit import weights_of
from flowturbo.integrations.diffusers.hook import tensor_of
from flowturbo.integrations.diffusers.network_calls import NetworkCall, form_of, joined, plain
from flowturbo.integrations.diffusers.pipeline import called_network, network_of
from flowturbo.integrations.diffusers.run import cropped
from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler
from flowturbo.tree import map_condition
from flowturbo.types import Condition, GuidanceRange, JsonObject, Pipeline, ReadOnlyJson, Time

__all__ = ["PipelineField"]

NUMBERS = 2**20  # in the states of a call of the network, by default


class PipelineField:
    """``(x, t, cond) -> v`` of the network of a pipeline; `as_field` makes it.

    Attributes:
        shape: (C, H, W) of a state.
        conditions: of the prompts in their order, a dict of "prompt" (N,), the numbers that the
            field finds their arguments by, and "pooled" (N, P) where the family has such a vector.
        defaults: "guidance", the scale that `flowturbo.tune` guides with, 1 where it is an input of
            the network or off.
        guidance: the same as a scale or range.
        plan_info: what plans tuned to the field record about the pipeline.
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
        """Fingerprint of the network's weights; None if they cannot be read."""
        return weights_of(network_of(self._pipe))

    @torch.no_grad()
    def _called(self, x: Tensor, t: Tensor, given: Sequence[JsonObject]) -> Tensor:
        """The velocities of rows that fit into one call of the network."""
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
        """States (B, C, H, W) in the network's form."""
        x = state if isinstance(state, Tensor) else torch.stack(list(state)).squeeze(2)
        if self._family.channels_last:
            return x.movedim(-1, 1)
        return x if self._sides is None else unpack(x, self._sides)

    def _packed(self, x: Tensor) -> Tensor:
        """The inverse of `_unpacked`, except for lists."""
        if self._family.channels_last:
            return x.movedim(1, -1)
        return x if self._sides is None else pack(x)

    def _condition(self, prompts: Sequence[JsonObject]) -> JsonObject:
        """The content of conditions for some prompts, whose arguments are kept."""
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


def _sign(pipe: Pipeline, family: Family) -> int:
    """The factor that turns the network's output into dx/dt."""
    sign: int = FlowTurboScheduler.from_config(pipe.scheduler, plan="E1").sign
    return -sign if family.negated else sign


def _name(pipe: Pipeline) -> str:
    """The repository of a pipeline, the name of the folder it is from, or else its class."""
    source = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
    return source if source.count("/") == 1 and source[0] not in "./~" else source.split("/")[-1]
