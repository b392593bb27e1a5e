"""The refiner that sees the history: its limits, times, and embedded rows."""

from __future__ import annotations

import pytest
import torch
from refiners import CLASSES, KINDS, random_history, random_weights

import flowturbo as ft
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner, VelocityRefiner


def _cond(config: SiTConfig, n=3):
    if config.classes:
        return torch.arange(n)
    return torch.randint(0, 11, (n, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_refiner_is_its_limit(kind):
    assert KINDS
    model = random_weights(SiT(SiTConfig(**KINDS[kind])))
    x, cond = torch.randn(3, 2, 8, 8), _cond(model.config)
    history = random_history((0.1, 0.3))
    (_, b), (_, a) = history
    paper = PaperRefiner.from_model(model)
    assert torch.equal(paper(x, 0.4, cond, history), a)
    for ours in (
        VelocityRefiner.from_model(model, block=0),
        VelocityRefiner.from_model(model, width=16, heads=1),
        VelocityRefiner.small((2, 8, 8)),
    ):
        torch.testing.assert_close(ours(x, 0.4, cond, history, 2.0), a + 0.5 * (a - b))
        assert torch.equal(ours(x, 0.3, cond, history), a)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 3, 4, 4), (5,)])
def test_velocities_linear_in_time_are_exact_on_any_grid(shape):
    refiner = VelocityRefiner.small(shape).double()
    level, slope = torch.randn(2, *shape, dtype=torch.float64)
    plan = ft.Plan(
        times=[0, 0.2, 0.3, 0.35, 0.7, 1.0],
        evaluators=("model", "model", "refiner", "model", "refiner"),
        weights=torch.tril(torch.rand(5, 5, generator=torch.Generator().manual_seed(0))).numpy(),
    )
    field = lambda x, t, cond: (level + t * slope).expand_as(x)
    x = torch.randn(4, *shape, dtype=torch.float64)
    exact = ft.sample(plan, field, x, refiner=lambda x, t, c, history: field(x, t, c))
    torch.testing.assert_close(
        ft.sample(plan, field, x, refiner=refiner), exact, rtol=0, atol=1e-12
    )


def test_of_evaluations_at_one_time_the_latest_counts():
    refiner = random_weights(VelocityRefiner.small((2, 8, 8)))
    x, history = torch.randn(3, 2, 8, 8), random_history((0.0, 0.1, 0.1, 0.3, 0.3))
    out = refiner(x, 0.5, None, history)
    assert torch.equal(out, refiner(x, 0.5, None, [history[2], history[4]]))
    assert not torch.equal(out, refiner(x, 0.5, None, history[:4]))


def test_a_batch_at_many_times_equals_its_rows():
    refiner = random_weights(
        VelocityRefiner.from_model(random_weights(SiT(SiTConfig(**CLASSES))), (1, 4))
    )
    x, (b, a) = torch.randn(3, 2, 8, 8), random_history((0, 0))
    t_b, t_a, t = torch.tensor([[0.0, 0.1, 0.2], [0.1, 0.4, 0.3], [0.2, 0.5, 0.9]])
    w, cond = torch.tensor([1.0, 2.0, 4.0]), torch.arange(3)
    out = refiner.predict(x, t, cond, (t_a, a[1]), (t_b, b[1]), w)
    for i in range(3):
        rows = [(float(s[i]), v[1][i : i + 1]) for s, v in ((t_b, b), (t_a, a))]
        one = refiner(x[i : i + 1], float(t[i]), cond[i : i + 1], rows, float(w[i]))
        torch.testing.assert_close(out[i : i + 1], one, rtol=1e-4, atol=1e-5)


def test_a_time_in_half_precision_is_subtracted_in_full():
    refiner = random_weights(
        VelocityRefiner.from_model(random_weights(SiT(SiTConfig(**CLASSES))), (1, 4))
    )
    x, history, cond = torch.randn(3, 2, 8, 8), random_history((0.1, 0.3)), torch.arange(3)
    half = torch.tensor(0.5, dtype=torch.bfloat16)
    torch.testing.assert_close(
        refiner(x, half, cond, history), refiner(x, 0.5, cond, history), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", [*KINDS, "unconditional"])
@pytest.mark.parametrize("scale", [2.0, torch.tensor([1.0, 2.0, 4.0])], ids=["one", "each"])
def test_rows_embedded_at_once_give_the_velocities_of_single_calls(kind, scale):
    config = SiTConfig(**KINDS.get(kind, {**CLASSES, "classes": 0}))
    refiner = random_weights(VelocityRefiner.from_model(random_weights(SiT(config)), (1, 4)))
    plan = ft.Plan.parse("AB2:FFRRFFR@2")
    cond = None if kind == "unconditional" else _cond(config)
    rows = [row for row in plan.rows if row.evaluator == "refiner"]
    seen = refiner.embed_rows(rows, cond, scale)
    assert sorted(seen) == [2, 3, 6]
    for row in rows:
        x, history = torch.randn(3, 2, 8, 8), random_history([t for _, t in row.history])
        one = refiner(x, row.model_time, cond, history, scale)
        torch.testing.assert_close(refiner(x, row.model_time, seen[row.k], history, scale), one)


def test_the_loop_embeds_the_rows_of_a_refiner_once():
    refiner = random_weights(
        VelocityRefiner.from_model(random_weights(SiT(SiTConfig(**CLASSES))), (1, 4))
    )
    calls = []
    refiner.network.t_embedder.register_forward_hook(lambda *a: calls.append(len(a[2])))
    plan, x = ft.Plan.parse("AB2:FFRFRFR@1.6"), torch.randn(3, 2, 8, 8)
    ft.sample(plan, lambda x, t, c: -x, x, torch.arange(3), refiner=refiner)
    assert calls == [9]


def test_everything_shown_to_a_refiner_matters():
    for refiner in (
        VelocityRefiner.from_model(random_weights(SiT(SiTConfig(**CLASSES))), (1, 4)),
        VelocityRefiner.small((2, 8, 8), (1, 4), classes=6),
    ):
        random_weights(refiner)
        x, history, cond = torch.randn(3, 2, 8, 8), random_history((0.1, 0.3)), torch.arange(3)
        shown = dict(x=x, t=0.4, cond=cond, history=history, guidance=2.0)
        out = refiner(**shown)
        for change in (
            dict(x=x + 1), dict(t=0.5), dict(cond=cond + 1), dict(guidance=3.0),
            dict(history=[(0.2, history[0][1]), history[1]]),
            dict(history=[(0.1, history[0][1] + 1), history[1]]),
        ):  # fmt: skip
            assert not torch.allclose(refiner(**{**shown, **change}), out), change
