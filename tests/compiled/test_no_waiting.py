"""Nothing in a sample looks at the device or copies to it, so that CUDA graphs can capture it.

On the device "meta", where tensors hold no numbers, a look raises, and copies can be seen.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flowturbo as ft
from flowturbo.compiled.function import Function
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner, VelocityRefiner


class Copies(TorchDispatchMode):
    """The operations whose result is on another device than what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            given = [a for a in args if isinstance(a, torch.Tensor)]
            self.seen += [str(func)] * any(a.device != out.device for a in given)
        return out


@pytest.fixture(scope="module")
def networks():
    net = SiT(SiTConfig(size=8, channels=4, patch=2, width=64, depth=2, heads=2, classes=10))
    made = {"paper": PaperRefiner.from_model(net), "ours": VelocityRefiner.from_model(net, (1, 4))}
    made |= {"field": net, "none": None}
    return {k: m and m.eval().requires_grad_(False).to("meta") for k, m in made.items()}


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(
    ("plan", "refiner"),
    [("H1P2", "none"), ("AB2:4@1.6", "none"), ("H1P1R2", "paper"), ("H1P1R2", "ours")],
)
def test_no_look_at_the_device_and_no_copy_to_it(networks, plan, refiner, guided):
    sampler = Function(ft.Plan.parse(plan), networks["field"], networks[refiner])
    like = dict(device="meta")
    x, cond = torch.empty(2, 4, 8, 8, **like), torch.zeros(2, dtype=torch.long, **like)
    null, scale = (cond + 10, torch.empty(2, **like)) if guided else (None, None)
    with Copies() as copies:
        assert sampler(x, cond, null, scale).shape == x.shape
    assert copies.seen == []
