"""A hook that evaluates the rows of a plan in place of a pipeline's network.

A pipeline calls its network at every timestep. At model rows of the plan the hook calls the
network, and keeps its conditional output where a later row uses the difference of the branches; at
refiner rows it calls the refiner, with the network's input state and the velocities that the
scheduler keeps; at conditional rows it calls the network for one branch of guidance. The scheduler
(or the copy of it that this thread used last) knows which row is next.
"""

from __future__ import annotations

import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flowturbo.field import device_of
from flowturbo.integrations.diffusers._shim import HookRegistry, ModelHook, NetworkOutput
from flowturbo.integrations.diffusers.families import Family, pack, unpack
from flowturbo.integrations.diffusers.run import cropped, half_of
from flowturbo.plan import Row
from flowturbo.refiner.binding import History, Refiner
from flowturbo.sampling import Velocities, weighted_sum
from flowturbo.types import Condition, Pipeline, ReadOnlyJson, Scheduler

__all__ = ["Link", "RefinerHook", "install", "pooled_of", "remove", "scale_asked", "tensor_of"]

NAME = "flowturbo"
Network: TypeAlias = Any  # of diffusers: a module with a config
State: TypeAlias = Tensor | Sequence[Tensor]  # a batch, or a list of images
Layout: TypeAlias = Callable[[Tensor], Tensor]


class Link:
    """Connects a hook with the copies of a scheduler.

    Attributes:
        pipe: a weak reference to the enabled pipeline.
        installed: whether the hook is on its network.
        here: state of each thread: the ``scheduler`` that it runs, and ``sides``.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = weakref.ref(pipe)
        self.installed = True
        self.here = _Here()

    def __deepcopy__(self, memo: object) -> Link:
        return self


class _Here(threading.local):
    scheduler: Scheduler = None
    sides: tuple[object, tuple[int, ...]] = (None, (0, 0))  # kept: reading waits for the device


class RefinerHook(ModelHook):  # type: ignore[misc]
    """Evaluates rows in place of a network of ``family``.

    Args:
        refiner: ``(x, t, cond, history) -> v`` on unpacked states (B, C, H, W), of videos (B, C, F,
            H, W), of audio (B, C, N); ``cond`` is None, or a dict with the pooled vector. None for
            a plan without refiner rows.
        module: the network of the refiner, to move it to the state's device; None if it has none.
        family: how the network is called.
        link: to the scheduler.
        scale: the guidance scale that the refiner is conditioned on, if it is.
        branches: whether the plan treats the branches of guidance apart.
    """

    def __init__(
        self,
        refiner: Refiner | None,
        module: nn.Module | None,
        family: Family,
        link: Link,
        scale: float | None,
        branches: bool,
    ) -> None:
        super().__init__()
        self.refiner, self.module, self.family, self.link = refiner, module, family, link
        self.scale, self.branches = scale, branches
        self.first = False  # whether it created the registry of hooks

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def new_forward(self, module: Network, *args: Any, **kwargs: Any) -> Any:
        """The output of ``module.forward``, or that of the row in the same form."""
        scheduler = self.link.here.scheduler
        if scheduler is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        sign = scheduler.sign * (-1 if self.family.negated else 1)
        row = scheduler.next_row
        if row is None or row.evaluator == "model":
            out = self.fn_ref.original_forward(*args, **kwargs)
            # which row is the first of a run is known at its step
            kept = scheduler.step_index is None if row is None else row.keeps_term
            if self.branches and kept and scheduler.output is None:  # of two calls the first
                scheduler.output = (sign * tensor_of(out), self.family.conditional == "first")
            return out
        state = args[0] if args else kwargs[self.family.state]
        if scheduler.answer is None:  # otherwise it was evaluated for another branch of guidance
            if row.evaluator == "refiner":
                self._warn_of_scale(scheduler)
                scheduler.answer = self._predict(state, *scheduler.refiner_input(), kwargs)
            else:
                scheduler.answer = self._one_branch(row, scheduler.velocities, sign, args, kwargs)
        out = self._like(state, sign * scheduler.answer, module.config)
        return (out,) if kwargs.get("return_dict") is False else NetworkOutput(sample=out)

    def _one_branch(
        self, row: Row, known: Velocities, sign: int, args: Any, kwargs: ReadOnlyJson
    ) -> Tensor:
        """The velocity of a conditional evaluation, with the guidance that the row estimates."""
        state = args[0] if args else kwargs[self.family.state]
        like = next(iter(known.values()))
        n = len(like)
        if len(state) == 2 * n:
            half, axes = half_of(n, self.family.conditional == "first"), self.family.axes
            args = [_cut(a, half, 2 * n) for a in args]
            kwargs = {k: _cut(a, half, 2 * n, axes.get(k, 0)) for k, a in kwargs.items()}
        v = sign * tensor_of(self.fn_ref.original_forward(*args, **kwargs))
        return weighted_sum(cropped(v, like), row.estimate, known)

    # else it would be compiled again for each length of the history
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _predict(self, state: State, t: float, history: History, arguments: ReadOnlyJson) -> Tensor:
        """The velocity, in our sign, packed like the scheduler's states."""
        like, refiner = history[-1][1], self.refiner
        assert refiner is not None
        if self.family.listed and not isinstance(state[0], Tensor):
            raise ValueError(
                f"{self.family.name} with reference images: refiners do not support them; use a "
                "plan without refiner evaluations"
            )
        x = state if isinstance(state, Tensor) else torch.stack(list(state)).squeeze(2)
        # more images are branches of guidance, more channels or tokens a mask or reference images
        x = cropped(x, like)
        if self.module is not None and device_of(self.module) != x.device:
            self.module.to(x.device)  # offloading moves the network, but not the refiner
        cond = self._condition(state, len(like), arguments)
        unpacked, packed = self._packing(arguments, x.shape[1])
        shown = [(time, unpacked(v)) for time, v in history]
        return packed(refiner(unpacked(x), t, cond, shown)).to(like.dtype)

    def _condition(self, state: State, n: int, arguments: ReadOnlyJson) -> Condition:
        """The pooled vector of prompts, for a refiner that uses it, else None."""
        if self.family.pooled is None or not pooled_of(self.module):
            return None
        vector = arguments[self.family.pooled]
        if len(state) == 2 * n:
            vector = vector[half_of(n, self.family.conditional == "first")]
        return {"pooled": vector}

    def _packing(self, arguments: ReadOnlyJson, tokens: int) -> tuple[Layout, Layout]:
        """Functions from the pipeline's states to unpacked ones, and back."""
        if self.family.sides is not None:
            return partial(unpack, sides=self._sides(arguments, tokens)), pack
        if self.family.channels_last:
            return lambda x: x.movedim(-1, 1), lambda x: x.movedim(1, -1)
        return _same, _same

    def _warn_of_scale(self, scheduler: Scheduler) -> None:
        """Warn if the pipeline's guidance scale is known and differs."""
        scale = self.family.scale
        if self.scale is None or scale is None:
            return
        asked = scale_asked(self.link.pipe(), scheduler)
        if asked is not None and abs(scale(asked) - self.scale) > 1e-3:
            warnings.warn(
                f"the pipeline is called with guidance_scale={asked:g}, and the refiner is enabled "
                f"with guidance={self.scale:g}: it predicts velocities of another scale; "
                f"disable(pipe), then enable(pipe, ..., guidance={scale(asked):g})",
                stacklevel=2,
            )

    def _sides(self, arguments: ReadOnlyJson, tokens: int) -> tuple[int, ...]:
        key = arguments.get("img_ids")
        if key is None or self.link.here.sides[0] is not key:
            assert self.family.sides is not None
            sides = self.family.sides(arguments, tokens)
            if math.prod(sides) != tokens:
                raise ValueError(
                    f"{tokens} tokens of {self.family.name}: a refiner takes those of one image or "
                    f"video, here {' x '.join(map(str, sides))}; use a plan without refiner "
                    "evaluations"
                )
            self.link.here.sides = (key, sides)
        return self.link.here.sides[1]

    def _like(self, state: State, v: Tensor, config: ReadOnlyJson) -> State:
        """``v`` in the form of the output for ``state`` of a network with this ``config``."""
        out = v.to(state[0].dtype)
        if self.family.sides is None and config.get("out_channels") == 2 * out.shape[1]:
            out = torch.cat([out, out], dim=1)  # the second half is a variance, which is dropped
        out = out.repeat(len(state) // len(out), *[1] * (out.ndim - 1))
        return list(out.unsqueeze(2).unbind(0)) if self.family.listed else out


def pooled_of(refiner: object) -> int:
    """The size of the pooled vector that a refiner uses; 0 if it uses none."""
    layer = getattr(getattr(refiner, "network", None), "pooled", None)
    return layer.in_features if isinstance(layer, nn.Linear) else 0


def scale_asked(pipe: Pipeline, scheduler: Scheduler) -> float | None:
    """``guidance_scale`` of the call of ``pipe`` that runs ``scheduler``, if it is known.

    It is not known if another pipeline, such as a copy, runs it.
    """
    if getattr(pipe, "scheduler", None) is not scheduler:
        return None
    return getattr(pipe, "guidance_scale", None)


def tensor_of(out: Any) -> Tensor:
    """The velocities (B, ...) in the output of a network, in whatever form it has."""
    out = out[0] if isinstance(out, tuple) else out.sample
    return out if isinstance(out, Tensor) else torch.stack(list(out)).squeeze(2)


def _same(x: Tensor) -> Tensor:
    return x


def _cut(a: Any, half: slice, size: int, axis: int = 0) -> Any:
    """``half`` of an argument, if it is a batch of ``size`` along ``axis``."""
    if isinstance(a, Tensor):
        batch = a.ndim > axis and a.shape[axis] == size
        return a[(slice(None),) * axis + (half,)] if batch else a
    return a[half] if isinstance(a, list) and len(a) == size else a


def install(network: nn.Module, hook: RefinerHook) -> None:
    """Put ``hook`` on ``network``.

    Raises:
        ValueError: if there is one already.
    """
    registry = vars(network).get("_diffusers_hook")
    if registry is not None and registry.get_hook(NAME) is not None:
        raise ValueError(
            f"the {type(network).__name__} has a refiner already, enabled on another pipeline that "
            "shares it; disable that one first"
        )
    hook.first = registry is None
    with _beneath_offloading(network):
        HookRegistry.check_if_exists_or_initialize(network).register_hook(hook, NAME)


def remove(network: nn.Module) -> None:
    """Remove the hook and the attributes that it added."""
    with _beneath_offloading(network):
        registry = HookRegistry.check_if_exists_or_initialize(network)
        hook = registry.get_hook(NAME)
        hook.link.installed = False
        registry.remove_hook(NAME, recurse=False)
        if hook.first and not registry.hooks:
            del network._diffusers_hook
        if getattr(vars(network).get("forward"), "__func__", None) is type(network).forward:
            del network.forward


@contextmanager
def _beneath_offloading(network: nn.Module) -> Iterator[None]:
    """In this context, ``network.forward`` is what accelerate's hook wraps, if there is one.

    Pipelines remove that hook and add it again at the end of each call, which would remove ours if
    it were outside.
    """
    own = vars(network)
    offloaded = "_old_forward" in own
    if offloaded:
        above, own["forward"] = network.forward, own["_old_forward"]
    try:
        yield
    finally:
        if offloaded:
            own["_old_forward"], own["forward"] = network.forward, above
