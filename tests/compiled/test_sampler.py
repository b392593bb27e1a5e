"""Compiled samplers against the loop: every plan, scope and precision; shapes; what is refused.

Most are traced whole but not handed to inductor, whose C++ takes its time; a few are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from fields import gaussian, mixture
from torch import nn

import flowturbo as ft
from flowturbo.compiled import backend
from flowturbo.compiled.backend import Recompiled, check_cache
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner, VelocityRefiner

TOLERANCE = {  # of the largest pixel, for two blocks
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 0.03,
    torch.float16: 0.004,
}
FITTED = ft.Plan(
    times=[0, 0.3, 0.55, 0.55, 1],
    evaluators=("model", "model", "model", "refiner"),
    weights=[[0.3, 0, 0, 0], [-0.1, 0.35, 0, 0], [0, 0, 0, 0], [0.05, 0, 0.2, 0.2]],
    model_times=[0.001, 0.31, 0.55, 0.9],
    last_velocity=(-1, 0, 1, 1),
    name="fitted",
)


def _random(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1, generator=generator)
    return module.eval().requires_grad_(False)


def _network(**options) -> SiT:
    config = dict(size=8, channels=2, patch=2, width=16, depth=2, heads=2, classes=5)
    return _random(SiT(SiTConfig(**{**config, **options})))


@pytest.fixture(scope="module")
def net() -> SiT:
    return _network()


@pytest.fixture(scope="module")
def refiners(net) -> dict[str, nn.Module]:
    paper, ours = PaperRefiner.from_model(net), VelocityRefiner.from_model(net, (1.0, 4.0))
    return {"paper": _random(paper), "ours": _random(ours)}


@pytest.fixture
def traced(monkeypatch):
    """Dynamo and autograd's tracing as ever, but the graph is then run by PyTorch."""
    monkeypatch.setattr(backend, "_BACKEND", "aot_eager")


def _x(n=5, dtype=torch.float32):
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(n)).to(dtype)


COND = torch.tensor([0, 3, 2, 4, 1])
ONE = {"cond": COND[:1], "batch": 2}


def _close(got, wanted, dtype=torch.float32):
    assert got.dtype == wanted.dtype
    away = (got - wanted).abs().max() / wanted.abs().max()
    assert away <= TOLERANCE[dtype], float(away)


@pytest.fixture(scope="module")
def fast(net, refiners):
    """The real thing, compiled by inductor: guided, with a refiner."""
    return ft.compile(net, "H1R1", refiners["ours"], guidance=2.0, cond=COND[:1], batch=2)


# -- equal to the loop ------------------------------------------------------------------------


def test_inductor_equals_the_loop_for_any_number_of_rows_and_scale(fast, net, refiners):
    graphs = fast.graphs
    assert graphs == 1
    for n, scale in ((1, 2.0), (2, 3.5), (5, torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0])), (3, 1.0)):
        x, cond = _x(n), COND[:n]
        loop = ft.sample("H1R1", net, x, cond, guidance=scale, refiner=refiners["ours"])
        _close(fast(x, cond, guidance=scale), loop)
        assert torch.equal(x, _x(n))
    _close(fast(x, cond), ft.sample("H1R1", net, x, cond, guidance=2.0, refiner=refiners["ours"]))
    assert (fast.graphs, fast.recompiles) == (graphs, 0)
    assert fast.report["difference"][2] <= TOLERANCE[torch.float32] * fast.report["largest"][2]
    assert fast.report["seconds"][2] > 0
    assert fast.report["peak_bytes"][2] > 2 * x[0].nbytes


def test_options_of_inductor_go_before_ours():
    ours = backend.inductor_options(None)
    assert backend.inductor_options({"freezing": True}) == {**ours, "freezing": True}
    assert backend.inductor_options(dict.fromkeys(ours, "theirs")) == dict.fromkeys(ours, "theirs")


def test_results_are_never_overwritten(fast):
    first = fast(_x(2), COND[:2])
    kept = first.clone()
    fast(_x(2) + 1, COND[:2])
    assert torch.equal(first, kept)


def test_inputs_of_any_kind_run_the_same_graph(fast):
    wanted = fast(_x(2), COND[:2])
    with torch.inference_mode():
        assert torch.equal(fast(_x(2), COND[:2]), wanted)
    strided = _x(2).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert torch.equal(fast(strided.requires_grad_(), COND[:2]), wanted)
    half = fast(_x(2, torch.float16), COND[:2])
    assert half.dtype == torch.float16
    assert torch.equal(half, fast(_x(2).half().float(), COND[:2]).half())
    assert fast.recompiles == 0


@pytest.mark.parametrize(
    ("plan", "refiner"),
    [
        ("H1P1", None),
        ("[H1P1R1]x1", "paper"),
        ("H1R1", "ours"),
        ("RK4:1", None),
        ("AB3:4@1.6", None),
        ("UNIPC3:4", None),
        (FITTED, "ours"),
    ],
    ids=lambda p: getattr(p, "name", p),
)
def test_every_plan_equals_the_loop(traced, net, refiners, plan, refiner):
    refiner = refiners.get(refiner)
    fast = ft.compile(net, plan, refiner, guidance=2.0, cond=COND[:1], batch=5)
    _close(fast(_x(), COND), ft.sample(plan, net, _x(), COND, guidance=2.0, refiner=refiner))
    assert (fast.graphs, fast.recompiles) == (1, 0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_precision_equals_the_loop_in_it(traced, net, refiners, dtype):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fast = ft.compile(net, "H1R1", refiners["ours"], dtype=dtype, guidance=2.0, **ONE)
    assert fast.shapes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    x = _x(3).to(fast.shapes.dtype)
    low = ft.Cast(_network().to(dtype), dtype)
    refiner = VelocityRefiner.from_model(net, (1.0, 4.0))
    refiner.load_state_dict(refiners["ours"].state_dict())
    loop = ft.sample("H1R1", low, x, COND[:3], guidance=2.0, refiner=refiner.to(dtype))
    _close(fast(x, COND[:3]), loop, dtype)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("scope", ["row", "network", "none"])
def test_every_scope_equals_the_loop(traced, net, refiners, scope):
    args = {"guidance": 2.0, "refiner": refiners["ours"]}
    sizes = {"row": 2, "network": (2, 3), "none": (2, 3)}[scope]
    fast = ft.compile(net, "H1R1", scope=scope, **args, **{**ONE, "batch": sizes})
    for n in (1, 5):
        _close(fast(_x(n), COND[:n]), ft.sample("H1R1", net, _x(n), COND[:n], **args))
    expected = {"row": 4, "network": 2 * (1 + 2), "none": 0}  # a field, two rows of the refiner
    assert (fast.graphs, fast.recompiles) == (expected[scope], 0)


def test_without_guidance_and_without_a_condition(traced, net):
    fast = ft.compile(net, "E2", batch=2)
    _close(fast(_x(2)), ft.sample("E2", net, _x(2)))


def test_a_guidance_interval_is_settled_when_compiled(traced, net):
    guided = ft.Guidance(net, 3.0, interval=(0.2, 0.6), channels=1)
    fast = ft.compile(guided, "E4", **ONE)
    loop = ft.sample("E4", guided, _x(3), COND[:3])
    _close(fast(_x(3), COND[:3]), loop)
    other = ft.Guidance(net, 1.5, null=COND[1:2], interval=(0.2, 0.6), channels=1)
    loop = ft.sample("E4", other, _x(3), COND[:3])
    _close(fast(_x(3), COND[:3], guidance=1.5, negative=COND[1:2]), loop)


def test_a_field_of_any_kind(traced):
    x = torch.randn(7, 2, dtype=torch.float64)
    args = {"shape": (2,), "dtype": torch.float64}
    fast = ft.compile(mixture, "RK4:2", batch=(4,), **args)
    _close(fast(x), ft.sample("RK4:2", mixture, x), torch.float64)


def test_a_text_model_from_its_folder(traced, text_model):
    model = ft.load(text_model)
    fast = ft.compile(model, "E2", batch=2)
    cond = model.condition(["red apple", "pizza, noto style"])
    x = torch.randn(2, *model.shape)
    _close(fast(x, cond), ft.sample("E2", model, x, cond, guidance=2.0))


# -- nothing is compiled after the warm-up ------------------------------------------------------


def test_a_recompile_is_an_error(traced):
    net = _network()
    fast = ft.compile(net, "E1", cond=COND[:1], batch=2)
    wanted = fast(_x(2), COND[:2])
    net.blocks[0].norm1.eps = 0.1
    with pytest.raises(Recompiled, match=r"states \(2, 2, 8, 8\), batch \(2,\).*compile anew"):
        fast(_x(1), COND[:1])
    assert (fast.graphs, fast.recompiles) == (1, 1)
    net.blocks[0].norm1.eps = 1e-6
    assert torch.equal(fast(_x(2), COND[:2]), wanted)


def test_many_samplers_do_not_use_up_one_limit(traced):
    args = {"shape": (2, 8, 8)}
    made = [ft.compile(gaussian, "E1", batch=b, **args) for b in range(1, 11)]
    assert [m.graphs for m in made] == [1] * 10
    for m in made:
        _close(m(_x(2)), ft.sample("E1", gaussian, _x(2)))


def test_threads_sample_different_plans_through_one_model(traced, net):
    plans = ["E2", "AB2:3"]
    shared = ft.compile(net, "E1", scope="network", cond=COND[:1], batch=2).field
    fasts = [ft.compile(net, p, cond=COND[:1], batch=2) for p in plans]
    jobs = [lambda f=f: f(_x(2), COND[:2]) for f in fasts]
    jobs += [lambda p=p: ft.sample(p, shared, _x(2), COND[:2]) for p in plans]
    alone = [job() for job in jobs]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda job: job(), jobs * 4))
    assert all(torch.equal(a, b) for a, b in zip(together, alone * 4, strict=True))


def test_threads_share_one_sampler(fast):
    xs = [_x(n) for n in (1, 2, 3, 4, 5)]
    alone = [fast(x, COND[: len(x)]) for x in xs]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda x: fast(x, COND[: len(x)]), xs * 3))
    assert all(torch.equal(a, b) for a, b in zip(together, alone * 3, strict=True))
    assert fast.recompiles == 0


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 2, 4, 4), COND[:2]), r"\(2, 2, 4, 4\).*states \(2, 8, 8\), batch \(2,\)"),
        ((torch.zeros(8, 8), COND[:2]), r"x=<tensor \(8, 8\)"),
        ((torch.zeros(2, 2, 8, 8).double(), COND[:2]), r"pass x.to\('cpu', torch.float32\)"),
        ((torch.zeros(2, 2, 8, 8), COND[:3]), r"cond is \(3,\), not \(2,\)"),
        ((torch.zeros(2, 2, 8, 8), COND[:2].float()), "cond is torch.float32"),
        ((torch.zeros(2, 2, 8, 8), None), "cond is None"),
        ((torch.zeros(2, 2, 8, 8), COND[:2], float("nan")), "guidance=nan: must be a finite"),
        (
            (torch.zeros(2, 2, 8, 8), COND[:2], torch.ones(3)),
            r"one number, or one per image \(2,\)",
        ),
        ((torch.zeros(2, 2, 8, 8), COND[:2], 9.0), "guidance=9.0: this refiner was made for"),
        ((torch.zeros(2, 2, 8, 8), COND[:2], 2.0, COND[:3]), r"negative is \(3,\)"),
    ],
)
def test_calls_that_do_not_fit(fast, arguments, message):
    x, cond, *rest = arguments
    named = dict(zip(("guidance", "negative"), rest, strict=False))
    with pytest.raises(ValueError, match=message):
        fast(x, cond, **named)
    assert fast.recompiles == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"batch": []}, r"batch=\[\]"),
        ({"scope": "block"}, "scope='block': must be one of 'plan', 'row'"),
        ({"dtype": torch.int8}, "dtype=torch.int8"),
        ({"plan": "H1R1"}, "'H1R1' has 2 refiner evaluations"),
        ({"guidance": 2.0}, "pass an example as cond"),
        ({"guidance": float("inf"), "cond": COND[:1]}, "finite"),
        ({"capture": True}, "CUDA graphs need CUDA"),
        ({"model": mixture}, "shape=None"),
    ],
)
def test_what_cannot_be_compiled(net, arguments, message):
    with pytest.raises(ValueError, match=message):
        ft.compile(**{"model": net, "plan": "E1", **arguments})


def test_a_field_that_looks_at_its_values(traced):
    field = lambda x, t, cond: x if x.sum() > 0 else -x
    with pytest.raises(ValueError, match="cannot be compiled whole"):
        ft.compile(field, "E1", shape=(2,))


def test_compiled_without_guidance(traced, net):
    fast = ft.compile(net, "E1", cond=COND[:1], batch=2)
    assert torch.equal(fast(_x(2), COND[:2], guidance=1), fast(_x(2), COND[:2]))
    with pytest.raises(ValueError, match=r"guidance=2.0: compiled without guidance"):
        fast(_x(2), COND[:2], guidance=2.0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bundled_models_by_inductor(dtype):
    from flowturbo.models.zoo import bundled

    assert bundled()
    for name in bundled():
        model = ft.load(name)
        few = [p for p in model.plans.values() if p.nfe["model"] <= 4]  # long ones take minutes
        plans = [ft.Plan.parse("H1P2"), *few]
        cond = model.condition((model.names * 4)[:4])
        x = ft.noise.draw(range(4), model.shape)
        for plan in plans:
            refiner = ft.load_refiner(name, model) if plan.nfe["refiner"] else None
            fast = ft.compile(model, plan, refiner, batch=4, dtype=dtype)
            low = ft.load(name, dtype=dtype)
            guidance = model.defaults["guidance"]
            less = refiner and ft.load_refiner(name, model, dtype=dtype)
            loop = ft.sample(plan, low, x, cond, guidance=guidance, refiner=less)
            pictures, away = fast(x, cond), lambda a, b: (a - b).square().mean().sqrt()
            if dtype == torch.float32:
                assert away(pictures, loop) <= 1e-4, (name, plan.name)
            else:  # rounding moves both: no farther from float32 than the loop is
                true = ft.sample(plan, model, x, cond, guidance=guidance, refiner=refiner)
                assert away(pictures, true) <= 1.25 * away(loop, true) <= 0.15, (name, plan.name)
            assert (fast.graphs, fast.recompiles) == (1, 0)


def test_a_plan_fitted_elsewhere_warns_before_it_is_compiled(net, refiners):
    made = lambda **info: FITTED.with_info({"model": "other", **info})
    compiled = lambda plan: ft.compile(net, plan, refiners["ours"], scope="none", **ONE)
    with pytest.warns(UserWarning, match="fitted to a refiner with weights 0123"):
        compiled(made(refiner="0123"))
    with pytest.warns(UserWarning, match="fitted at guidance 4, not 1"):
        compiled(made(guidance=[4.0, 4.0]))


def test_a_refiner_for_one_scale_serves_the_scale_that_was_compiled(net):
    refiner = _random(VelocityRefiner.from_model(net, (2.0, 2.0)))
    x, cond = torch.randn(2, *net.shape), torch.tensor([1, 2])
    plan = replace(ft.Plan.parse("AB2:3"), evaluators=("model", "model", "refiner"))
    fast = ft.compile(net, plan, refiner, batch=2, guidance=2.0, cond=cond, scope="none")
    wanted = ft.sample(plan, net, x, cond, guidance=2.0, refiner=refiner)
    assert torch.allclose(fast(x, cond), wanted, atol=1e-5)
    with pytest.raises(ValueError, match=r"guidance=1.0: this refiner was made for 2; use"):
        fast(x, cond, guidance=1.0)


def test_a_cache_with_empty_libraries_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    error = RuntimeError("file too short")
    check_cache(error)
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "cab.main.so").touch()
    with pytest.raises(ValueError, match="empty libraries, which a killed compilation leaves"):
        check_cache(error)
