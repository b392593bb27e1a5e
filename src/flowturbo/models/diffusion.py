"""The variance-preserving path of diffusion models, expressed on the linear path.

A diffusion model with the linear schedule of DDPM (Ho et al. 2020, arXiv 2006.11239; DiT keeps it)
sees states ``y = alpha*x1 + sigma*x0`` with ``alpha^2 + sigma^2 = 1`` and, in the limit of many
steps (Song et al. 2021, arXiv 2011.13456, eq. 33),

    log alpha = -(19.9/4)*s^2 - (0.1/2)*s,    s from 1 (noise) to 0 (data).

Divided by ``alpha + sigma`` such a state lies on the linear path, at ``t = alpha/(alpha + sigma)``,
so the probability-flow ODE of the model is one of the linear path; its velocity follows from the
predicted noise: ``v = (x - noise)/t``. A step of Euler there is a step of DDIM (Song et al. 2021,
arXiv 2010.02502) between the same levels of noise.

The model's own time is written here as ``u = 1 - s``, from 0 (noise) to 1 (data).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["FIRST", "from_linear", "to_linear", "variance_preserving"]

_LOW, _HIGH = 0.1, 20.0  # of the schedule: 1000 times the first and the last beta of DDPM


def to_linear(u: Tensor) -> Tensor:
    """The times on the linear path, in [FIRST, 1], of a diffusion model's times ``u`` in [0, 1]."""
    s = 1 - u
    log_alpha = -(_HIGH - _LOW) / 4 * s**2 - _LOW / 2 * s
    alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
    return alpha / (alpha + sigma)


def from_linear(t: Tensor) -> Tensor:
    """The inverse: ``u`` in [0, 1] of times ``t`` on the linear path; 0 for those below FIRST."""
    level = torch.log1p(((1 - t.clamp(min=FIRST)) / t.clamp(min=FIRST)) ** 2) / 2  # -log alpha
    return 1 - 2 * level / (_LOW / 2 + (_LOW**2 / 4 + (_HIGH - _LOW) * level).sqrt())


def variance_preserving(x: Tensor, t: Tensor) -> Tensor:
    """States ``x`` of the linear path at times ``t``, which broadcast, as the diffusion model's."""
    return x / (t**2 + (1 - t) ** 2).sqrt()


_ALPHA = math.exp(-(_HIGH + _LOW) / 4)
FIRST = _ALPHA / (_ALPHA + math.sqrt(1 - _ALPHA**2))
"""The time on the linear path where a diffusion model starts, 0.0065; it takes it for 0."""
