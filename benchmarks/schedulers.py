"""diffusers schedulers as plans, on the grids that users can request.

- "default": that of ``set_timesteps(n)``, shifted by the scheduler;
- "linspace": noise levels ``linspace(1, 1/n, n)``, shifted once, as newer pipelines pass them.
  If a scheduler does not accept noise levels, the same solver is used on that grid.
"""

from __future__ import annotations

import numpy as np

import flowturbo as ft

SHIFTS = (0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.2)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def schedulers(nfe: int, shifts: tuple[float, ...] = SHIFTS) -> dict[str, ft.Plan]:
    """Every scheduler at ``nfe`` evaluations, at the most, by "name, grid, shift"."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    levels = np.linspace(1, 1 / nfe, nfe)
    found = {}
    for shift in shifts:
        euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        heun = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
        half = (nfe + 1) // 2  # n steps of Heun's take 2n - 1 evaluations
        made = {
            "FlowMatchEuler, default": ft.Plan.from_scheduler(euler, nfe),
            "FlowMatchEuler, linspace": ft.Plan.from_scheduler(euler, sigmas=levels),
            "FlowMatchHeun, default": ft.Plan.from_scheduler(heun, half),
            "FlowMatchHeun, linspace": ft.Plan.heun(nfe // 2, shift=shift),
        }
        for order in (2, 3):
            both = {**FLOW, "solver_order": order, "flow_shift": shift}
            unipc = diffusers.UniPCMultistepScheduler(solver_type="bh2", **both)
            dpm = diffusers.DPMSolverMultistepScheduler(**both)
            deis = diffusers.DEISMultistepScheduler(**both)
            made |= {
                f"UniPC-{order}, default": ft.Plan.from_scheduler(unipc, nfe),
                f"UniPC-{order}, linspace": ft.Plan.from_scheduler(unipc, sigmas=levels),
                f"DPM-Solver++ {order}M, default": ft.Plan.from_scheduler(dpm, nfe),
                f"DPM-Solver++ {order}M, linspace": ft.Plan.dpm(nfe, order, shift=shift),
                f"DEIS-{order}, default": ft.Plan.from_scheduler(deis, nfe),
            }
        found |= {f"{name}, {shift:g}": plan for name, plan in made.items()}
    return found
