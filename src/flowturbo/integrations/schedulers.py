r"""Flow schedulers of diffusers as tables.

diffusers counts noise levels :math:`\sigma = 1 - t` down from 1 and gives the velocity the other
sign, :math:`u = -v`. A deterministic flow scheduler is a fixed linear map: its ``step`` hands back
a combination of the states and velocities it was shown. So the map is read off by showing it unit
vectors, in float64, and checked on random ones. On the linear path the state's own coefficient is
1, and what remains is the row of a plan.

The plan's times are ``1 - sigma`` of the scheduler's noise levels. Where these begin below 1 (.999,
or 1 - 1e-6) the plan starts there, and takes the noise as it is, as the scheduler's own loop does.
What the model is told, ``1 - timestep / num_train_timesteps``, is kept apart, for several
schedulers tell whole numbers.

With ``invert_sigmas`` a scheduler counts as this library does, and nothing is turned round.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["from_scheduler"]

Array: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | npt.NDArray[Any] | None


def from_scheduler(
    scheduler: Any,
    steps: int | None = None,
    *,
    sigmas: Numbers = None,
    mu: float | None = None,
    timesteps: Numbers = None,
) -> dict[str, Any]:
    """The scheduler's table, as arguments of ``Plan``; see ``Plan.from_scheduler``."""
    name = type(scheduler).__name__
    given = {"sigmas": sigmas, "mu": mu, "timesteps": timesteps}
    given = {key: value for key, value in given.items() if value is not None}
    config = _check(scheduler, name, mu)
    lengths = {len(given[key]) for key in ("sigmas", "timesteps") if key in given}
    if steps is None and not lengths:
        steps = 8
    elif len(lengths | {steps} - {None}) > 1:
        raise ValueError(f"steps={steps} for {sorted(lengths)} sigmas or timesteps; pass one")
    ready = _set(scheduler, name, None if lengths else steps, given)
    levels = np.asarray(ready.sigmas, dtype=np.float64)
    told = np.asarray(ready.timesteps, dtype=np.float64) / config.get("num_train_timesteps", 1000)
    if len(levels) != len(told) + 1 or levels.min() < 0 or levels.max() > 1:
        raise ValueError(
            f"{name}: {len(levels)} noise levels from {levels[0]:g} to {levels[-1]:g} for {len(told)} "
            "timesteps; a flow scheduler has one more than timesteps, all in [0, 1]"
        )
    inverted = bool(config.get("invert_sigmas"))
    if not inverted:
        levels, told = 1 - levels, 1 - told
    told = np.where(np.abs(told - levels[:-1]) < 1e-6, levels[:-1], told)
    return {
        "times": levels,
        "told": told,
        "evaluators": ("model",) * len(told),
        "weights": _weights(ready, name, levels, 1.0 if inverted else -1.0),
        "name": f"{name.removesuffix('Scheduler')}, {len(told)} evaluations",
        "info": {"scheduler": name, "config": _plain(config), "steps": steps, **_plain(given)},
    }


def _check(scheduler: Any, name: str, mu: float | None) -> Mapping[str, Any]:
    """The scheduler's config; refused where it says that there is no table."""
    config = getattr(scheduler, "config", None)
    parts = ("set_timesteps", "step", "timesteps", "sigmas")
    if not isinstance(config, Mapping) or not all(hasattr(scheduler, part) for part in parts):
        raise ValueError(f"{name}: not a flow scheduler; it needs config, {', '.join(parts)}")
    dynamic = bool(config.get("use_dynamic_shifting"))
    kind = config.get("prediction_type", "flow_prediction")
    algorithm = str(config.get("algorithm_type"))
    reasons = {
        f"prediction_type={kind!r}: only flow schedulers have a table; take "
        "prediction_type='flow_prediction' and use_flow_sigmas=True": kind != "flow_prediction",
        "use_flow_sigmas=False: its noise levels are not those of the linear path; set it to "
        "True": not config.get("use_flow_sigmas", True),
        "predict_x0=False: it has no flow prediction; set it to True": not config.get(
            "predict_x0", True
        ),
        "thresholding=True clips the predicted image, which is not linear; set it to "
        "False": config.get("thresholding"),
        "stochastic_sampling=True draws new noise; set it to False": config.get(
            "stochastic_sampling"
        ),
        f"algorithm_type={algorithm!r} draws new noise; take "
        f"{algorithm.removeprefix('sde-')!r}": algorithm.startswith("sde"),
        "use_dynamic_shifting=True: the shift depends on the image; pass mu=...": (
            dynamic and mu is None
        ),
        f"mu={mu} has no effect with use_dynamic_shifting=False; leave it out": (
            not dynamic and mu is not None
        ),
    }
    for reason, refused in reasons.items():
        if refused:
            raise ValueError(f"{name} with {reason}")
    return config


def _set(scheduler: Any, name: str, steps: int | None, given: Mapping[str, Any]) -> Any:
    """A copy of the scheduler, set to its timesteps, its noise levels in float64."""
    known = inspect.signature(scheduler.set_timesteps).parameters
    for key in given:
        if key not in known:
            raise ValueError(f"{key}=...: {name}.set_timesteps does not take it; leave it out")
    ready = copy.deepcopy(scheduler)
    try:
        ready.set_timesteps(**({} if steps is None else {"num_inference_steps": steps}), **given)
    except Exception as error:
        what = ", ".join(["steps", *given] if steps is not None else given)
        raise ValueError(f"{name}.set_timesteps refuses the {what} given: {error!r}") from error
    wanted = given.get("timesteps")
    if wanted is not None and not np.allclose(ready.timesteps, wanted):
        raise ValueError(f"{name} takes timesteps={wanted} and does not use them; leave them out")
    ready.sigmas = ready.sigmas.double()
    return ready


def _run(scheduler: Any, name: str, states: Array, velocities: Array) -> Array:
    """What each step hands back, (K, n), shown ``states`` and ``velocities`` (K, n)."""
    scheduler = copy.deepcopy(scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it looks its timestep up, and takes the second of two
    rows = []
    for k, t in enumerate(scheduler.timesteps):
        x, u = (torch.from_numpy(array[k : k + 1].copy()) for array in (states, velocities))
        try:
            rows.append(scheduler.step(u, t, x, return_dict=False)[0][0].numpy())
        except Exception as error:
            raise ValueError(f"{name}.step fails at evaluation {k}: {error!r}") from error
    return np.stack(rows)


def _weights(scheduler: Any, name: str, times: Array, sign: float) -> Array:
    """The (K, K) weights of the scheduler; ``sign`` times its velocity is ours."""
    n = len(times) - 1
    units = np.eye(2 * n)  # a state and a velocity for each step, all independent
    response = _run(scheduler, name, units[:n], sign * units[n:])
    for k in np.flatnonzero(~np.isfinite(response).all(1))[:1]:
        raise ValueError(
            f"{name} gives NaN at evaluation {k}, from t={times[k]:g} to {times[k + 1]:g}; towards "
            "t=1 that is what bh1, or a higher order to the end, does: take solver_type='bh2' and "
            "lower_order_final=True"
        )
    random = np.random.default_rng(0).normal(scale=10.0, size=(2 * n, 16))
    seen = _run(scheduler, name, random[:n], sign * random[n:])
    error = np.abs(seen - response @ random).max()
    if not error <= 1e-3 * np.abs(response).sum(1).max():
        raise ValueError(
            f"{name}: what it does to sums is off by {error:.2g}; it is not linear or draws noise"
        )
    states = np.zeros((n + 1, n + 1))  # each as a sum of the first and the velocities
    states[0, 0] = 1
    for k in range(n):
        states[k + 1] = response[k, :n] @ states[:n]
        states[k + 1, 1:] += response[k, n:]
    weights = np.diff(states[:, 1:], axis=0)
    off = np.abs(states[:, 0] - 1).max(), np.abs(weights.sum(1) - np.diff(times)).max()
    if max(off) > 1e-6:
        raise ValueError(
            f"{name}: not a solver of the linear path; it scales the state by 1 + {off[0]:.2g}, and "
            f"steps miss their length by {off[1]:.2g}"
        )
    return weights


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that JSON can hold, without those of a diffusion's betas."""
    plain = {}
    for key, value in values.items():
        if key.startswith(("_", "beta", "trained")):
            continue
        value = np.asarray(value).tolist() if isinstance(value, (np.ndarray, list)) else value
        if isinstance(value, (str, int, list)) or (isinstance(value, float) and math.isfinite(value)):
            plain[key] = value
    return plain
