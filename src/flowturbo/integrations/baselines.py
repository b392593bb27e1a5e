"""Samplers of other libraries on our fields, as baselines of benchmarks.

Each is used as its documentation suggests, with both branches of guidance in one batch, the
library's own loop or step, and the same number of model evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from flowturbo.field import Field
from flowturbo.tree import map_condition
from flowturbo.types import Condition, JsonObject, Time

__all__ = ["baselines"]

Velocity = Callable[[Tensor, Time], Tensor]
Solve = Callable[[Velocity, Tensor], Tensor]

INSTALL = {
    "diffusers": "pip install 'flowturbo[diffusers]'",
    "flow_matching": "pip install flow_matching",
    "torchdiffeq": "pip install torchdiffeq",
}


def baselines(evaluations: int) -> tuple[dict[str, Callable[..., Tensor]], dict[str, str]]:
    """Samplers with this number of evaluations by name, and how to install those that are missing.

    A sampler is called ``(field, x, cond, null, guidance) -> x1`` with the unguided field, and with
    ``null`` None if guidance is off. Methods with two evaluations per step are omitted if the
    number is odd.
    """
    n, even = evaluations, evaluations % 2 == 0
    found: dict[str, Solve] = {f"plain loop, Euler {n}": partial(_loop, n)}
    missing = {name: how for name, how in INSTALL.items() if find_spec(name) is None}
    if "diffusers" not in missing:
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        found |= {
            f"diffusers, FlowMatchEuler {n}": partial(_diffusers, n, "FlowMatchEulerDiscrete", {}),
            f"diffusers, UniPC {n}": partial(_diffusers, n, "UniPCMultistep", flow),
            f"diffusers, DPM-Solver++ {n}": partial(_diffusers, n, "DPMSolverMultistep", flow),
        }
    for name, solve in (("flow_matching", _flow_matching), ("torchdiffeq", _torchdiffeq)):
        if name not in missing and not (name == "flow_matching" and "torchdiffeq" in missing):
            found[f"{name}, Euler {n}"] = partial(solve, "euler", n)
            if even:
                found[f"{name}, midpoint {n // 2}"] = partial(solve, "midpoint", n // 2)
    return {name: partial(_guided, solve) for name, solve in found.items()}, missing


def _guided(
    solve: Solve, field: Field, x: Tensor, cond: Condition, null: Condition, guidance: float
) -> Tensor:
    both = lambda a, b: torch.cat([a, b.expand(len(a), *b.shape[1:])])
    both_conditions = cond if null is None else map_condition(both, cond, null)

    def velocity(x: Tensor, t: Time) -> Tensor:
        if null is None:
            return field(x, t, both_conditions)
        v_c, v_u = field(torch.cat([x, x]), t, both_conditions).chunk(2)
        return v_u + guidance * (v_c - v_u)

    with torch.no_grad():
        return solve(velocity, x)


def _loop(n: int, velocity: Velocity, x: Tensor) -> Tensor:
    times = torch.linspace(0, 1, n + 1, device=x.device)
    for i in range(n):
        x = x + velocity(x, times[i]) * (times[i + 1] - times[i])
    return x


def _diffusers(n: int, name: str, config: JsonObject, velocity: Velocity, x: Tensor) -> Tensor:
    import diffusers

    scheduler = getattr(diffusers, f"{name}Scheduler")(**config)
    if config:
        scheduler.set_timesteps(n, device=x.device)
    else:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), device=x.device)
    for t in scheduler.timesteps:  # noise levels decrease, so velocities change sign
        x = scheduler.step(-velocity(x, 1 - t / 1000), t, x, return_dict=False)[0]
    return x


def _flow_matching(method: str, steps: int, velocity: Velocity, x: Tensor) -> Tensor:
    from flow_matching.solver import ODESolver  # type: ignore[import-not-found]

    solver = ODESolver(velocity_model=velocity)
    grid = torch.tensor([0.0, 1.0], device=x.device)
    return solver.sample(x_init=x, step_size=1 / steps, method=method, time_grid=grid)


def _torchdiffeq(method: str, steps: int, velocity: Velocity, x: Tensor) -> Tensor:
    from torchdiffeq import odeint

    grid = torch.tensor([0.0, 1.0], device=x.device)
    options = {"step_size": 1 / steps}
    return odeint(lambda t, x: velocity(x, t), x, grid, method=method, options=options)[-1]
