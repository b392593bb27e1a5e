"""A refiner in the place of a pipeline's network, at the timesteps that are the refiner's.

The network of a pipeline is called for every timestep. At a row of the model the hook lets it run;
at a row of the refiner it answers itself, from the state the network was shown and the velocities
that the scheduler keeps. It asks the scheduler which row it is: of the scheduler's copies, the one
that was last at work in this thread.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowturbo.integrations.diffusers._shim import HookRegistry, ModelHook, NetworkOutput
from flowturbo.integrations.diffusers.families import Family, pack, unpack
from flowturbo.refiner.binding import History, Refiner
from flowturbo.types import Pipeline, ReadOnlyJson, Scheduler

__all__ = ["Link", "RefinerHook", "install", "remove"]

NAME = "flowturbo"


class Link:
    """Between a hook and the copies of a scheduler.

    Attributes:
        pipe: a weak reference to the pipeline that was enabled.
        installed: whether the hook is on its network.
        here: what differs between threads: ``scheduler``, at work in this one, and ``sides``.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = weakref.ref(pipe)
        self.installed = True
        self.here = _Here()

    def __deepcopy__(self, memo: object) -> Link:
        return self


class _Here(threading.local):
    scheduler: Scheduler = None
    sides: tuple[object, tuple[int, int]] = (
        None,
        (0, 0),
    )  # read once a run: it waits for the device


class RefinerHook(ModelHook):  # type: ignore[misc]
    """Answers for a network of ``family`` at the rows of the refiner.

    Args:
        refiner: ``(x, t, cond, history) -> v`` on unpacked states (B, C, H, W); ``cond`` is None.
        module: the network of the refiner, to move it to the state's device; None if it has none.
        family: how the network is called.
        link: to the scheduler.
        scale: of guidance, that the refiner is told; None if it is told none.
    """

    def __init__(
        self,
        refiner: Refiner,
        module: nn.Module | None,
        family: Family,
        link: Link,
        scale: float | None,
    ) -> None:
        super().__init__()
        self.refiner, self.module, self.family, self.link = refiner, module, family, link
        self.scale = scale
        self.first = False  # whether there was no registry of hooks before

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What ``module.forward`` returns, or the refiner's answer in the same form."""
        scheduler = self.link.here.scheduler
        shown = None if scheduler is None else scheduler.shown()
        if shown is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        state = args[0] if args else kwargs[self.family.state]
        if scheduler.answer is None:  # else another branch of guidance was here before
            t, history = shown
            self._warn_of_scale(scheduler)
            scheduler.answer = self._predict(state, t, history, kwargs)
        sign = scheduler.sign * (-1 if self.family.negated else 1)
        out = self._like(state, sign * scheduler.answer, module)
        return (out,) if kwargs.get("return_dict") is False else NetworkOutput(sample=out)

    # else it would be compiled again for each number of velocities it is shown
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _predict(self, state: Any, t: float, history: History, arguments: ReadOnlyJson) -> Tensor:
        """The velocity, in our sign, packed as the scheduler has it."""
        like = history[-1][1]
        if self.family.listed and not isinstance(state[0], Tensor):
            raise ValueError(
                f"{self.family.name} with pictures to go by: the refiner does not know them; take "
                "a plan without refiner evaluations"
            )
        x = torch.stack(list(state)).squeeze(2) if self.family.listed else state
        # more images are branches of guidance, more channels or tokens a mask or other pictures
        x = x[tuple(slice(n) for n in like.shape)].to(like.dtype)
        if self.module is not None:  # offloading moves the network, but not the refiner
            self.module.to(x.device)
        if self.family.sides is None:
            return self.refiner(x, t, None, history).to(like.dtype)
        sides = self._sides(arguments, x.shape[1])
        unpacked = [(time, unpack(v, sides)) for time, v in history]
        return pack(self.refiner(unpack(x, sides), t, None, unpacked)).to(like.dtype)

    def _warn_of_scale(self, scheduler: Scheduler) -> None:
        """Say so if the pipeline guides by another scale, where that can be seen."""
        pipe, scale = self.link.pipe(), self.family.scale
        if self.scale is None or scale is None or getattr(pipe, "scheduler", None) is not scheduler:
            return
        asked = getattr(pipe, "guidance_scale", None)
        if asked is not None and abs(scale(asked) - self.scale) > 1e-3:
            warnings.warn(
                f"the pipeline is called with guidance_scale={asked:g}, and the refiner is told "
                f"guidance={self.scale:g}: its answers are for another scale; disable(pipe), then "
                f"enable(pipe, ..., guidance={scale(asked):g})",
                stacklevel=2,
            )

    def _sides(self, arguments: ReadOnlyJson, tokens: int) -> tuple[int, int]:
        key = arguments.get("img_ids")
        if key is None or self.link.here.sides[0] is not key:
            assert self.family.sides is not None
            h, w = self.family.sides(arguments, tokens)
            if h * w != tokens:
                raise ValueError(
                    f"{tokens} tokens of {self.family.name}: a refiner sees one picture, here of "
                    f"{h} x {w} tokens; take a plan without refiner evaluations"
                )
            self.link.here.sides = (key, (h, w))
        return self.link.here.sides[1]

    def _like(self, state: Any, v: Tensor, network: Any) -> Any:
        """``v`` as the network would put it out, shown ``state``."""
        out = v.to(state[0].dtype)
        if self.family.sides is None and network.config.get("out_channels") == 2 * out.shape[1]:
            out = torch.cat([out, out], dim=1)  # the second half is a variance, and dropped
        out = out.repeat(len(state) // len(out), *[1] * (out.ndim - 1))
        return list(out.unsqueeze(2).unbind(0)) if self.family.listed else out


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
    """Take the hook off, and what it left behind."""
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
def _beneath_offloading(network: Any) -> Iterator[None]:
    """Within, ``network.forward`` is what the hook of accelerate wraps, if there is one.

    Pipelines take that hook off and put it on again at the end of each call, and what lies above it
    is lost.
    """
    offloaded = "_old_forward" in vars(network)
    if offloaded:
        above, network.forward = network.forward, network._old_forward
    try:
        yield
    finally:
        if offloaded:
            network._old_forward, network.forward = network.forward, above
