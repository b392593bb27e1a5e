"""Velocity fields known in closed form."""

import torch

MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.2], [-0.5, -1.5]], dtype=torch.float64)
STD = 0.7  # of each component of the data


def mixture(x, t, cond=None, means=MEANS):
    """The exact velocity (B, 2) of the linear path to an equal mixture of Gaussians at ``means``.

    Given a component, ``x1`` and ``x0`` are jointly Gaussian with ``x``, so ``E[x1 - x0 | x]`` is
    linear in ``x``; the components are weighted by their posterior.
    """
    t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1)
    variance = t**2 * STD**2 + (1 - t) ** 2
    away = x[:, None] - t * means.to(x)  # (B, components, 2)
    each = means.to(x) + (t * STD**2 - (1 - t)) / variance * away
    posterior = torch.softmax(-away.square().sum(-1, keepdim=True) / (2 * variance), 1)
    return (posterior * each).sum(1)


def gaussian(x, t, cond=None, mean=0.7, std=STD):
    """The exact velocity of the linear path to one Gaussian."""
    return mean + (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2) * (x - t * mean)


def gaussian_flow(x, start, end, mean=0.7, std=STD):
    """The exact solution of ``gaussian``: where ``x`` at ``start`` goes by ``end``."""

    def spread(t):
        return (t**2 * std**2 + (1 - t) ** 2) ** 0.5

    return end * mean + spread(end) / spread(start) * (x - start * mean)


def constant(x, t, cond=None):
    """A velocity that is the same everywhere."""
    return torch.linspace(-1.0, 2.0, x[0].numel(), dtype=x.dtype).reshape(x[0].shape).expand_as(x)


def runge_kutta(field, x, start, end, steps):
    """The classic fourth-order solution, written out, as a reference."""
    h = (end - start) / steps
    for i in range(steps):
        t = start + i * h
        a = field(x, t)
        b = field(x + h / 2 * a, t + h / 2)
        c = field(x + h / 2 * b, t + h / 2)
        d = field(x + h * c, t + h)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


class Reuse:
    """A refiner that knows nothing: the last velocity again. Counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, t, cond, history):
        self.calls += 1
        return history[-1][1]


class Scaled:
    """Velocity ``cond * x``, one number per image; the null condition is 0."""

    shape = (3, 2, 2)

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, cond):
        self.batches.append(len(x))
        return cond.reshape(-1, *[1] * (x.ndim - 1)) * x

    def null_condition(self, cond):
        return torch.zeros_like(cond)
