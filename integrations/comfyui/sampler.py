"""A plan of flowturbo as a ComfyUI sampler, with the noise levels that it runs on.

ComfyUI counts noise levels ``sigma = 1 - t`` from 1 (noise) down to 0. Its samplers call
``model(x, sigma)``, with one noise level per image, for the predicted clean image. For a flow model
this is

    denoised = x + sigma * v,    so    v = (denoised - x) / sigma

in the time and sign of flowturbo. Guidance is applied inside ``model``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from flowturbo.plan import Plan, as_plan
from flowturbo.plan.rows import differences_of
from flowturbo.sampling import run

__all__ = ["FlowTurboSampler"]


class FlowTurboSampler:
    """The node, which turns a plan into a SAMPLER and the SIGMAS that it must run on."""

    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "Samples flow models (SD3, FLUX, Qwen-Image, Wan, ...) with a plan of flowturbo."
    FUNCTION = "make"
    RETURN_TYPES = ("SAMPLER", "SIGMAS")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs, in the form that ComfyUI expects."""
        plan = {"default": "AB2:8@3", "tooltip": "A notation, or the path of a plan's .json file"}
        denoise = {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01}
        return {"required": {"plan": ("STRING", plan), "denoise": ("FLOAT", denoise)}}

    @classmethod
    def IS_CHANGED(cls, plan: str, denoise: float = 1.0) -> str:
        """A value that changes with the table, including when its file is rewritten."""
        return _table(plan, denoise).digest

    def make(self, plan: str, denoise: float = 1.0) -> tuple[Any, Tensor]:
        """The sampler, and its noise levels (K + 1,), float32.

        Args:
            plan: its notation, or the path of its .json file.
            denoise: the noise level to start at, above 0; below 1 for image to image.

        Raises:
            ValueError: if it is not a plan, or one that ComfyUI cannot run.
        """
        from comfy.samplers import KSAMPLER

        table = _table(plan, denoise)
        return KSAMPLER(_sampler(table)), _levels(table)


def _table(plan: str, denoise: float) -> Plan:
    """The plan from noise level ``denoise`` on; refused if ComfyUI cannot run it."""
    whole = as_plan(plan.strip())
    if whole.times[0] > whole.times[-1]:
        why = "runs from data to noise"
    elif whole.nfe["refiner"]:
        why = f"has {whole.nfe['refiner']} refiner evaluations, and ComfyUI has one model to call"
    elif differences_of(whole) is not None:
        why = "treats the branches of guidance apart (rows C), and ComfyUI guides inside the model"
    elif whole.model_times.max() >= 1:
        why = "evaluates at noise level 0, where the models of ComfyUI give no velocity"
    else:
        start = 1 - denoise
        return whole.restrict(start) if start > whole.times[0] else whole
    raise ValueError(f"plan {whole.name!r} {why}; take another, such as AB2:8@3")


def _levels(plan: Plan) -> Tensor:
    return torch.tensor(1 - plan.times, dtype=torch.float32)


def _sampler(plan: Plan) -> Callable[..., Tensor]:
    """The function that ComfyUI calls with a model, a state and noise levels."""
    levels = _levels(plan)

    @torch.no_grad()
    def sample(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        _check_model(model)
        if sigmas.shape != levels.shape or not torch.allclose(sigmas.float().cpu(), levels):
            raise ValueError(
                f"{len(sigmas)} sigmas that are not those of plan {plan.name!r}: connect the "
                "SIGMAS of the FlowTurbo sampler, and set denoise there"
            )
        ones = x.new_ones(len(x))
        with tqdm(total=len(plan), disable=disable) as bar:

            def evaluate(row: Any, state: Tensor, _: object) -> Tensor:
                sigma = 1 - row.model_time
                denoised = model(state, sigma * ones, **(extra_args or {}))
                if callback is not None:
                    now = {"sigma": sigmas[row.k], "sigma_hat": sigmas[row.k]}
                    callback({"x": state, "i": row.k, "denoised": denoised, **now})
                bar.update()
                return (denoised - state) / sigma

            return run(plan.rows, {"model": evaluate}, x)

    return sample


def _check_model(model: Any) -> None:
    """Refuse a model that is not a flow on the linear path, which ComfyUI calls CONST."""
    from comfy.model_sampling import CONST

    sampling = model.inner_model.inner_model.model_sampling
    if not isinstance(sampling, CONST):
        raise ValueError(
            f"the model is sampled as {type(sampling).__name__}, which is not a flow on the linear "
            "path; plans are for flow models, such as SD3, FLUX, Qwen-Image and Wan"
        )
