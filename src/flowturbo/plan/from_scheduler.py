"""Flow schedulers of diffusers as tables.

diffusers counts noise levels ``sigma = 1 - t`` down from 1, and its velocity has the opposite
sign, ``u = -v``. A deterministic flow scheduler is a fixed linear map: its ``step`` returns a
linear combination of the states and velocities so far. The map is therefore read off its response
to unit vectors, in float64, and checked on random ones. On the linear path the state's own
coefficient is 1, and the other coefficients are the row of a plan.

The plan's times are ``1 - sigma`` of the scheduler's noise levels. Where these begin below 1 (.999,
or 1 - 1e-6) the plan starts there from unscaled noise, as the scheduler's own loop does. The times
of the model, ``1 - timestep / num_train_timesteps``, are kept separately, since several schedulers
round timesteps to whole numbers.

The scheduler's own loop in float32 differs by its rounding errors. They are below 2e-6 except for
DEIS, which divides by ``t``: with a first time of 0.0003 (shift 3) a step of it multiplies the
state by a factor 1.2e-4 off 1, which is no weight of any velocity; its weights agree to 3e-7.

With ``invert_sigmas`` a scheduler has this library's convention, and nothing is converted.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from flowturbo.checks import number, shown
from flowturbo.plan.builder import Columns
from flowturbo.plan.checks import numbers
from flowturbo.types import JsonObject, ReadOnlyJson, Scheduler

__all__ = ["from_scheduler"]

Array: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | npt.NDArray[np.generic] | None


def from_scheduler(
    scheduler: Scheduler,
    steps: int | None = None,
    *,
    sigmas: Numbers = None,
    mu: float | None = None,
    timesteps: Numbers = None,
) -> Columns:
    """The scheduler's table, as arguments of ``Plan``; see ``Plan.from_scheduler``."""
    if not (hasattr(scheduler, "config") or hasattr(scheduler, "step")):
        raise ValueError(f"scheduler={shown(scheduler)}: must be a flow scheduler of diffusers")
    name = type(scheduler).__name__
    if mu is not None:
        mu = number("mu", mu)
    lists = {"sigmas": sigmas, "timesteps": timesteps}
    grid: JsonObject = {k: np.atleast_1d(numbers(k, v)) for k, v in lists.items() if v is not None}
    lengths = {len(v) for v in grid.values()}
    if mu is not None:
        grid["mu"] = mu
    config = _check(scheduler, name, mu)
    if steps is None:
        steps = min(lengths, default=8)
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    if not whole or not 1 <= steps <= 1000:
        raise ValueError(f"steps={steps!r}: must be a whole number from 1 to 1000")
    if lengths - {steps}:
        raise ValueError(f"steps={steps}, and {max(lengths)} sigmas or timesteps; pass one of them")
    ready = _set(scheduler, name, {} if lengths else {"num_inference_steps": int(steps)}, grid)
    levels = np.asarray(ready.sigmas, dtype=np.float64)
    scale = config.get("num_train_timesteps", 1000)
    model_times = np.asarray(ready.timesteps, dtype=np.float64) / scale
    n = len(model_times)
    if len(levels) != n + 1 or levels.min() < 0 or levels.max() > 1:
        raise ValueError(
            f"{name}: {n} timesteps, {len(levels)} noise levels in {levels.min():g} .. "
            f"{levels.max():g}; a flow scheduler has one level more than timesteps, all in [0, 1]"
        )
    inverted = bool(config.get("invert_sigmas"))
    if not inverted:
        levels, model_times = 1 - levels, 1 - model_times
    near = np.abs(model_times - levels[:-1]) < 1e-6
    return {
        "times": levels,
        "model_times": np.where(near, levels[:-1], model_times),
        "evaluators": ("model",) * n,
        "weights": _weights(ready, name, levels, 1.0 if inverted else -1.0),
        "name": f"{name.removesuffix('Scheduler')}, {n} evaluations",
        "info": {"scheduler": name, "config": _json(config), "steps": int(steps), **_json(grid)},
    }


def _check(scheduler: Scheduler, name: str, mu: float | None) -> ReadOnlyJson:
    """The scheduler's config; refused if its options rule out a table."""
    config = getattr(scheduler, "config", None)
    parts = ("set_timesteps", "step", "timesteps", "sigmas")
    missing = [part for part in parts if not hasattr(scheduler, part)]
    if missing or not isinstance(config, Mapping):
        missing = missing or ["config"]
        raise ValueError(f"{name}: not a flow scheduler; it has no {' or '.join(missing)}")
    if "r_timestep" in inspect.signature(scheduler.step).parameters:
        raise ValueError(f"{name}: for networks that depend on the end of a step, which is no flow")
    dynamic = bool(config.get("use_dynamic_shifting"))
    kind = config.get("prediction_type", "flow_prediction")
    algorithm = str(config.get("algorithm_type"))
    flow = "set prediction_type='flow_prediction' and use_flow_sigmas=True, if the model is a flow"
    reasons = [
        (kind != "flow_prediction", f"prediction_type={kind!r}: not a flow; {flow}"),
        (not config.get("use_flow_sigmas", True), f"use_flow_sigmas=False: not a flow; {flow}"),
        (not config.get("predict_x0", True), "predict_x0=False: not for flows; set it to True"),
        (config.get("thresholding"), "thresholding=True: it is not linear; set it to False"),
        (
            config.get("stochastic_sampling"),
            "stochastic_sampling=True: it is stochastic; set it to False",
        ),
        (
            algorithm.startswith("sde"),
            f"algorithm_type={algorithm!r}: it is stochastic; use {algorithm[4:]!r}",
        ),
        (
            dynamic and mu is None,
            "use_dynamic_shifting=True: the shift depends on the image size; pass mu=...",
        ),
        (
            not dynamic and mu is not None,
            f"use_dynamic_shifting=False: mu={mu} has no effect; leave it out",
        ),
    ]
    for refused, reason in reasons:
        if refused:
            raise ValueError(f"{name} with {reason}")
    return config


def _set(
    scheduler: Scheduler, name: str, steps: Mapping[str, int], grid: ReadOnlyJson
) -> Scheduler:
    """A copy of the scheduler with its timesteps set, and noise levels in float64."""
    known = inspect.signature(scheduler.set_timesteps).parameters
    for key in grid:
        if key not in known:
            raise ValueError(f"{key}=...: {name}.set_timesteps does not take it; leave it out")
    ready = copy.deepcopy(scheduler)
    try:
        ready.set_timesteps(**steps, **grid)
    except Exception as error:
        what = ", ".join([*steps, *grid])
        raise ValueError(f"{name}.set_timesteps refuses these {what}: {error!r}") from error
    wanted = grid.get("timesteps")
    if wanted is not None and not np.allclose(ready.timesteps, wanted):
        raise ValueError(f"{name} accepts timesteps={wanted} but ignores them; leave them out")
    ready.sigmas = ready.sigmas.double()
    return ready


def _run(scheduler: Scheduler, name: str, states: Array, velocities: Array) -> Array:
    """The results of all steps, (K, n), on ``states`` and ``velocities`` (K, n)."""
    scheduler = copy.deepcopy(scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(
            0
        )  # else it looks up its timestep, and finds the second of equal ones
    rows = []
    for k, t in enumerate(scheduler.timesteps):
        x, u = (torch.from_numpy(array[k : k + 1].copy()) for array in (states, velocities))
        try:
            rows.append(scheduler.step(u, t, x, return_dict=False)[0][0].numpy())
        except Exception as error:
            raise ValueError(f"{name}.step fails at evaluation {k}: {error!r}") from error
    return np.stack(rows)


def _weights(scheduler: Scheduler, name: str, times: Array, sign: float) -> Array:
    """The (K, K) weights of the scheduler; ``sign`` times its velocity is ours."""
    n = len(times) - 1
    units = np.eye(2 * n)  # a state and a velocity for each step, all independent
    response = _run(scheduler, name, units[:n], sign * units[n:])
    for k in np.flatnonzero(~np.isfinite(response).all(1))[:1]:
        raise ValueError(
            f"{name} gives NaN at evaluation {k} of {n}, from t={times[k]:g} to {times[k + 1]:g}; "
            "at the last, set solver_type='bh2' and lower_order_final=True"
        )
    random = np.random.default_rng(0).normal(scale=10.0, size=(2 * n, 16))
    result = _run(scheduler, name, random[:n], sign * random[n:])
    error = np.abs(result - response @ random).max()
    if not error <= 1e-3 * np.abs(response).sum(1).max():
        raise ValueError(
            f"{name}: off by {error:.2g} from a linear map; it is nonlinear or stochastic"
        )
    states = np.zeros((n + 1, n + 1))  # each as coefficients of the first and the velocities
    states[0, 0] = 1
    for k in range(n):
        states[k + 1] = response[k, :n] @ states[:n]
        states[k + 1, 1:] += response[k, n:]
    weights = np.diff(states[:, 1:], axis=0)
    off = np.abs(states[:, 0] - 1).max(), np.abs(weights.sum(1) - np.diff(times)).max()
    if max(off) > 1e-6:
        raise ValueError(
            f"{name}: not a solver of the linear path; the state's factor is {off[0]:.2g} off 1, a "
            f"step {off[1]:.2g} off its length"
        )
    return weights


def _json(values: ReadOnlyJson) -> JsonObject:
    """The entries that JSON can represent, without the betas of a diffusion."""
    entries = {}
    for key, value in values.items():
        if key.startswith(("_", "beta", "trained")):
            continue
        value = np.asarray(value).tolist() if isinstance(value, (np.ndarray, list)) else value
        if isinstance(value, (str, int, list)) or (
            isinstance(value, float) and math.isfinite(value)
        ):
            entries[key] = value
    return entries
