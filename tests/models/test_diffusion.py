"""Diffusion models told on the linear path: their times, their states, their velocity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowturbo.models.diffusion import FIRST, from_linear, to_linear, variance_preserving
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.path import interpolate, predicted_data, predicted_noise
from flowturbo.training.objectives import draw_times, flow_loss, noise_loss


def test_times_there_and_back():
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    t = to_linear(u)
    assert (t.diff() > 0).all()
    torch.testing.assert_close(from_linear(t), u, atol=1e-9, rtol=0)
    assert float(t[0]) == pytest.approx(FIRST)
    assert float(t[-1]) == 1
    assert float(from_linear(torch.tensor(0.0))) == pytest.approx(0, abs=1e-6)


def test_the_schedule_is_that_of_ddpm():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = (1 - beta).cumprod(0).sqrt()
    t = to_linear(1 - torch.arange(1, 1001, dtype=torch.float64) / 1000)
    ours = t / (t**2 + (1 - t) ** 2).sqrt()
    assert (ours - alpha).abs().max() < 3e-3


def test_states_preserve_variance_and_a_step_of_euler_is_one_of_ddim():
    x0, x1 = torch.randn(2, 5, 3, dtype=torch.float64)
    t, to = torch.tensor([0.2, 0.7], dtype=torch.float64)
    alpha, sigma = (torch.stack([t, 1 - t]) / (t**2 + (1 - t) ** 2).sqrt()).unbind()
    x = interpolate(x0, x1, t)
    y = variance_preserving(x, t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(y, alpha * x1 + sigma * x0)
    noise = torch.randn(5, 3, dtype=torch.float64)  # whatever was predicted
    data = (y - sigma * noise) / alpha
    euler = x + (to - t) * (x - noise) / t
    torch.testing.assert_close(euler, to * data + (1 - to) * noise)


def test_a_network_that_predicts_the_noise_is_a_velocity_field():
    torch.manual_seed(0)
    config = SiTConfig(size=4, channels=1, patch=2, width=16, depth=1, heads=2, classes=3)
    network = SiT(replace(config, prediction="noise")).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    inner = SiT(config).double()
    inner.load_state_dict(network.state_dict())
    x, cond = torch.randn(4, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    t = torch.tensor([0.02, 0.3, 0.8, 1.0], dtype=torch.float64)
    v = network(x, t, cond)
    noise = inner(variance_preserving(x, t[:, None, None, None]), from_linear(t), cond)
    torch.testing.assert_close(predicted_noise(x, v, t), noise)
    torch.testing.assert_close(predicted_data(x, v, t), v + noise)
    at_first, at_zero = network(x, FIRST, cond), network(x, 0.0, cond)
    torch.testing.assert_close(at_first, at_zero)
    assert network.float()(x.float(), 0.5, cond).dtype == torch.float32


def test_its_loss_is_that_of_the_velocity_weighted():
    x0, x1 = torch.randn(2, 6, 1, 2, 2)
    t = torch.full((6,), 0.3)
    field = lambda x, t, c: torch.sin(x)
    expected = 0.3**2 * flow_loss(field, x0, x1, t, None)
    torch.testing.assert_close(noise_loss(field, x0, x1, t, None), expected)
    assert noise_loss(lambda x, t, c: x1 - x0, x0, x1, t, None) < 1e-12


def test_training_times_are_uniform_in_the_steps_of_diffusion():
    t = draw_times(4000, "diffusion", torch.Generator().manual_seed(0))
    u = from_linear(t.double()).sort().values
    assert (u - (torch.arange(4000) + 0.5) / 4000).abs().max() < 1e-3
