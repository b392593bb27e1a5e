"""The options of the scheduler, and the plan that they make of a pipeline's timesteps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from flowturbo.integrations.diffusers.configs import MU_OPTIONAL
from flowturbo.integrations.diffusers.grid import noise_levels, number
from flowturbo.integrations.diffusers.tables import on_grid
from flowturbo.path import Times
from flowturbo.plan import Plan

__all__ = ["check_options", "pipeline_plan", "warn_of_timesteps"]

Config: TypeAlias = Any  # of the scheduler: its options as attributes
Given: TypeAlias = Mapping[str, Times]  # the pipeline's "sigmas" and "timesteps", where it has any


def check_options(config: Config) -> None:
    """Raise ``ValueError`` for an option outside its range; see ``FlowTurboScheduler``."""
    for name in ("use_dynamic_shifting", "invert_sigmas"):
        if not isinstance(config[name], (bool, np.bool_)):
            raise ValueError(f"{name}={config[name]!r}: must be True or False")
    if config.time_shift_type not in ("exponential", "linear"):
        raise ValueError(
            f"time_shift_type={config.time_shift_type!r}: must be 'exponential' or 'linear'"
        )
    if config.sign not in (-1, 1):
        raise ValueError(f"sign={config.sign}: must be -1 or 1")
    number("num_train_timesteps", config.num_train_timesteps, 0)
    for name in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        if config[name] is not None:
            number(name, config[name])
    if config.shift_terminal:
        number("shift_terminal", config.shift_terminal, 0, 1)


def pipeline_plan(config: Config, shift: float, count: int, given: Given, mu: float | None) -> Plan:
    """The solver of ``config`` on the pipeline's own noise levels.

    Raises:
        ValueError: if the shift is dynamic and there is no ``mu``.
    """
    told = None
    if "timesteps" in given:
        told = 1 - given["timesteps"] / config.num_train_timesteps
    if told is not None and "sigmas" not in given:
        levels = noise_levels(1 - told, 1.0, None)
    else:
        factor = shift
        if mu is None and config.use_dynamic_shifting and MU_OPTIONAL not in config:
            raise ValueError(
                "use_dynamic_shifting=True: the shift comes with each picture; pass mu=..., or "
                "if the pipeline knows none, shift all alike: FlowTurboScheduler.from_config("
                "config, use_dynamic_shifting=False, shift=...)"
            )
        if mu is not None and config.use_dynamic_shifting:
            exponential = config.time_shift_type == "exponential"
            factor = number("mu", mu, -700, 700) if exponential else number("mu", mu, 0)
            factor = float(np.exp(factor)) if exponential else factor
        sigmas = given.get("sigmas", np.linspace(1, 1 / count, count))
        levels = noise_levels(sigmas, factor, config.shift_terminal)
    return on_grid(
        config.solver, np.append(1 - levels, 1.0), None if config.invert_sigmas else told
    )


def warn_of_timesteps(
    plan: Plan, config: Config, shift: float, count: int, given: Given, mu: float | None
) -> None:
    """Warn if the pipeline's timesteps are not the noise levels, and the plan's are."""
    if len(given) < 2 or not np.array_equal(plan.model_times, plan.times[:-1]):
        return
    try:
        theirs = pipeline_plan(config, shift, count, given, mu)
    except ValueError:  # of a grid that the plan replaces
        return
    if np.abs(theirs.model_times - theirs.times[:-1]).max() > 0.01:
        warnings.warn(
            "the pipeline's timesteps are not 1000 times its noise levels, "
            f"and those of plan {plan.name!r} are: give the plan model_times=..., as "
            "Plan.from_scheduler(scheduler, timesteps=..., sigmas=..., mu=...) does",
            stacklevel=4,
        )
