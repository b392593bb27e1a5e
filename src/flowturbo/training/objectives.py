"""Training objectives.

Flow matching (Lipman et al. 2023, arXiv 2210.02747): with ``x_t = t*x1 + (1-t)*x0``, the mean
square of ``field(x_t, t, cond) - (x1 - x0)`` over data, noise and times.

Noise prediction (Ho et al. 2020, arXiv 2006.11239, eq. 14): the mean square of the noise that the
velocity points back to, less ``x0``, which is ``t^2`` times the above; times are uniform in the
steps of the diffusion model (``flowturbo.models.diffusion``).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flowturbo.field import Field
from flowturbo.models.diffusion import to_linear
from flowturbo.path import interpolate, predicted_noise, velocity
from flowturbo.tree import map_condition

__all__ = ["Times", "draw_times", "drop_condition", "flow_loss", "noise_loss"]

Times = Literal["uniform", "logit-normal", "diffusion"]


def draw_times(n: int, kind: Times, generator: torch.Generator) -> Tensor:
    """Times (n,) in (0, 1): uniform, or logit-normal(0, 1) (arXiv 2403.03206, section 3.1).

    "diffusion" is uniform in the time of a diffusion model with the linear schedule. Times are
    stratified, one in each n-th of the distribution, which lowers the variance of a step.
    """
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    u = u[torch.randperm(n, generator=generator)].clamp(1e-4, 1 - 1e-4)
    if kind == "diffusion":
        return to_linear(u)
    return u if kind == "uniform" else torch.special.ndtri(u).sigmoid()


def drop_condition(cond: Tensor, null: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """``cond`` with each row replaced by the row of ``null`` with probability ``p``."""
    dropped = torch.rand(len(cond), generator=generator) < p
    rows = lambda c, n: torch.where(dropped.view(-1, *[1] * (c.ndim - 1)), n, c)
    return map_condition(rows, cond, null)  # type: ignore[no-any-return]


def flow_loss(field: Field, x0: Tensor, x1: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    """The flow-matching loss, one number, for noise ``x0``, data ``x1`` (B, ...), times (B,)."""
    v = field(interpolate(x0, x1, t), t, cond)
    return (v.float() - velocity(x0, x1)).square().mean()


def noise_loss(field: Field, x0: Tensor, x1: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    """The noise-prediction loss, one number, for the same arguments."""
    x = interpolate(x0, x1, t)
    v = field(x, t, cond)
    return (predicted_noise(x, v.float(), t) - x0).square().mean()
