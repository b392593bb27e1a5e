"""Editing images with text-to-image pipelines, in their own loops.

A pipeline runs a plan in either direction: backward from the latents of an image with the source
prompt, unguided, and forward with the target prompt. Text encoders, guidance, offloading, callbacks
and decoding are therefore the pipeline's. A copy of the pipeline runs, so that the pipeline itself
is not changed, even after an exception. The methods are those of `flowturbo.tasks.editing`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.images import to_pil
from flowturbo.integrations.diffusers.editing_arguments import (
    PromptArguments,
    both,
    box_in,
    call_arguments,
    check_effect,
    checked,
    image_shape,
    prompt_arguments,
    rows,
    spread,
    without,
)
from flowturbo.integrations.diffusers.families import Family, pack
from flowturbo.integrations.diffusers.flowedit import FlowEdit
from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler
from flowturbo.models.vae import standards
from flowturbo.path import interpolate
from flowturbo.plan import Plan
from flowturbo.tasks.editing import HALF, METHODS, NOTHING, begins_at, inversion
from flowturbo.tasks.sources import (
    Edited,
    ImageInput,
    Size,
    check_pairs,
    parts_of,
    read_images,
    seeds_of,
)
from flowturbo.types import Pipeline, ReadOnlyJson

__all__ = ["edit"]


def edit(
    pipe: Pipeline,
    image: ImageInput | Sequence[ImageInput],
    prompt: PromptArguments,
    source_prompt: PromptArguments,
    *,
    method: Literal["inversion", "flowedit", "sdedit"] = "inversion",
    keep: float = 0.1,
    plan: Plan | str = HALF,
    guidance: float | None = None,
    seed: int = 0,
    size: Size = "input",
    height: int | None = None,
    width: int | None = None,
    **arguments: Any,
) -> Edited:
    """Edit an image with a pipeline: change what ``source_prompt`` describes to match ``prompt``.

    Args:
        pipe: a text-to-image pipeline of SD3, FLUX.1, Qwen-Image, Z-Image or Sana, or of a family
            of your own with ``guided``. It may be enabled; its own plan is not used.
        image: a PIL image or a path, of any size and mode, or several; a single image is used for
            all prompts, and a single prompt for all images.
        prompt: what the edited image should show, or several; or arguments of the pipeline's call
            by name, such as ``{"prompt": ..., "prompt_2": ...}`` or ``{"prompt_embeds": ...}``.
        source_prompt: what the image shows, likewise.
        method: "inversion", "flowedit" or "sdedit"; see `flowturbo.tasks.editing`.
        keep: how much of the image stays, from 0 to 1, as in `flowturbo.edit`.
        plan: notation of a solver that is used in each direction; or a plan from data to ``keep``
            whose ``info["inverts"]`` names the plan that leads back, as `flowturbo.tune` fits them.
        guidance: scale ``w`` of ``u + w*(c - u)`` for ``prompt``, at least 1 (off); by default the
            pipeline's. For FLUX.1 it is the guidance that the network takes as input. The branch
            of the source prompt is unguided.
        seed: of the first image's noise, for "flowedit" and "sdedit"; an inversion has none.
        size: "input", put back into the original image, or "model", the size of the pipeline's
            images.
        height: of the images that the pipeline generates, in pixels; by default they have its own
            area and the shape of the first image.
        width: likewise; give both, or none.
        **arguments: of the pipeline's call with ``prompt``, such as ``negative_prompt`` or
            ``callback_on_step_end``. Those that concern neither guidance nor callbacks
            (``max_sequence_length``) also apply to the inversion.

    Returns:
        A list of PIL images with ``evaluations`` of the velocity and ``passes`` of the network, for
        each. Pixels outside the edited part are not changed.

    Raises:
        ValueError: if an argument is not as described, the pipeline is of another kind, its
            scheduler is not supported, an image is not readable, or a result is not finite.
    """
    family, names = checked(pipe)
    checks.one_of("method", method, METHODS)
    checks.one_of("size", size, ("input", "model"))
    start = begins_at(keep, method)
    end = min(start, 1 - NOTHING)
    there, notation = inversion(plan, end)
    back = Plan.parse(notation, start=end)
    given = call_arguments(family, names, method, guidance, arguments)
    scheduler = FlowTurboScheduler.from_config(pipe.scheduler, plan=None)
    originals = read_images("image", image)
    target = prompt_arguments("prompt", prompt, names)
    source = prompt_arguments("source_prompt", source_prompt, names)
    n = check_pairs(len(originals), rows("prompt", target))
    target = spread("prompt", {**given.negative, **target}, n)
    check_effect(pipe, family, guidance, target)
    source = spread("source_prompt", source, n)
    prompts = both(target, source) if method == "flowedit" else target
    seeds = seeds_of(seed, n)
    shape, step = image_shape(pipe, height, width, originals[0])
    boxes = [box_in(original, shape, step) for original in originals]
    parts = parts_of(originals, boxes, (3, *shape), n, size)
    if start > 1 - NOTHING:
        return parts.unchanged()

    own = copy.copy(pipe)
    own.scheduler = scheduler
    runs = _Runs(own, family, shape, n)
    z = _encoded(own, family, parts.images)
    form = pack if family.sides else lambda z: z
    options = {**given.forward, "output_type": "pt"}
    if method == "flowedit":
        flow = FlowEdit(back, z, seeds, form, family, scheduler)
        options["callback_on_step_end"] = flow
        x1 = runs(back, flow.first(), {**prompts, **options}, flow.hooks)
    else:
        if method == "inversion":
            x = runs(there, form(z), {**without("negative_", source), **given.backward})
        else:
            x = form(interpolate(noise.draw(seeds, z.shape[1:], device=z.device), z, start))
        x1 = runs(back, x, {**prompts, **options})
    if not x1.isfinite().all():
        raise ValueError(
            f"the images are not finite: the networks of {type(pipe).__name__} in {pipe.dtype} "
            f"overflow with plan {plan!r}; lower the guidance, or load it with another torch_dtype"
        )
    return Edited(parts.placed(to_pil(x1)), runs.evaluations, runs.passes)


class _Runs:
    """Runs of a pipeline with a `FlowTurboScheduler` on latents, counted.

    Args:
        pipe: the pipeline that runs; no other thread uses it.
        family: of its network.
        shape: (H, W) of its images.
        count: number of images that are edited.
    """

    def __init__(self, pipe: Pipeline, family: Family, shape: tuple[int, int], count: int) -> None:
        self._pipe, self._family, self._shape, self._count = pipe, family, shape, count
        self._evaluated = self._passed = 0

    @property
    def evaluations(self) -> int:
        """Of the velocity so far, for each image."""
        return self._evaluated // self._count

    @property
    def passes(self) -> int:
        """Of the network so far, for each image."""
        return self._passed // self._count

    def __call__(
        self,
        plan: Plan,
        latents: Tensor,
        arguments: ReadOnlyJson,
        hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
    ) -> Tensor:
        """The latents, or images in [0, 1] with ``output_type="pt"``, at the end of ``plan``.

        Args:
            plan: in either direction, of whole evaluations of the model.
            latents: as the pipeline takes them.
            arguments: of its call.
            hooks: to register with the network during the call, as (method, hook).
        """
        pipe, scheduler = self._pipe, self._pipe.scheduler
        scheduler.set_plan(plan)
        height, width = self._shape
        with ExitStack() as stack:
            for method, hook in (("register_forward_pre_hook", self._pass), *hooks):
                register = getattr(pipe.transformer, method)
                stack.enter_context(register(_in_this_thread(hook), with_kwargs=True))
            made = pipe(
                latents=latents,
                num_inference_steps=len(plan),
                height=height,
                width=width,
                return_dict=False,
                **{"output_type": "latent", **arguments},
            )[0]
        self._evaluated += scheduler.step_index * len(latents)
        return made

    def _pass(self, _: object, args: Sequence[Any], kwargs: ReadOnlyJson) -> None:
        self._passed += len(args[0] if args else kwargs[self._family.state])


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """``hook`` for the calls of this thread only, since others may share the network."""
    here = threading.get_ident()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def hook_here(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == here else None

    return hook_here


@torch.no_grad()
def _encoded(pipe: Pipeline, family: Family, images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] to the means of their latents, (N, C, h, w) float32."""
    x = (2 * images - 1).to(pipe._execution_device, pipe.vae.dtype)
    found = pipe.vae.encode(x.unsqueeze(2) if family.video else x)
    z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
    z = (z.squeeze(2) if family.video else z).float()
    scale, shift = standards(pipe.vae.config, z.shape[1])
    return (z - shift.to(z)) * scale.to(z)
