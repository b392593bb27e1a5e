"""Shared fixtures: small real components, made once."""

from __future__ import annotations

import pytest
import torch

import flowturbo as ft
from flowturbo.models.sit import SiT, SiTConfig

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def digits() -> ft.Model:
    return ft.load("digits")


@pytest.fixture
def tiny() -> SiT:
    """A two-block class-conditional SiT whose output is not zero."""
    torch.manual_seed(0)
    config = SiTConfig(size=8, channels=2, patch=2, width=32, depth=2, heads=2, classes=5)
    network = SiT(config)
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    return network.eval().requires_grad_(False)
