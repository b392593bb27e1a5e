"""The arguments that a pipeline calls its network with: recorded for each prompt, and joined."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowturbo.integrations.diffusers.families import Family
from flowturbo.integrations.diffusers.pipeline import called_network, network_of
from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler
from flowturbo.types import JsonObject, Pipeline, ReadOnlyJson

__all__ = ["NetworkCall", "Recorder", "form_of", "joined", "plain"]


class NetworkCall(NamedTuple):
    """The arguments that a pipeline calls its network with, except the state, for one row.

    Attributes:
        one: the arguments of the conditional branch, by name.
        null: those of the other branch, if there is one.
        state: as the network takes it, of one row.
        calls: of the network in a step.
        times: of the network at t = 0 and, after two steps, at t = 1/2.
    """

    one: JsonObject
    null: JsonObject | None
    state: Any
    calls: int
    times: list[Tensor]


class _Enough(Exception):
    """Ends a run of a pipeline once the arguments of its network are known."""


class Recorder:
    """Runs a copy of a pipeline and keeps the arguments that its network is called with.

    Args:
        pipe: the pipeline, which is not changed.
        family: of its network.
        call: arguments of its call, without prompts.
    """

    def __init__(self, pipe: Pipeline, family: Family, call: JsonObject) -> None:
        self._pipe, self._family, self._call = copy.copy(pipe), family, call
        self._pipe.set_progress_bar_config(disable=True)
        self._network = called_network(pipe)
        network: Any = network_of(pipe)
        self._names = signature(type(network).forward)
        self._takes = {*signature(type(pipe).__call__).parameters}

    @torch.no_grad()
    def __call__(self, prompt: ReadOnlyJson, before: NetworkCall | None = None) -> NetworkCall:
        """The arguments of one prompt.

        The first prompt runs for two steps, which shows how many calls there are in a step, and the
        network's time in both. The others, after ``before``, end with the arguments of the last
        call of the first step: the network, which may be offloaded, does not run for them if that
        is the only one.
        """
        try:
            self._pipe.scheduler = FlowTurboScheduler.from_config(self._pipe.scheduler, plan="E2")
        except ValueError as error:
            raise ValueError(f"{type(self._pipe).__name__}: {error}") from None
        seen: list[JsonObject] = []

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def keep(*given: Any) -> None:
            seen.append(self._bound(*given))
            if before is not None and len(seen) == before.calls:
                raise _Enough

        options = {"num_inference_steps": 2, "output_type": "latent"}
        if "generator" in self._takes:  # leaves the caller's random numbers alone
            options["generator"] = torch.Generator().manual_seed(0)
        hook = self._network.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self._pipe(**options, **self._call, **prompt)
        except _Enough:
            pass
        finally:
            hook.remove()
        return self._read(seen[: len(seen) // 2 if before is None else None], seen[-1])

    def _bound(self, _: object, args: Sequence[Any], kwargs: ReadOnlyJson) -> JsonObject:
        bound = self._names.bind(None, *args, **kwargs).arguments
        return {key: value for key, value in [*bound.items()][1:] if key != "return_dict"}

    def _read(self, calls: Sequence[JsonObject], last: JsonObject) -> NetworkCall:
        """The record of the calls of the first step, with the time of the very last call."""
        family, first = self._family, calls[0]
        times = [_first(call[family.time]) for call in (first, last)]
        n = len(first[family.state])
        rest = [_without(call, family.state, family.time) for call in calls]
        branch = 0 if family.conditional == "first" else 1
        one = _plucked(rest[0], n, branch if n == 2 else 0)
        null = None
        if n == 2:
            null = _plucked(rest[0], n, 1 - branch)
        elif len(calls) == 2:
            null = _plucked(rest[1], 1, 0)
        apart = null is not None
        if n > 2 or len(calls) > 2 or (apart and family.conditional is None):
            raise ValueError(
                f"{type(self._pipe).__name__} calls its network {len(calls)} times a step with {n} "
                "rows: which is the conditional branch is not known; pass guidance=1"
            )
        return NetworkCall(one, null, first[family.state][:1], len(calls), times)


def _first(time: Any) -> Tensor:
    """The first number of a time (B,) or ()."""
    return torch.as_tensor(time).reshape(-1)[0].detach().cpu()


def _without(arguments: ReadOnlyJson, *names: str) -> JsonObject:
    return {key: value for key, value in arguments.items() if key not in names}


def _plucked(value: Any, n: int, i: int) -> Any:
    """Row ``i`` of a value with ``n`` rows, as one row; any other value as it is."""
    if isinstance(value, Mapping):
        return {key: _plucked(each, n, i) for key, each in value.items()}
    if isinstance(value, Tensor):
        return value[i : i + 1].detach().clone() if value.ndim and len(value) == n else value
    return [value[i]] if isinstance(value, list) and len(value) == n else value


def joined(parts: Sequence[Any]) -> Any:
    """Rows joined, of arguments of the same form; values without rows are those of the first."""
    one = parts[0]
    if isinstance(one, Mapping):
        return {key: joined([part[key] for part in parts]) for key in one}
    if isinstance(one, Tensor) and one.ndim and len(one) == 1:
        return torch.cat(list(parts))
    return [part[0] for part in parts] if isinstance(one, list) and len(one) == 1 else one


def form_of(value: Any) -> str:
    """Equal for arguments that one call can hold; in lists, tensors may differ."""
    if isinstance(value, Mapping):
        return str([(key, form_of(each)) for key, each in value.items()])
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    return str(len(value)) if isinstance(value, list) and len(value) == 1 else repr(value)


def plain(value: Any) -> Any:
    """``value`` as `content` takes it."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    known = value is None or isinstance(value, Tensor | str | int | float)
    return value if known else repr(value)
