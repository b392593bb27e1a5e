"""Any callable is a field: the exact velocity of a Gaussian, sampled by several plans.

For data N(mean, std^2) the path t*x1 + (1-t)*x0 has the velocity below, and its ODE takes noise x0
to exactly mean + std*x0, so the error of every plan is known.
"""

import torch

import flowturbo as ft

MEAN = torch.tensor([2.0, -1.0])
STD = torch.tensor([0.5, 1.5])


def field(x, t, cond=None):
    """The velocity at states x (B, 2), time t."""
    slope = (t * STD**2 - (1 - t)) / ((t * STD) ** 2 + (1 - t) ** 2)
    return MEAN + slope * (x - t * MEAN)


def main():
    x0 = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = MEAN + STD * x0
    print("plan       evaluations  RMS error")
    for text in ("E8", "H4", "MID:4", "H1P6", "AB2:8", "AB3:8", "RK4:2", "RK4:8"):
        plan = ft.Plan.parse(text)
        error = (ft.sample(plan, field, x0) - exact).square().mean().sqrt()
        print(f"{text:10} {plan.nfe['model']:11}  {error:.2e}")


if __name__ == "__main__":
    main()
