"""Refiners: their limits, what they borrow, guidance, files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

import flowturbo as ft
from flowturbo.field import CountCalls
from flowturbo.guidance import Guidance
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner, SmallNetwork, VelocityRefiner, save_refiner
from flowturbo.refiner.checkpoint import REFINER_CARD, REFINER_WEIGHTS
from flowturbo.training.on_policy import mixed_plan

CLASSES = dict(size=8, channels=2, patch=2, width=32, depth=2, heads=2, classes=5)
TEXT = {**CLASSES, "classes": 0, "vocabulary": 11, "text_length": 3}
KINDS = {
    "class": CLASSES,
    "learned sigma": {**CLASSES, "learn_sigma": True},
    "text": TEXT,
    "text, conv, shared, data": {
        **TEXT, "stem": "conv", "modulation": "shared", "prediction": "data",
    },
}  # fmt: skip


def _random(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for p in module.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1)
    return module.eval().requires_grad_(False)


def _history(times, n=3, shape=(2, 8, 8), dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [(t, torch.randn(n, *shape, generator=generator, dtype=dtype)) for t in times]


def _cond(config: SiTConfig, n=3):
    if config.classes:
        return torch.arange(n)
    return torch.randint(0, 11, (n, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_refiner_is_its_limit(kind):
    assert KINDS
    model = _random(SiT(SiTConfig(**KINDS[kind])))
    x, cond = torch.randn(3, 2, 8, 8), _cond(model.config)
    history = _history((0.1, 0.3))
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


def test_a_refiner_borrows_embedders_block_and_modulation():
    model = _random(SiT(SiTConfig(**KINDS["text, conv, shared, data"])))
    refiner = VelocityRefiner.from_model(model, block=0).network
    ours, theirs = refiner.state_dict(), model.state_dict()
    assert torch.equal(ours["blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])
    assert torch.equal(ours["text_embedder.mlp.0.weight"], theirs["text_embedder.mlp.0.weight"])
    assert torch.equal(ours["adaLN_modulation.1.weight"], theirs["adaLN_modulation.1.weight"])
    assert torch.equal(ours["stem.weight"][:, :2], theirs["stem.weight"])
    assert not ours["stem.weight"][:, 2:].any()
    last = PaperRefiner.from_model(model).network.blocks[0].attn.qkv.weight
    assert torch.equal(last, model.blocks[1].attn.qkv.weight)
    with pytest.raises(ValueError, match="block=2: the model has 0 to 1"):
        PaperRefiner.from_model(model, block=2)
    with pytest.raises(ValueError, match="kind='conv'"):
        VelocityRefiner.from_model(lambda x, t, c: x)


@pytest.mark.parametrize("shape", [(2, 8, 8), (5,)])
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
    refiner = _random(VelocityRefiner.small((2, 8, 8)))
    x, history = torch.randn(3, 2, 8, 8), _history((0.0, 0.1, 0.1, 0.3, 0.3))
    out = refiner(x, 0.5, None, history)
    assert torch.equal(out, refiner(x, 0.5, None, [history[2], history[4]]))
    assert not torch.equal(out, refiner(x, 0.5, None, history[:4]))


def test_a_batch_at_many_times_equals_its_rows():
    refiner = _random(VelocityRefiner.from_model(_random(SiT(SiTConfig(**CLASSES))), (1, 4)))
    x, (b, a) = torch.randn(3, 2, 8, 8), _history((0, 0))
    t_b, t_a, t = torch.tensor([[0.0, 0.1, 0.2], [0.1, 0.4, 0.3], [0.2, 0.5, 0.9]])
    w, cond = torch.tensor([1.0, 2.0, 4.0]), torch.arange(3)
    out = refiner.predict(x, t, cond, (t_a, a[1]), (t_b, b[1]), w)
    for i in range(3):
        rows = [(float(s[i]), v[1][i : i + 1]) for s, v in ((t_b, b), (t_a, a))]
        one = refiner(x[i : i + 1], float(t[i]), cond[i : i + 1], rows, float(w[i]))
        torch.testing.assert_close(out[i : i + 1], one, rtol=1e-4, atol=1e-5)


def test_a_time_in_half_precision_is_subtracted_in_full():
    refiner = _random(VelocityRefiner.from_model(_random(SiT(SiTConfig(**CLASSES))), (1, 4)))
    x, history, cond = torch.randn(3, 2, 8, 8), _history((0.1, 0.3)), torch.arange(3)
    half = torch.tensor(0.5, dtype=torch.bfloat16)
    torch.testing.assert_close(
        refiner(x, half, cond, history), refiner(x, 0.5, cond, history), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", [*KINDS, "unconditional"])
@pytest.mark.parametrize("scale", [2.0, torch.tensor([1.0, 2.0, 4.0])], ids=["one", "each"])
def test_rows_embedded_at_once_give_the_velocities_of_single_calls(kind, scale):
    config = SiTConfig(**KINDS.get(kind, {**CLASSES, "classes": 0}))
    refiner = _random(VelocityRefiner.from_model(_random(SiT(config)), (1, 4)))
    plan = mixed_plan("MMRRMMR", shift=2)
    cond = None if kind == "unconditional" else _cond(config)
    rows = [row for row in plan.rows if row.evaluator == "refiner"]
    seen = refiner.embed_rows(rows, cond, scale)
    assert sorted(seen) == [2, 3, 6]
    for row in rows:
        x, history = torch.randn(3, 2, 8, 8), _history([t for _, t in row.history])
        one = refiner(x, row.model_time, cond, history, scale)
        torch.testing.assert_close(refiner(x, row.model_time, seen[row.k], history, scale), one)


def test_the_loop_embeds_the_rows_of_a_refiner_once():
    refiner = _random(VelocityRefiner.from_model(_random(SiT(SiTConfig(**CLASSES))), (1, 4)))
    calls = []
    refiner.network.t_embedder.register_forward_hook(lambda *a: calls.append(len(a[2])))
    plan, x = mixed_plan("MMRMRMR"), torch.randn(3, 2, 8, 8)
    ft.sample(plan, lambda x, t, c: -x, x, torch.arange(3), refiner=refiner)
    assert calls == [9]


def test_everything_shown_to_a_refiner_matters():
    for refiner in (
        VelocityRefiner.from_model(_random(SiT(SiTConfig(**CLASSES))), (1, 4)),
        VelocityRefiner.small((2, 8, 8), (1, 4), classes=6),
    ):
        _random(refiner)
        x, history, cond = torch.randn(3, 2, 8, 8), _history((0.1, 0.3)), torch.arange(3)
        shown = dict(x=x, t=0.4, cond=cond, history=history, guidance=2.0)
        out = refiner(**shown)
        for change in (
            dict(x=x + 1), dict(t=0.5), dict(cond=cond + 1), dict(guidance=3.0),
            dict(history=[(0.2, history[0][1]), history[1]]),
            dict(history=[(0.1, history[0][1] + 1), history[1]]),
        ):  # fmt: skip
            assert not torch.allclose(refiner(**{**shown, **change}), out), change


def _reference(network: SiT, x, v, t, cond):
    """The paper's offset, written out from the parameters."""
    p, c = network.state_dict(), network.config
    silu = nn.functional.silu
    linear = lambda h, name: h @ p[f"{name}.weight"].T + p[f"{name}.bias"]
    norm = lambda h: nn.functional.layer_norm(h, h.shape[-1:], eps=1e-6)
    n, heads = len(x), c.heads
    tokens = nn.functional.conv2d(
        torch.cat([x, v], 1), p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], c.patch
    )
    h = tokens.flatten(2).mT + p["pos_embed"]
    angles = t * 10000.0 ** -(torch.arange(128) / 128)
    waves = torch.cat([angles.cos(), angles.sin()])[None]
    e = linear(silu(linear(waves, "t_embedder.mlp.0")), "t_embedder.mlp.2")
    e = silu(e + p["y_embedder.embedding_table.weight"][cond])
    m = linear(e, "blocks.0.adaLN_modulation.1")[:, None].chunk(6, dim=-1)
    q, k, w = linear(norm(h) * (1 + m[1]) + m[0], "blocks.0.attn.qkv").chunk(3, dim=-1)
    q, k, w = (a.reshape(n, -1, heads, c.width // heads).transpose(1, 2) for a in (q, k, w))
    mixed = torch.softmax(q @ k.mT / (c.width // heads) ** 0.5, -1) @ w
    mixed = linear(mixed.transpose(1, 2).reshape(h.shape), "blocks.0.attn.proj")
    h = h + m[2] * mixed
    inner = linear(norm(h) * (1 + m[4]) + m[3], "blocks.0.mlp.fc1")
    inner = nn.functional.gelu(inner, approximate="tanh")
    h = h + m[5] * linear(inner, "blocks.0.mlp.fc2")
    m = linear(e, "final_layer.adaLN_modulation.1")[:, None].chunk(2, dim=-1)
    h = linear(norm(h) * (1 + m[1]) + m[0], "final_layer.linear")
    side, patch = c.size // c.patch, c.patch
    h = h.reshape(n, side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return h.reshape(n, -1, c.size, c.size)[:, : c.channels]


@pytest.mark.parametrize("shipped", [False, True])
def test_the_papers_blocks_equal_a_hand_written_sampler(shipped):
    model = _random(SiT(SiTConfig(**KINDS["learned sigma"])))
    refiner = _random(PaperRefiner.from_model(model))
    x0, cond, null, w = torch.randn(3, 2, 8, 8), torch.arange(3), torch.full((3,), 5), 1.5
    guide = lambda f: f(null) + w * (f(cond) - f(null))
    velocity = lambda x, t: guide(lambda c: model(x, t, c))
    offset = lambda x, v, t: guide(lambda c: _reference(refiner.network, x, v, t, c))
    h, x = 1 / 3, x0
    first = velocity(x, 0.0)
    last = velocity(x + h * first, h)
    x = x + h / 2 * (first + last)
    new = velocity(x + h * last, 2 * h)
    x, last = x + h / 2 * (last + new), new
    one = offset(x, last, 2 * h) + last
    two = offset(x + h * one, last if shipped else one, 1.0) + one
    x = x + h / 2 * (one + two)
    plan = ft.Plan.blocks("H1P1R1", shipped=shipped)
    out = ft.sample(plan, model, x0, cond, guidance=w, refiner=refiner)
    torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-4)


def test_official_names_and_shapes():
    with torch.device("meta"):
        network = SiT(replace(SiTConfig.named("XL/2"), depth=1), images=2)
    shapes = {k: tuple(p.shape) for k, p in network.state_dict().items()}
    wanted = {
        "x_embedder.proj.weight": (1152, 8, 2, 2), "x_embedder.proj.bias": (1152,),
        "t_embedder.mlp.0.weight": (1152, 256), "t_embedder.mlp.0.bias": (1152,),
        "t_embedder.mlp.2.weight": (1152, 1152), "t_embedder.mlp.2.bias": (1152,),
        "y_embedder.embedding_table.weight": (1001, 1152), "pos_embed": (1, 256, 1152),
        "blocks.0.attn.qkv.weight": (3456, 1152), "blocks.0.attn.qkv.bias": (3456,),
        "blocks.0.attn.proj.weight": (1152, 1152), "blocks.0.attn.proj.bias": (1152,),
        "blocks.0.mlp.fc1.weight": (4608, 1152), "blocks.0.mlp.fc1.bias": (4608,),
        "blocks.0.mlp.fc2.weight": (1152, 4608), "blocks.0.mlp.fc2.bias": (1152,),
        "blocks.0.adaLN_modulation.1.weight": (6912, 1152),
        "blocks.0.adaLN_modulation.1.bias": (6912,),
        "final_layer.linear.weight": (32, 1152), "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2304, 1152),
        "final_layer.adaLN_modulation.1.bias": (2304,),
    }  # fmt: skip
    assert shapes == wanted
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(29.7e6, rel=0.01)


def test_an_official_checkpoint_loads_by_name(tmp_path):
    config = SiTConfig(**KINDS["learned sigma"])
    made = _random(PaperRefiner.from_model(SiT(config)))
    torch.save({"ema": made.network.state_dict()}, tmp_path / "refiner.pt")
    loaded = PaperRefiner.from_official(tmp_path / "refiner.pt", config)
    x, history, cond = torch.randn(3, 2, 8, 8), _history((0.1,)), torch.arange(3)
    assert torch.equal(loaded(x, 0.4, cond, history), made(x, 0.4, cond, history))
    with pytest.raises(ValueError, match=r"tensors missing|the config wants"):
        PaperRefiner.from_official(tmp_path / "refiner.pt")


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
    refiner = _random(PaperRefiner.from_model(tiny))
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
        refiner(x, 0.2, cond, _history((0.1, 0.1)))
    with pytest.raises(ValueError, match="lowest, highest"):
        VelocityRefiner.small((2,), (4, 1))


def test_refiners_compile_whole(tiny):
    x, history, cond = torch.randn(3, 2, 8, 8), _history((0.1, 0.3, 0.3)), torch.arange(3)
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


@pytest.mark.parametrize("kind", ["paper", "velocity", "conv"])
def test_round_trip_in_half_precision(tiny, tmp_path, kind):
    save_folder(tmp_path, tiny, {})
    model = ft.load(tmp_path)
    refiner = _random(_refiners(model)[kind]).half().float()
    refiner.card = {"training": {"steps": 3}, "measured": {"held-out": 0.5}}
    save_refiner(tmp_path, refiner, model)
    loaded = ft.load_refiner(tmp_path, model)
    x, history, cond = torch.randn(3, 2, 8, 8), _history((0.1, 0.3)), torch.arange(3)
    assert torch.equal(loaded(x, 0.4, cond, history), refiner(x, 0.4, cond, history))
    assert loaded.kind == kind == loaded.card["architecture"]
    assert loaded.card["model"] == {"name": model.name, "fingerprint": model.fingerprint}
    assert loaded.card["measured"] == {"held-out": 0.5}
    assert not any(p.requires_grad for p in loaded.parameters())
    half = ft.load_refiner(tmp_path, ft.load(tmp_path, dtype=torch.bfloat16), dtype=torch.bfloat16)
    assert half.fingerprint == loaded.fingerprint
    torch.testing.assert_close(
        half(x, 0.4, cond, history), loaded(x, 0.4, cond, history), rtol=0.1, atol=0.1
    )
    tiny.blocks[0].mlp.fc1.bias.add_(0.5)
    save_folder(tmp_path, tiny, {})
    with pytest.raises(ValueError, match="train one for it"):
        ft.load_refiner(tmp_path, ft.load(tmp_path))


def _truncate(folder):
    data = (folder / REFINER_WEIGHTS).read_bytes()
    (folder / REFINER_WEIGHTS).write_bytes(data[: len(data) // 2])


def _edit(**changes):
    def edit(folder):
        card = json.loads((folder / REFINER_CARD).read_text())
        (folder / REFINER_CARD).write_text(json.dumps({**card, **changes}))

    return edit


DAMAGE = {
    "truncated": (_truncate, "corrupt or truncated"),
    "pickle": (lambda f: torch.save({}, f / REFINER_WEIGHTS), "pickle"),
    "no weights": (lambda f: (f / REFINER_WEIGHTS).unlink(), "no refiner.safetensors"),
    "no card": (lambda f: (f / REFINER_CARD).unlink(), "no refiner.json"),
    "not JSON": (lambda f: (f / REFINER_CARD).write_text("{"), "refiner.json: not JSON"),
    "of the future": (_edit(format=9), "format: 9: this library reads version 1"),
    "another kind": (_edit(architecture="paper"), "refiner.json: config: unknown SiT option"),
    "unknown kind": (_edit(architecture="sit"), "'paper', 'velocity' or 'conv'"),
    "wrong options": (
        _edit(config={"shape": [2, 8, 8], "wide": 3}),
        "config: wide: 3: is not known",
    ),
    "no options": (_edit(config=[]), "config: a list of 0: must be an object"),
    "deep": (_edit(config={"shape": [2, 8, 8], "depth": 900}), "tensors cannot be of depth=900"),
    "deeper": (
        _edit(config={"shape": [2, 8, 8], "depth": 20_000}),
        "depth: 20000: .* equal to 1000",
    ),
    "a square": (_edit(config={"shape": [8, 8]}), r"config: shape: .*must be \[channels, height"),
    "vast": (_edit(config={"shape": [2, 8, 8], "width": 10**10}), "config: width: 10000000000"),
    "half": (_edit(config={"shape": [2, 8, 8], "width": 8.5}), "config: width: 8.5"),
    "model": (_edit(model=3.5), "model: 3.5: must be an object"),
    "model, name": (_edit(model={"name": 3}), "model.name: 3"),
    "turned": (_edit(guidance=[4.0, 1.0]), "must be \\[lowest, highest\\]"),
    "one scale": (_edit(guidance=[4.0]), "must be \\[lowest, highest\\]"),
    "text": (_edit(guidance="ab"), "guidance: 'ab': must be a list"),
    "huge": (_edit(guidance=[1.0, 1e300]), "guidance.1: 1e\\+300"),
    "other size": (_edit(config={"shape": [3, 8, 8], "width": 8}), "missing|the config wants"),
    "no range": (_edit(guidance=None), "guidance: None: must be a list"),
    "no folder": (shutil.rmtree, "no such model or folder"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_refiners_are_refused_in_one_line(tmp_path, kind):
    save_refiner(tmp_path / "r", VelocityRefiner.small((2, 8, 8), width=8))
    damage, message = DAMAGE[kind]
    damage(tmp_path / "r")
    with pytest.raises(ValueError, match=message) as e:
        ft.load_refiner(tmp_path / "r")
    assert "\n" not in str(e.value)


def test_a_refiner_that_is_not_finite_is_not_saved(tmp_path):
    refiner = VelocityRefiner.small((2, 8, 8))
    nn.init.constant_(refiner.network.last.bias, float("nan"))
    with pytest.raises(ValueError, match="last"):
        save_refiner(tmp_path / "r", refiner)
    assert not (tmp_path / "r").exists()


def test_the_small_network_is_small_and_checks_the_shape():
    n = sum(p.numel() for p in SmallNetwork((3, 32, 32)).parameters())
    assert 50_000 < n < 150_000
    with pytest.raises(ValueError, match="must be"):
        SmallNetwork((3, 32))
