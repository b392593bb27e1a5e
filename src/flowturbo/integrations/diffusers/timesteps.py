"""The options of the scheduler, and the plan they define on a pipeline's noise levels."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from flowturbo.integrations.diffusers.configs import MU_OPTIONAL
from flowturbo.integrations.diffusers.grid import noise_levels, number
from flowturbo.integrations.diffusers.tables import on_grid
from flowturbo.path import Times
from flowturbo.plan import Plan
from flowturbo.types import ReadOnlyJson

__all__ = ["check_options", "pipeline_plan", "step_count", "warn_of_timesteps"]

Levels: TypeAlias = Mapping[str, Times]  # the pipeline's "sigmas" and "timesteps", if it has any


def check_options(config: ReadOnlyJson) -> None:
    """Raise ``ValueError`` for an option outside its range; see ``FlowTurboScheduler``."""
    for name in ("use_dynamic_shifting", "invert_sigmas", "guider"):
        if not isinstance(config[name], (bool, np.bool_)):
            raise ValueError(f"{name}={config[name]!r}: must be True or False")
    if config["time_shift_type"] not in ("exponential", "linear"):
        raise ValueError(
            f"time_shift_type={config['time_shift_type']!r}: must be 'exponential' or 'linear'"
        )
    if config["sign"] not in (-1, 1):
        raise ValueError(f"sign={config['sign']}: must be -1 or 1")
    number("num_train_timesteps", config["num_train_timesteps"], 0)
    for name in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        if config[name] is not None:
            number(name, config[name])
    if config["shift_terminal"]:
        number("shift_terminal", config["shift_terminal"], 0, 1)


def step_count(steps: object, grid: Levels) -> int:
    """The number of steps: ``steps`` unless None, and the length of each list of ``grid``.

    Raises:
        ValueError: if they disagree, there are none, or ``steps`` is not a whole number above 0.
    """
    counts = {name: len(values) for name, values in grid.items()}
    if steps is not None:
        if not hasattr(steps, "__index__") or (count := operator.index(steps)) < 1:
            raise ValueError(f"num_inference_steps={steps!r}: must be a whole number, at least 1")
        counts["num_inference_steps"] = count
    if len(set(counts.values())) != 1:
        raise ValueError(f"set_timesteps got {counts or 'nothing'}: needs one number of steps")
    return next(iter(counts.values()))


def pipeline_plan(
    config: ReadOnlyJson, shift: float, count: int, grid: Levels, mu: float | None
) -> Plan:
    """The solver of ``config`` on the pipeline's own noise levels.

    Raises:
        ValueError: if the shift is dynamic and there is no ``mu``.
    """
    model_times = None
    if "timesteps" in grid:
        model_times = 1 - grid["timesteps"] / config["num_train_timesteps"]
    if model_times is not None and "sigmas" not in grid:
        levels = noise_levels(1 - model_times, 1.0, None)
    else:
        sigmas = grid.get("sigmas", np.linspace(1, 1 / count, count))
        levels = noise_levels(sigmas, _factor(config, shift, mu), config["shift_terminal"])
    times = np.append(1 - levels, 1.0)
    return on_grid(config["solver"], times, None if config["invert_sigmas"] else model_times)


def _factor(config: ReadOnlyJson, shift: float, mu: float | None) -> float:
    """The factor of the shift of the noise levels."""
    if not config["use_dynamic_shifting"]:
        return shift
    if mu is None:
        if MU_OPTIONAL in config:
            return shift
        raise ValueError(
            "use_dynamic_shifting=True: the shift depends on the image size; pass mu=..., or if "
            "the pipeline has none, use a fixed shift: FlowTurboScheduler.from_config(config, "
            "use_dynamic_shifting=False, shift=...)"
        )
    if config["time_shift_type"] == "linear":
        return number("mu", mu, 0)
    return float(np.exp(number("mu", mu, -700, 700)))


def warn_of_timesteps(
    plan: Plan, config: ReadOnlyJson, shift: float, count: int, grid: Levels, mu: float | None
) -> None:
    """Warn if timesteps differ from noise levels in the pipeline, but not in the plan."""
    if len(grid) < 2 or not np.array_equal(plan.model_times, plan.times[:-1]):
        return
    try:
        theirs = pipeline_plan(config, shift, count, grid, mu)
    except ValueError:  # of a grid that the plan replaces
        return
    if np.abs(theirs.model_times - theirs.times[:-1]).max() > 0.01:
        warnings.warn(
            "the pipeline's timesteps are not 1000 times its noise levels, "
            f"and those of plan {plan.name!r} are: set model_times=... of the plan, as "
            "Plan.from_scheduler(scheduler, timesteps=..., sigmas=..., mu=...) does",
            stacklevel=4,
        )
