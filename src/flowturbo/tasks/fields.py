"""Velocity fields that editing tasks wrap around a model, for the one sampling loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowturbo import noise
from flowturbo.field import Field, Wrapper
from flowturbo.guidance import Guidance, guided
from flowturbo.path import interpolate, predicted_data
from flowturbo.types import Condition, Time

__all__ = ["Corrected", "Difference", "Known", "noised_afresh"]


class Difference(Wrapper):
    """FlowEdit's field: the velocity of the target minus that of the source, at the same noise.

    At time ``t``, with ``z = t*image + (1-t)*n`` and new noise ``n`` at each time, it is
    ``v(x + z - image, t, target) - v(z, t, source)`` (Kulikov et al. 2025, algorithm 1).
    """

    def __init__(
        self,
        field: Field,
        image: Tensor,
        target: Condition,
        source: Condition,
        guidance: float,
        seeds: Sequence[int],
    ) -> None:
        super().__init__(field)
        self._image, self._target, self._source = image, target, source
        self._guided, self._seeds = guided(field, guidance), seeds

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """The difference at a state ``x`` (B, ...)."""
        z = noised_afresh(self._image, float(t), self._seeds)
        at = float(t) if isinstance(self._guided, Guidance) else t
        new = self._guided(x + z - self._image, at, self._target)
        return new - self.field(z, t, self._source)

    def embed_condition(self, cond: Condition) -> Condition:
        """Nothing: it has its conditions."""
        return cond


def noised_afresh(image: Tensor, t: float, seeds: Sequence[int]) -> Tensor:
    """``t*image + (1-t)*n`` (N, ...), of noise ``n`` that is another for each seed and time."""
    mixed = [noise.mixed(seed, round(t * 2**31)) for seed in seeds]
    return interpolate(noise.draw(mixed, image.shape[1:], device=image.device), image, t)


class Known(Wrapper):
    """A field whose velocity at one time is known."""

    def __init__(self, field: Field, time: float, velocity: Tensor) -> None:
        super().__init__(field)
        self._time, self._velocity = time, velocity

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """The known velocity at its time, else ``field(x, t, cond)``."""
        if float(t) == self._time:
            return self._velocity
        return self.field(x, float(t) if isinstance(self.field, Guidance) else t, cond)


class Corrected(Wrapper):
    """A field moved down the gradient of its predicted image's error in the known part.

    With ``x1 = x + (1-t)*v``, ``e = known * (x1 - source)`` and its gradient ``g`` by ``x``, the
    velocity is ``v - (|e|^2 / |g|^2) * g / max(1-t, 1/8)``: a Gauss-Newton step on the error.
    """

    def __init__(self, field: Field, source: Tensor, known: Tensor) -> None:
        super().__init__(field)
        self._source, self._known = source, known

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """The velocity (B, ...)."""
        time = float(t)
        with torch.inference_mode(False), torch.enable_grad():
            state = x.detach().clone().requires_grad_()
            v = self.field(state, time, cond)
            off = self._known.clone() * (predicted_data(state, v, time) - self._source.clone())
            error = off.square().flatten(1).sum(1)
            (gradient,) = torch.autograd.grad(error.sum() / 2, state)
        size = gradient.square().flatten(1).sum(1).clamp(min=1e-12)
        share = error.detach() / size / max(1 - time, 0.125)
        return v.detach() - share.reshape(-1, *[1] * (x.ndim - 1)) * gradient
