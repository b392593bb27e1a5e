"""A scheduler of diffusers that runs any plan, one evaluation for each of its timesteps.

diffusers counts noise levels ``sigma = 1 - t`` down from 1, tells networks ``1000*sigma`` and takes
``u = -v`` from them. ``step`` moves the sample it is given by the plan's row,

    x = x + sum over j <= k of W[k, j] * v_j,

so what a pipeline does to the sample between steps (inpainting, callbacks) stays. The velocities
are kept in a dictionary that is replaced and never changed: ``copy.copy(scheduler)`` is a scheduler
of its own, and requests that have a copy each can share all the rest of a pipeline.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo.integrations.diffusers._shim import ConfigMixin, SchedulerMixin, SchedulerOutput
from flowturbo.integrations.diffusers.grid import noise_levels, number, numbers
from flowturbo.integrations.diffusers.tables import check_given, on_grid, plan_of, rows_from
from flowturbo.path import predicted_data
from flowturbo.plan import Plan
from flowturbo.sampler import History, moved

__all__ = ["FlowTurboScheduler"]

REFUSED = {  # what other flow schedulers can be set to and this one is not
    "use_karras_sigmas": "other spacings are for the pipeline's call to give, as sigmas=...",
    "use_exponential_sigmas": "other spacings are for the pipeline's call to give, as sigmas=...",
    "use_beta_sigmas": "other spacings are for the pipeline's call to give, as sigmas=...",
    "stochastic_sampling": "plans draw no noise",
    "invert_sigmas": "time that runs the other way is not supported",
    "scale_factors": "states that grow on the way are not supported",
}


class FlowTurboScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Takes the place of ``FlowMatchEulerDiscreteScheduler`` in flow pipelines.

    Without a plan, ``solver`` runs on the pipeline's noise levels: Adams-Bashforth of order 2, one
    evaluation a step. A plan brings its own times, which win over shift, ``mu`` and ``sigmas``;
    ``num_inference_steps`` must be its number of evaluations, model and refiner together.

    Args:
        num_train_timesteps: what the network is told at noise level 1.
        shift: of the noise levels, above 0, see ``integrations.diffusers.grid``.
        use_dynamic_shifting: the shift comes with each picture, as ``mu``.
        base_shift: for the pipeline, which makes ``mu`` of it.
        max_shift: likewise.
        base_image_seq_len: likewise.
        max_image_seq_len: likewise.
        shift_terminal: the last noise level, if the levels are stretched to it.
        time_shift_type: how ``mu`` shifts, "exponential" or "linear".
        solver: "AB2", "AB3", "AB4", "UNIPC2", "UNIPC3", "DPM2", "DPM3" or "E" (Euler).
        plan: a plan to run instead, its notation ("AB2:8@3"), or its JSON as an object.
        sign: the network's output is ``sign*dx/dt``: -1 as diffusers has it, 1 for rectified-flow
            U-Nets (InstaFlow).

    Raises:
        ValueError: if an argument is not as said above.
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler"]  # noqa: RUF012  (as diffusers has it)
    order = 1
    init_noise_sigma = 1.0

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int | None = 256,
        max_image_seq_len: int | None = 4096,
        shift_terminal: float | None = None,
        time_shift_type: str = "exponential",
        solver: str = "AB2",
        plan: Plan | str | Mapping[str, Any] | None = None,
        sign: int = -1,
    ) -> None:
        if time_shift_type not in ("exponential", "linear"):
            raise ValueError(
                f"time_shift_type={time_shift_type!r}: must be 'exponential' or 'linear'"
            )
        if sign not in (-1, 1):
            raise ValueError(f"sign={sign}: must be -1 or 1")
        number("num_train_timesteps", num_train_timesteps, 0)
        number("shift", shift, 0)
        if shift_terminal:
            number("shift_terminal", shift_terminal, 0, 1)
        on_grid(solver, np.linspace(0.0, 1.0, 9))
        self._given = plan_of(plan)
        self.register_to_config(
            num_train_timesteps=num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=use_dynamic_shifting,
            base_shift=base_shift,
            max_shift=max_shift,
            base_image_seq_len=base_image_seq_len,
            max_image_seq_len=max_image_seq_len,
            shift_terminal=shift_terminal,
            time_shift_type=time_shift_type,
            solver=solver,
            plan=json.loads(plan.to_json()) if isinstance(plan, Plan) else plan,
            sign=sign,
        )
        self.timesteps = self.sigmas = torch.empty(0)
        self.num_inference_steps: int | None = None
        self.plan: Plan | None = None  # of the timesteps that are set
        self.link: Any = None  # to the hook of a refiner
        self._restart(None)

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The scheduler with the configuration of another flow scheduler of diffusers.

        Raises:
            ValueError: if that is no flow scheduler, or set to what this one does not do.
        """
        if isinstance(config, Mapping):
            name = config.get("_class_name", "the configuration")
            kind = config.get("prediction_type", "flow_prediction")
            if kind != "flow_prediction" or not config.get("use_flow_sigmas", True):
                raise ValueError(
                    f"{name} with prediction_type={kind!r}: the scheduler of a diffusion, not a "
                    "flow; if the network is a flow all the same, take FlowTurboScheduler(), with "
                    "sign=1 if it predicts data minus noise"
                )
            for key, reason in REFUSED.items():
                value = kwargs.get(key, config.get(key))
                if value:
                    raise ValueError(
                        f"{name} with {key}={value}: {reason}; to do without, "
                        f"from_config(config, {key}=False)"
                    )
            if "shift" not in config and "flow_shift" in config:
                kwargs.setdefault("shift", config["flow_shift"])
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    # -- the timesteps ------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Make the table of a run; ``timesteps`` and ``sigmas`` follow from it.

        Args:
            num_inference_steps: evaluations; as many as ``sigmas`` or ``timesteps`` if given.
            device: of ``self.timesteps``; ``self.sigmas`` stay on the CPU.
            sigmas: noise levels before the shift, descending within (0, 1]; a list or array.
            mu: of the shift, if it is dynamic; otherwise ignored, as some pipelines always pass it.
            timesteps: what to tell the network. Without ``sigmas`` they are the noise levels too,
                and nothing is shifted.

        Raises:
            ValueError: if an argument is not as said, they contradict one another or the plan, or
                the plan needs a refiner and none is enabled.
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
            plan = self._of_pipeline(count, given, mu)
        else:
            plan = self._given
            refined = self.link is not None and self.link.installed
            check_given(plan, count, timesteps, refined)
        self.plan, self.num_inference_steps = plan, len(plan)
        told = (1 - plan.told) * self.config.num_train_timesteps
        self.timesteps = torch.tensor(told, dtype=torch.float32, device=device)
        self.sigmas = torch.tensor(1 - plan.times, dtype=torch.float32)
        self._restart(None)

    def _of_pipeline(self, count: int, given: Mapping[str, Any], mu: float | None) -> Plan:
        """The solver on the pipeline's noise levels."""
        config, told = self.config, None
        if "timesteps" in given:
            told = 1 - given["timesteps"] / config.num_train_timesteps
        if told is not None and "sigmas" not in given:
            levels = noise_levels(1 - told, 1.0, None)
        else:
            factor = config.shift
            if config.use_dynamic_shifting:
                if mu is None:
                    raise ValueError("use_dynamic_shifting=True: the shift needs mu; pass mu=...")
                exponential = config.time_shift_type == "exponential"
                factor = number("mu", mu, -700, 700) if exponential else number("mu", mu, 0)
                factor = float(np.exp(factor)) if exponential else factor
            sigmas = given.get("sigmas", np.linspace(1, 1 / count, count))
            levels = noise_levels(sigmas, factor, config.shift_terminal)
        return on_grid(config.solver, np.append(1 - levels, 1.0), told)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this timestep: the table from there on is ``Plan.restrict`` of the plan.

        Raises:
            ValueError: if there is no such timestep.
        """
        if self.plan is not None and not 0 <= begin_index < len(self.plan):
            raise ValueError(
                f"begin_index={begin_index}: the timesteps are 0 to {len(self.plan) - 1}"
            )
        self._restart(begin_index)

    @property
    def begin_index(self) -> int | None:
        """Where the run starts, if that was said."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The timestep that the next ``step`` takes; None before the first."""
        return self._step_index

    def _restart(self, begin: int | None) -> None:
        self._begin_index = begin
        self._step_index: int | None = None
        self._velocities: dict[int, Tensor] = {}
        self._running: Plan | None = None
        self._rows: dict[int, int] = {}
        self.predicted: Tensor | None = None
        self.answer: Tensor | None = None
        self._announce()

    def _announce(self) -> None:
        """Tell the hook that this is the scheduler at work in this thread."""
        if self.link is not None:
            self.link.here.scheduler = self

    def _start(self, index: int) -> None:
        if self.plan is None:
            raise ValueError("step before set_timesteps: no timesteps are set; call that first")
        self._step_index = index
        self._running = self.plan.restrict(float(self.plan.times[index]))
        self._rows = rows_from(self.plan, index, self._running)

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """Which of ``self.timesteps`` this is; of equal numbers only a view of them can tell.

        Raises:
            ValueError: if it is none, or several.
        """
        if isinstance(timestep, Tensor):
            own, other = (t.untyped_storage().data_ptr() for t in (self.timesteps, timestep))
            if own == other:  # as loops over them have it: no wait for the device
                return int(timestep.storage_offset())
        asked = number("timestep", timestep)
        found = (self.timesteps == asked).nonzero().flatten().tolist()
        if len(found) != 1:
            raise ValueError(
                f"timestep={asked}: {len(found) or 'none'} of the timesteps "
                f"{self.timesteps.tolist()}; pass one of scheduler.timesteps, or call "
                "set_begin_index before"
            )
        return int(found[0])

    # -- the run ------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> Any:
        """Move ``sample`` by the next row of the plan.

        Args:
            model_output: the network's output after guidance, like ``sample``.
            timestep: the one of ``self.timesteps`` that the network was told; looked up at the
                first step if ``set_begin_index`` has not said where that is.
            sample: the state, of any shape. Computed in float32 at least.
            return_dict: a ``SchedulerOutput``, or a tuple.

        Returns:
            ``prev_sample`` in the dtype of ``model_output``. The clean image it points to is
            afterwards in ``self.predicted``.

        Raises:
            ValueError: if ``timestep`` is whole numbers (an index), the plan is at its end, the
                shapes differ, or the network answered where the refiner should have.
        """
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output of shape {tuple(model_output.shape)}: must be that of sample, "
                f"{tuple(sample.shape)}"
            )
        floating = timestep.is_floating_point() if isinstance(timestep, Tensor) else True
        if not floating or isinstance(timestep, (int, np.integer)):
            raise ValueError(
                f"timestep={timestep}: whole numbers are not supported, they look like an index; "
                "pass one of scheduler.timesteps"
            )
        if self._step_index is None:
            begin = self._begin_index
            self._start(self.index_for_timestep(timestep) if begin is None else begin)
        k, whole, running = self._step_index, self.plan, self._running
        assert k is not None
        assert whole is not None
        assert running is not None
        if k >= len(whole):
            raise ValueError(f"all {k} steps are done; call set_timesteps for another run")
        if self.answer is None and self.shown() is not None:
            raise ValueError(
                f"timestep {k} of plan {whole.name!r} is the refiner's, and the network answered: "
                "it is not the one that was enabled; disable(pipe), then enable(pipe, ...) again"
            )
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        # a copy in any case: compiled networks reuse the memory of their outputs
        v = model_output.to(x.dtype) * self.config.sign
        self.predicted = predicted_data(x, v, float(whole.times[k]))
        if k in self._rows:  # else of no use when started in the middle of a step
            row = running.rows[self._rows[k]]
            x = moved(row, x, v, self._velocities)
            kept = {**self._velocities, row.k: v}
            self._velocities = {j: u for j, u in kept.items() if j not in row.released}
        self._step_index, self.answer = k + 1, None
        self._announce()
        x = x.to(model_output.dtype)
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def shown(self) -> tuple[float, History] | None:
        """If the next row is a refiner's: its time, and (time, velocity) pairs, oldest first."""
        plan, k = self._running, self._rows.get(self._step_index or 0)
        if plan is None or k is None or plan.rows[k].evaluator != "refiner":
            return None
        row = plan.rows[k]
        return row.told, [(t, self._velocities[j]) for j, t in row.seen]

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
        index = self._begin_index if self._step_index is None else self._step_index
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

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """``sample`` as it is; pipelines of diffusions ask."""
        return sample

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _whole(steps: Any) -> int:
    if not hasattr(steps, "__index__") or (count := operator.index(steps)) < 1:
        raise ValueError(f"num_inference_steps={steps!r}: must be a whole number, at least 1")
    return count
