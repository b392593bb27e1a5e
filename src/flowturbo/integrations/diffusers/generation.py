"""Models of this library as a diffusers pipeline.

``pipe(prompt)`` is `flowturbo.generate` with the arguments of diffusers: the plan runs in the
library's only sampling loop, `flowturbo.sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.integrations.diffusers._shim import (
    DiffusionPipeline,
    ImagePipelineOutput,
    randn_tensor,
)
from flowturbo.integrations.diffusers.component import FlowTurboModel
from flowturbo.models.model import Model
from flowturbo.models.prompts import as_prompts
from flowturbo.models.zoo import load
from flowturbo.plan import Plan, as_plan
from flowturbo.plan.plan import is_file_name
from flowturbo.refiner.resolve import plan_of_steps, resolve
from flowturbo.sampling import Step, sample
from flowturbo.tasks.generate import check_model, check_whole, condition_of, decoded

__all__ = ["FlowTurboPipeline"]

OUTPUTS = ("pil", "np", "pt", "latent")
Generators: TypeAlias = torch.Generator | list[torch.Generator] | None
Images: TypeAlias = Any  # a list of PIL images, an array or a tensor
StepEnd: TypeAlias = Callable[..., dict[str, Any] | None]


class FlowTurboPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Generates images with a model of this library.

        pipe = FlowTurboPipeline.from_model("emoji")
        image = pipe("red apple, flat style").images[0]

    ``save_pretrained(folder)`` and ``from_pretrained(folder)`` write and read a diffusers folder
    with the model, its plans and its refiner. The pipeline has no scheduler, since a plan takes its
    place. Calls do not change it, so threads can share it.

    Args:
        model: see `from_model`, which creates it.
    """

    _callback_tensor_inputs = ["latents", "predicted"]  # noqa: RUF012  (as in diffusers)

    def __init__(self, model: FlowTurboModel) -> None:
        super().__init__()
        self.register_modules(model=model)

    @classmethod
    def from_model(cls, model: Model | str | Path, **options: Any) -> FlowTurboPipeline:
        """The pipeline of a model.

        Args:
            model: from `flowturbo.load`, or what that takes: a bundled name, a folder, or
                "hf:owner/repo".
            **options: of `flowturbo.load`: ``device``, ``dtype``, ``vae``.

        Raises:
            ValueError: as `flowturbo.load`; if the model does not generate images; if options are
                given for a model that is loaded already.
        """
        if isinstance(model, str | Path):
            model = load(model, **options)
        elif options:
            raise ValueError(
                f"{', '.join(options)}: the model is loaded already; pass its name or folder, or "
                "call pipe.to(...)"
            )
        check_model(model)
        return cls(FlowTurboModel(model))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        plan: Plan | str | Path | None = None,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
    ) -> ImagePipelineOutput | tuple[Images]:
        """Generate images, ``num_images_per_prompt`` for each prompt in order.

        Args:
            prompt: one or several, P in all; "" is unconditional.
            negative_prompt: to guide away from; one, or P. By default the unconditional one.
            num_inference_steps: evaluations of Adams-Bashforth of order 2, from 1; with ``plan``,
                its number of evaluations.
            guidance_scale: ``w`` of ``u + w*(c - u)``, 1 for off; by default the model's.
            num_images_per_prompt: N, from 1.
            generator: of the initial noise: one for all B = P*N images, or a list of one per image;
                by default torch's own. The noise is drawn in float32 on the generator's device.
                ``[torch.Generator().manual_seed(s + i) for i in range(B)]`` gives the noise of
                ``flowturbo.generate(..., seed=s)``, bit for bit.
            latents: (B, C, H, W) of the model's ``shape``, in place of that noise.
            output_type: "pil"; "np", (B, H, W, 1 or 3) in [0, 1]; "pt", (B, 1 or 3, H, W) in
                [0, 1]; or "latent", the states (B, C, H, W).
            return_dict: whether to return an ``ImagePipelineOutput``, or a tuple.
            callback_on_step_end: called after each evaluation with the pipeline, the index of the
                evaluation, its noise level times 1000, and a dictionary of tensors; ``"latents"``
                in the dictionary that it returns replace the state.
            callback_on_step_end_tensor_inputs: any of "latents", the state after the evaluation,
                and "predicted", the clean state predicted at it.
            plan: to run, as `flowturbo.generate` takes it, or its .json file; by default the
                model's own.
            class_labels: for a class-conditional model, indices or names of labels, P in all, in
                place of ``prompt``.

        Returns:
            ``images``, of the type that ``output_type`` names.

        Raises:
            ValueError: if an argument is not as described, or as `flowturbo.generate`.
        """
        model = self.model.model
        checks.one_of("output_type", output_type, OUTPUTS)
        used = resolve(model, _plan(plan, num_inference_steps), _number(guidance_scale))
        check_whole(used.plan)
        if num_inference_steps not in (None, len(used.plan)):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}, and plan {used.plan.name!r} has "
                f"{len(used.plan)} evaluations: leave one out"
            )
        each = checks.whole("num_images_per_prompt", num_images_per_prompt, 1)
        prompts = _prompts(model, prompt, class_labels)
        cond = condition_of(model, _repeated(prompts, each))
        negative = None
        if negative_prompt is not None:
            against = _negatives(negative_prompt, len(prompts))
            negative = condition_of(model, _repeated(against, each))
        x0 = self._noise((len(prompts) * each, *model.shape), latents, generator)
        # what diffusers calls a PipelineCallback names its tensors itself
        names = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        for name in names:
            allowed = self._callback_tensor_inputs
            checks.one_of("callback_on_step_end_tensor_inputs", name, allowed)
        with self.progress_bar(total=len(used.plan)) as bar:

            def ended(step: Step) -> Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                found = {"latents": step.x, "predicted": step.x1}
                level = torch.tensor(1000 * (1 - used.plan.model_times[step.index]))
                given = {name: found[name] for name in names}
                return (callback_on_step_end(self, step.index, level, given) or {}).get("latents")

            x1 = sample(
                used.plan,
                model,
                x0,
                cond,
                guidance=used.guidance,
                negative=negative,
                refiner=used.refiner,
                callback=ended,
            )
        images: Images = x1
        if output_type == "pil":
            images = decoded(model, x1, used.plan, used.guidance)
        elif output_type != "latent":
            images = model.decode(x1)
            if output_type == "np":
                images = images.permute(0, 2, 3, 1).cpu().numpy()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _noise(
        self, shape: tuple[int, ...], latents: Tensor | None, generator: Generators
    ) -> Tensor:
        """The initial states (B, C, H, W) on the pipeline's device."""
        device = self._execution_device
        if latents is not None:
            return checks.tensor("latents", latents, shape, dtypes=checks.DTYPES).to(device)
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(
                f"generator: a list of {len(generator)} for {shape[0]} images; pass one for all, "
                "or one per image"
            )
        drawn: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return drawn


def _plan(plan: Plan | str | Path | None, steps: int | None) -> Plan | str | None:
    """The plan for `resolve`: the given one, or one with this number of evaluations."""
    if plan is None and steps is not None:
        return plan_of_steps(checks.whole("num_inference_steps", steps, 1))
    if plan is None or (isinstance(plan, str) and not is_file_name(plan)):
        return plan
    return as_plan(plan)


def _number(guidance_scale: float | None) -> float | None:
    return None if guidance_scale is None else checks.number("guidance_scale", guidance_scale)


def _repeated(prompts: Sequence[str], each: int) -> list[str]:
    return [prompt for prompt in prompts for _ in range(each)]


def _prompts(model: Model, prompt: object, class_labels: object) -> list[str]:
    """The prompts, or the names of labels, of a call."""
    about = model.conditioning
    if class_labels is None:
        if prompt is None and about is not None:
            what = "class_labels" if about.kind == "class" else "prompt"
            raise ValueError(f"{what}=None: model {model.name!r} needs it; pass {what}=...")
        return as_prompts([prompt or ""] if isinstance(prompt, str | None) else prompt)
    if prompt is not None:
        raise ValueError(f"prompt={shown(prompt)} and class_labels={shown(class_labels)}: pass one")
    if about is None or about.kind != "class":
        raise ValueError(
            f"class_labels={shown(class_labels)}: model {model.name!r} is not class-conditional; "
            "pass prompt=..."
        )
    labels = class_labels.tolist() if isinstance(class_labels, Tensor) else class_labels
    names = about.names
    return [
        str(label)
        if isinstance(label, str) or not names
        else names[checks.whole("class_labels", label, 0, len(names) - 1)]
        for label in (labels if checks.is_list(labels) else [labels])
    ]


def _negatives(negative_prompt: object, count: int) -> list[str]:
    """A negative prompt for each of ``count`` prompts."""
    if isinstance(negative_prompt, str):
        return [negative_prompt] * count
    given = as_prompts(negative_prompt)
    if len(given) == count:
        return given
    if len(given) != 1:
        raise ValueError(
            f"negative_prompt: a list of {len(given)} for {count} prompts; pass one for all, or "
            "one per prompt"
        )
    return given * count
