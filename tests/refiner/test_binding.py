"""Refiners bound to a plan, a model and a guidance scale."""

from __future__ import annotations

import pytest
import torch
from refiners import random_history, random_weights

import flowturbo as ft
from flowturbo.field import CountCalls
from flowturbo.guidance import Guidance
from flowturbo.refiner import PaperRefiner, VelocityRefiner


class _Seen(CountCalls):
    """Counts images, and passes the attributes of the refiner on."""

    def __call__(self, x, t, cond, history, **told):
        self.calls += 1
        self.images = getattr(self, "images", 0) + len(x)
        self.told = told
        return self.field(x, t, cond, history, **told)


def test_guidance_doubles_the_papers_refiner_only(tiny):
    x, cond, plan = torch.randn(3, 2, 8, 8), torch.arange(3), ft.Plan.parse("E2R1")
    for refiner, guidance, images in (
        (PaperRefiner.from_model(tiny), 1.0, 6),
        (PaperRefiner.from_model(tiny), 2.0, 12),
        (PaperRefiner.from_model(tiny), torch.tensor([1.0, 2.0, 3.0]), 12),
        (VelocityRefiner.from_model(tiny, (1, 3)), 2.0, 6),
    ):
        seen = _Seen(refiner)
        ft.sample(plan, tiny, x, cond, guidance=guidance, refiner=seen)
        assert (seen.calls, seen.images) == (2, images)
    assert seen.told == {"guidance": 2.0}


def test_a_guided_model_guides_the_refiner_the_same_way(tiny):
    refiner = random_weights(PaperRefiner.from_model(tiny))
    x, cond, plan = torch.randn(3, 2, 8, 8), torch.arange(3), ft.Plan.parse("H1R1")
    direct = ft.sample(plan, tiny, x, cond, guidance=2.0, refiner=refiner)
    wrapped = ft.sample(plan, Guidance(tiny, 2.0), x, cond, refiner=refiner)
    assert torch.equal(direct, wrapped)
    first = ft.sample(plan, Guidance(tiny, 2.0, channels=1), x, cond, refiner=refiner)
    assert not torch.allclose(first[:, 1], direct[:, 1])
    off = ft.sample(plan, Guidance(tiny, 2.0, interval=(2.0, 3.0)), x, cond, refiner=refiner)
    torch.testing.assert_close(off, ft.sample(plan, tiny, x, cond, refiner=refiner))


def test_a_plan_or_a_scale_it_cannot_serve_is_refused_before_the_model_runs(tiny):
    refiner = VelocityRefiner.from_model(tiny, (1, 4))
    model, x, cond = CountCalls(tiny), torch.randn(3, 2, 8, 8), torch.arange(3)
    with pytest.raises(ValueError, match=r"evaluation 1 .* at 1 distinct times, and it needs 2"):
        ft.sample(ft.Plan.parse("E1R1"), model, x, cond, refiner=refiner)
    with pytest.raises(ValueError, match=r"guidance=5.0: this refiner was made for 1 to 4"):
        ft.sample(ft.Plan.parse("H1R1"), model, x, cond, guidance=5.0, refiner=refiner)
    assert model.calls == 0
    with pytest.raises(ValueError, match="needs velocities at 2 distinct times"):
        refiner(x, 0.2, cond, random_history((0.1, 0.1)))
    with pytest.raises(ValueError, match="lowest, highest"):
        VelocityRefiner.small((2,), (4, 1))


def test_refiners_compile_whole(tiny):
    x, history, cond = torch.randn(3, 2, 8, 8), random_history((0.1, 0.3, 0.3)), torch.arange(3)
    for refiner in _refiners(tiny).values():
        torch._dynamo.reset()
        whole = torch.compile(refiner, backend="eager", fullgraph=True)
        t = torch.tensor(0.4)
        assert torch.equal(whole(x, t, cond, history), refiner(x, t, cond, history))
    rows = [(torch.full((3,), s), v) for s, v in history[:2]]
    whole = torch.compile(refiner, backend="eager", fullgraph=True)
    w = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(whole(x, t, cond, rows, w), refiner(x, t, cond, rows, w))


def _refiners(model):
    return {
        "paper": PaperRefiner.from_model(model),
        "velocity": VelocityRefiner.from_model(model, (1, 4), width=16, heads=2),
        "conv": VelocityRefiner.small((2, 8, 8), (1, 4), classes=6, width=8),
    }
