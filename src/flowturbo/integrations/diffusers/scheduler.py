"""A scheduler of diffusers that runs any plan, one evaluation for each of its timesteps.

diffusers counts noise levels ``sigma = 1 - t`` down from 1, tells networks ``1000*sigma`` and takes
``u = -v`` from them. ``step`` moves the sample it is given by the plan's row,

    x = x + sum over j <= k of W[k, j] * v_j,

so what a pipeline does to the sample between steps (inpainting, callbacks) stays. Each thread that
sets timesteps has a run of its own, and so has each ``copy.copy(scheduler)``.

The module is long because diffusers asks for one class of these methods; what they compute stands
in the modules next to it.
"""

from __future__ import annotations

import json
import operator
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
from flowturbo.integrations.diffusers.grid import number, numbers, shortened
from flowturbo.integrations.diffusers.run import Run, moving_tokens, places
from flowturbo.integrations.diffusers.tables import check_given, on_grid, plan_of
from flowturbo.integrations.diffusers.thread import RunPerThread
from flowturbo.integrations.diffusers.timesteps import (
    check_options,
    pipeline_plan,
    warn_of_timesteps,
)
from flowturbo.path import predicted_data
from flowturbo.plan import Plan
from flowturbo.refiner.binding import History
from flowturbo.sampling import update
from flowturbo.types import ReadOnlyJson

__all__ = ["FlowTurboScheduler"]

NOT_DONE = (  # of the options of FlowMatchEuler
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "stochastic_sampling",
)


class FlowTurboScheduler(RunPerThread, FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Takes the place of ``FlowMatchEulerDiscreteScheduler`` in flow pipelines, and is one to them.

    Without a plan, ``solver`` runs on the pipeline's noise levels: Adams-Bashforth of order 2, one
    evaluation a step. A plan brings its own times, which win over all that the pipeline says of
    shift, ``mu``, ``sigmas`` and ``timesteps``; ``num_inference_steps`` must be its number of
    evaluations, model and refiner together.

    Each thread that sets timesteps has a run of its own.

    Args:
        num_train_timesteps: what the network is told at noise level 1.
        shift: of the noise levels, above 0, see ``integrations.diffusers.grid``.
        use_dynamic_shifting: the shift comes with each picture, as ``mu``.
        base_shift: for the pipeline, which makes ``mu`` of it.
        max_shift: likewise.
        base_image_seq_len: likewise.
        max_image_seq_len: likewise.
        invert_sigmas: the network is told ``1 - sigma`` and puts out data minus noise (Mochi).
        shift_terminal: the last noise level, if the levels are stretched to it.
        time_shift_type: how ``mu`` shifts, "exponential" or "linear".
        solver: of one evaluation a step, by its name in the notation of plans ("AB2", "UNIPC2",
            "DPM2"), or "E" (Euler).
        plan: a plan to run instead, its notation ("AB2:8@3"), or its JSON as an object.
        sign: -1 if the network's output is the derivative by what ``sigmas`` count, as diffusers
            has it; 1 if it is the negative of that, as of rectified-flow U-Nets (InstaFlow).

    Raises:
        ValueError: if an argument is not as said above.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler"]  # noqa: RUF012  (as diffusers has it)
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
    ) -> None:
        check_options(self.config)
        on_grid(solver, np.linspace(0.0, 1.0, 9))
        self._given = plan_of(plan)
        self._shift = number("shift", shift, 0)
        self.register_to_config(
            plan=json.loads(plan.to_json()) if isinstance(plan, Plan) else plan,
            **dict.fromkeys(NOT_DONE, False),  # pipelines ask
        )
        RunPerThread.__init__(self)

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The scheduler with the configuration of another flow scheduler of diffusers.

        Args:
            config: of the other scheduler, or that scheduler itself, which tells its class too.
            return_unused_kwargs: as in diffusers; keywords that mean nothing here come back then,
                and are refused otherwise.
            **kwargs: override the configuration; ``shift`` may be called ``flow_shift``, too.

        Raises:
            ValueError: if its class is not understood, or set to what this one does not do.
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
        """Make the table of a run; ``timesteps`` and ``sigmas`` follow from it.

        Args:
            num_inference_steps: evaluations; as many as ``sigmas`` or ``timesteps`` if given.
            device: of ``self.timesteps`` and ``self.sigmas``.
            sigmas: noise levels before the shift, descending within (0, 1]; a list or array.
            mu: of the shift, if it is dynamic; otherwise ignored, as some pipelines always pass it.
            timesteps: what to tell the network. Without ``sigmas`` they are the noise levels too,
                and nothing is shifted; with ``invert_sigmas`` they are nothing else.

        Raises:
            ValueError: if an argument is not as said, they contradict one another, there are not as
                many as the plan has evaluations, or it needs a refiner and none is enabled.
        """
        given = {
            name: numbers(name, values)
            for name, values in (("sigmas", sigmas), ("timesteps", timesteps))
            if values is not None
        }
        counts = {name: len(values) for name, values in given.items()}
        if num_inference_steps is not None:
            counts["num_inference_steps"] = _whole(num_inference_steps)
        if len(set(counts.values())) != 1:
            raise ValueError(f"set_timesteps got {counts or 'nothing'}: needs one number of steps")
        count = next(iter(counts.values()))
        if self._given is None:
            plan = pipeline_plan(self.config, self.shift, count, given, mu)
        else:
            plan = self._given
            refined = self.link is not None and self.link.installed
            check_given(plan, count, refined)
            warn_of_timesteps(plan, self.config, self.shift, count, given, mu)
        inverted, n = self.config.invert_sigmas, self.config.num_train_timesteps
        told, levels = (
            (plan.model_times, plan.times) if inverted else (1 - plan.model_times, 1 - plan.times)
        )
        on_device = lambda values: torch.tensor(values, dtype=torch.float32, device=device)
        self._run = Run(plan, on_device(told * n), on_device(levels))

    def set_shift(self, shift: float) -> None:
        """Shift by ``shift`` from the next ``set_timesteps`` on.

        Raises:
            ValueError: if it is not a number above 0, or would change nothing.
        """
        if self._given is not None or self.config.use_dynamic_shifting:
            raise ValueError(
                f"set_shift({shift}) would change nothing: "
                + ("the shift is mu" if self._given is None else "the plan has its own times")
                + "; leave it out"
            )
        self._shift = number("shift", shift, 0)

    @property
    def shift(self) -> float:
        """Of the noise levels, if it is not dynamic and there is no plan."""
        return self._shift

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this timestep: the table from there on is ``Plan.restrict`` of the plan.

        Raises:
            ValueError: if there is no such timestep.
        """
        if self.plan is not None and not 0 <= begin_index < len(self.plan):
            raise ValueError(
                f"begin_index={begin_index}: the timesteps are 0 to {len(self.plan) - 1}"
            )
        run = self._run
        self._run = Run(run.plan, run.timesteps, run.sigmas, begin=begin_index)

    def index_for_timestep(
        self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None
    ) -> int:
        """Which of ``self.timesteps`` this is; of equal numbers only a view of them can tell.

        Args:
            timestep: one number. Of a tensor of whole numbers, the timestep without its fraction.
            schedule_timesteps: to look in instead.

        Raises:
            ValueError: if it is none, or several.
        """
        schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = places(timestep, schedule)
        if len(found) != 1:
            raise ValueError(
                f"timestep={number('timestep', timestep):g}: {len(found) or 'none'} of the "
                f"timesteps {shortened(schedule.tolist())}; pass one of scheduler.timesteps, or "
                "call set_begin_index before"
            )
        return found[0]

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
    ) -> Any:
        """Move ``sample`` by the next row of the plan.

        Args:
            model_output: the network's output after guidance, like ``sample``.
            timestep: the one of ``self.timesteps`` that the network was told; looked up at the
                first step if ``set_begin_index`` has not said where that is.
            sample: the state, of any shape. Computed in float32 at least.
            s_churn: not used, as in FlowMatchEuler.
            s_tmin: likewise.
            s_tmax: likewise.
            s_noise: likewise.
            generator: not used, for plans draw no noise.
            per_token_timesteps: (B, N) of a sample (B, N, C): tokens at ``timestep`` move, those at
                0 are clean and stay. ``model_output`` has the other sign then, as in diffusers.
            return_dict: a ``SchedulerOutput``, or a tuple.

        Returns:
            ``prev_sample`` in the dtype of ``model_output``; with ``per_token_timesteps``, as
            computed. The clean state it points to is afterwards in ``self.predicted``.

        Raises:
            ValueError: if ``timestep`` is an index or another than the next, the plan is at its
                end, the shapes differ, a token is somewhere else, or the network answered where the
                refiner should have.
        """
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output of shape {tuple(model_output.shape)}: must be that of sample, "
                f"{tuple(sample.shape)}"
            )
        k, whole, running = self._run.advance(timestep, self.index_for_timestep)
        run = self._run
        if run.answer is None and self.shown() is not None:
            raise ValueError(
                f"timestep {k} of plan {whole.name!r} is the refiner's, and the network answered: "
                "it is not the one that was enabled; disable(pipe), then enable(pipe, ...) again"
            )
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        # a copy in any case: compiled networks reuse the memory of their outputs
        v = model_output.to(x.dtype) * self.sign
        if per_token_timesteps is not None:
            if self.config.invert_sigmas:
                raise ValueError("per_token_timesteps with invert_sigmas=True: not supported")
            n = self.config.num_train_timesteps
            moving = moving_tokens(per_token_timesteps, sample, run.timesteps[k], 1e-6 * n)
            v = torch.where(moving, -v, 0.0)
        run.predicted = predicted_data(x, v, float(whole.times[k]))
        if k in run.rows:  # else of no use when started in the middle of a step
            row = running.rows[run.rows[k]]
            x = update(row, x, v, run.velocities)
            kept = {**run.velocities, row.k: v}
            run.velocities = {j: u for j, u in kept.items() if j not in row.frees}
        run.index, run.answer = k + 1, None
        self._announce()
        if per_token_timesteps is None:
            x = x.to(model_output.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def shown(self) -> tuple[float, History] | None:
        """If the next row is a refiner's: its time, and (time, velocity) pairs, oldest first."""
        run = self._run
        plan, k = run.running, run.rows.get(run.index or 0)
        if plan is None or k is None or plan.rows[k].evaluator != "refiner":
            return None
        row = plan.rows[k]
        return row.model_time, [(t, run.velocities[j]) for j, t in row.history]

    def scale_noise(
        self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """The state ``(1 - sigma)*sample + sigma*noise`` (B, ...) where the run stands.

        That is at the next step of a run, or at ``set_begin_index`` before its first; if neither is
        known, at ``timestep`` (B,), of ``self.timesteps``.

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
        """``scale_noise`` under the name and order of the pipelines of diffusions."""
        return self.scale_noise(original_samples, timesteps, noise)

    def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
        """``sample`` as it is; pipelines of diffusions ask."""
        return sample

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _whole(steps: object) -> int:
    if not hasattr(steps, "__index__") or (count := operator.index(steps)) < 1:
        raise ValueError(f"num_inference_steps={steps!r}: must be a whole number, at least 1")
    return count
