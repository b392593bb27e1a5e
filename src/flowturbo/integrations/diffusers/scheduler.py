"""A scheduler of diffusers that runs any plan, one evaluation for each of its timesteps.

diffusers counts noise levels ``sigma = 1 - t`` down from 1, calls networks with ``1000*sigma`` and
expects ``u = -v`` of them. ``step`` adds the update of the plan's row to the sample it is called
with,

    x = x + sum over j <= k of W[k, j] * v_j,

so changes that a pipeline makes to the sample between steps (inpainting, callbacks) are kept. The
state of a run and its arithmetic are in ``run``, the choice of the plan in ``timesteps``, one run
per thread in ``thread``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo.integrations.diffusers._shim import (
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    SchedulerOutput,
    register_to_config,
)
from flowturbo.integrations.diffusers.configs import defaults, described, translated
from flowturbo.integrations.diffusers.grid import number, numbers
from flowturbo.integrations.diffusers.run import Run, moving_tokens
from flowturbo.integrations.diffusers.tables import check_length, on_grid, plan_of
from flowturbo.integrations.diffusers.thread import RunPerThread
from flowturbo.integrations.diffusers.timesteps import (
    check_options,
    pipeline_plan,
    step_count,
    warn_of_timesteps,
)
from flowturbo.plan import Plan, as_plan
from flowturbo.types import ReadOnlyJson

__all__ = ["FlowTurboScheduler"]

NOT_DONE = (  # of the options of FlowMatchEuler
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "stochastic_sampling",
)


class FlowTurboScheduler(RunPerThread, FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Replaces ``FlowMatchEulerDiscreteScheduler`` in flow pipelines, and is a subclass of it.

    Without a plan, ``solver`` runs on the pipeline's noise levels: by default Adams-Bashforth of
    order 2, one evaluation per step. A plan has its own times, which override the pipeline's shift,
    ``mu``, ``sigmas`` and ``timesteps``; ``num_inference_steps`` must be its number of evaluations,
    model and refiner together.

    Each thread that sets timesteps has a run of its own, and so has each ``copy.copy(scheduler)``.

    Args:
        num_train_timesteps: the network's timestep at noise level 1.
        shift: of the noise levels, above 0, see ``integrations.diffusers.grid``.
        use_dynamic_shifting: the shift depends on the image size and is passed as ``mu``.
        base_shift: read by the pipeline to compute ``mu``.
        max_shift: likewise.
        base_image_seq_len: likewise.
        max_image_seq_len: likewise.
        invert_sigmas: the network's time is ``1 - sigma`` and its output data minus noise (Mochi).
        shift_terminal: the last noise level, if the levels are stretched to it.
        time_shift_type: how ``mu`` shifts, "exponential" or "linear".
        solver: of one evaluation per step, by its name in the notation of plans ("AB2", "UNIPC2",
            "DPM2"), or "E" (Euler).
        plan: a plan to run instead, its notation ("AB2:8@3"), or its JSON as an object.
        sign: -1 if the network predicts the derivative with respect to sigma, as in diffusers; 1 if
            it predicts the negative of that, as rectified-flow U-Nets do (InstaFlow).
        guider: whether the guider of the pipeline is a `FlowTurboGuider`, which conditional
            evaluations of a plan need in modular pipelines.

    Raises:
        ValueError: if an argument is outside its range.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler"]  # noqa: RUF012  (as in diffusers)
    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int | None = 256,
        max_image_seq_len: int | None = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        time_shift_type: str = "exponential",
        solver: str = "AB2",
        plan: Plan | str | ReadOnlyJson | None = None,
        sign: int = -1,
        guider: bool = False,
    ) -> None:
        check_options(self.config)
        on_grid(solver, np.linspace(0.0, 1.0, 9))
        self._fixed_plan = plan_of(plan)
        self._shift = number("shift", shift, 0)
        self.register_to_config(
            plan=json.loads(plan.to_json()) if isinstance(plan, Plan) else plan,
            **dict.fromkeys(NOT_DONE, False),  # pipelines ask
        )
        RunPerThread.__init__(self)

    @classmethod
    def from_pretrained(cls, *args: object, variant: object = None, **kwargs: object) -> Any:
        """The scheduler in a folder, as in diffusers.

        ``variant`` is for weights, which a scheduler has none of; modular pipelines pass it anyway.
        """
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def from_config(
        cls, config: object = None, return_unused_kwargs: bool = False, **kwargs: object
    ) -> Any:
        """The scheduler with the configuration of another flow scheduler of diffusers.

        Args:
            config: of the other scheduler, or that scheduler itself, which includes its class.
            return_unused_kwargs: as in diffusers: unknown keywords are returned; otherwise they are
                refused.
            **kwargs: override the configuration; ``shift`` may be called ``flow_shift``, too.

        Raises:
            ValueError: if its class or one of its options is not supported.
        """
        if isinstance(config, SchedulerMixin):
            config = described(config)
        if not isinstance(config, Mapping):
            raise ValueError(
                f"config={config!r}: must be a scheduler or its configuration; a folder is for "
                "FlowTurboScheduler.from_pretrained"
            )
        own = defaults(FlowTurboScheduler)  # type: ignore[arg-type]
        config, kwargs = translated(config, kwargs, own, not return_unused_kwargs)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @property
    def sign(self) -> int:
        """The network's output is this times ``dx/dt``."""
        return int(-self.config.sign if self.config.invert_sigmas else self.config.sign)

    # -- the timesteps ------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose the plan of a run; ``timesteps`` and ``sigmas`` follow from it.

        Args:
            num_inference_steps: evaluations; must agree with the length of the lists.
            device: of ``self.timesteps`` and ``self.sigmas``.
            sigmas: noise levels before the shift, descending within (0, 1]; a list or array.
            mu: of the shift, if it is dynamic; otherwise ignored, as some pipelines always pass it.
            timesteps: of the network. Without ``sigmas`` they also define the noise levels, and
                nothing is shifted. With ``invert_sigmas`` the network's times follow from the
                levels.

        Raises:
            ValueError: if an argument is outside its range or contradicts another, the count is not
                the plan's number of evaluations, or it needs a refiner and none is enabled.
        """
        lists = {"sigmas": sigmas, "timesteps": timesteps}
        grid = {name: numbers(name, v) for name, v in lists.items() if v is not None}
        count = step_count(num_inference_steps, grid)
        plan = self._fixed_plan
        if plan is None:
            plan = pipeline_plan(self.config, self.shift, count, grid, mu)
        else:
            hooked = self.link is not None and self.link.installed
            check_length(plan, count, hooked, self.config.guider)
            warn_of_timesteps(plan, self.config, self.shift, count, grid, mu)
        times, levels = plan.model_times, plan.times
        if not self.config.invert_sigmas:
            times, levels = 1 - times, 1 - levels
        on_device = lambda values: torch.tensor(values, dtype=torch.float32, device=device)
        self._run = Run(plan, on_device(times * self.config.num_train_timesteps), on_device(levels))

    def set_shift(self, shift: float) -> None:
        """Shift by ``shift`` from the next ``set_timesteps`` on.

        Raises:
            ValueError: if it is not a number above 0, or would have no effect.
        """
        if self._fixed_plan is not None or self.config.use_dynamic_shifting:
            raise ValueError(
                f"set_shift({shift}) would change nothing: "
                + ("the shift is mu" if self._fixed_plan is None else "the plan has its own times")
                + "; leave it out"
            )
        self._shift = number("shift", shift, 0)

    def set_plan(self, plan: Plan | str) -> None:
        """Run ``plan`` from the next ``set_timesteps`` on; the configuration keeps its own.

        It may run from data to noise: ``pipe(latents=...)`` of an image then leads to its noise.

        Raises:
            ValueError: if it is not a plan, its notation, or the path of its .json file.
        """
        self._fixed_plan = as_plan(plan)

    @property
    def shift(self) -> float:
        """Of the noise levels, if it is not dynamic and there is no plan."""
        return self._shift

    # -- the run ------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: object = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Update ``sample`` by the next row of the plan.

        Args:
            model_output: the network's output after guidance, like ``sample``.
            timestep: the element of ``self.timesteps`` that the network was called with; the first
                one is looked up unless ``set_begin_index`` was called.
            sample: the state, of any shape. Computed in float32 at least.
            s_churn: not used, as in FlowMatchEuler.
            s_tmin: likewise.
            s_tmax: likewise.
            s_noise: likewise.
            generator: not used, since plans are deterministic.
            per_token_timesteps: (B, N) for a sample (B, N, C): tokens at ``timestep`` move, those
                at 0 are clean and stay. ``model_output`` then has the opposite sign, as in
                diffusers.
            return_dict: whether to return a ``SchedulerOutput``, or a tuple.

        Returns:
            ``prev_sample`` in the dtype of ``model_output``; with ``per_token_timesteps``, as
            computed. The predicted clean state is then in ``self.predicted``.

        Raises:
            ValueError: if ``timestep`` is an index or not the next one, the plan has ended, the
                shapes differ, a token is at another time, or the network was evaluated in place of
                the refiner.
        """
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output of shape {tuple(model_output.shape)}: must be that of sample, "
                f"{tuple(sample.shape)}"
            )
        run = self._run
        k = run.begin_step(timestep, self.index_for_timestep)
        if self.fit is not None and run.predicted is None:
            self.fit.check(self, sample)
        row = run.next_row
        if self.config.guider and run.answer is None and run.output is None:
            raise ValueError(
                "guider=True, and no FlowTurboGuider has guided this step: call "
                "pipe.update_components(guider=FlowTurboGuider(...)), or leave guider=True out"
            )
        if run.answer is None and row is not None and row.evaluator != "model":
            raise ValueError(
                f"timestep {k} of plan {run.name!r} is a {row.evaluator} evaluation, and the "
                "network answered: the pipeline's network was replaced since; disable(pipe), then "
                "enable(pipe, ...) again"
            )
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        # a copy in any case: compiled networks reuse the memory of their outputs
        v = model_output.to(x.dtype) * (self.sign if per_token_timesteps is None else -self.sign)
        if run.answer is not None:  # guidance with momentum would change it
            v = run.answer.to(x.dtype)
        if per_token_timesteps is not None:
            if self.config.invert_sigmas:
                raise ValueError("per_token_timesteps with invert_sigmas=True: not supported")
            n = self.config.num_train_timesteps
            moving = moving_tokens(per_token_timesteps, sample, run.timesteps[k], 1e-6 * n)
            v = torch.where(moving, v, 0.0)
        x = run.update(k, x, v)
        self._announce()
        if per_token_timesteps is None:
            x = x.to(model_output.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def scale_noise(
        self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """The state ``(1 - sigma)*sample + sigma*noise`` (B, ...) at the next step of the run.

        Before the first step this is the index of ``set_begin_index`` or, without one,
        ``timestep`` (B,), of ``self.timesteps``.

        Raises:
            ValueError: if there is no ``noise``, or no such timestep.
        """
        if noise is None or self.plan is None:
            raise ValueError("scale_noise needs noise=... and, before it, set_timesteps")
        index = self.begin_index if self.step_index is None else self.step_index
        sigma: float | Tensor
        if index is not None:
            sigma = float(1 - self.plan.times[index])
        else:
            asked = timestep.reshape(-1) if isinstance(timestep, Tensor) else [timestep]
            each = [1 - self.plan.times[self.index_for_timestep(t)] for t in asked]
            sigma = torch.tensor(each, device=sample.device).float()
            sigma = sigma.reshape(-1, *[1] * (sample.ndim - 1))
        wide = torch.promote_types(sample.dtype, torch.float32)
        return (sigma * noise.to(wide) + (1 - sigma) * sample.to(wide)).to(sample.dtype)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``scale_noise`` with the name and order of arguments of diffusion pipelines."""
        return self.scale_noise(original_samples, timesteps, noise)

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """``sample`` unchanged; diffusion pipelines call this."""
        return sample

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)
