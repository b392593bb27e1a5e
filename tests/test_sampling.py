"""The loop: callbacks, guidance, refiners, threads; against the mathematics of the fields."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fields import MEANS, Reuse, constant, gaussian, gaussian_flow, mixture

from flowturbo import noise
from flowturbo.field import CountCalls
from flowturbo.guidance import Guidance
from flowturbo.plan import Plan
from flowturbo.refiner import PaperRefiner
from flowturbo.sampling import sample


def draw(n=4):
    return noise.draw(range(n), (2,), dtype=torch.float64)


class Labelled:
    """The mixture, or one of its components where the condition is not -1."""

    def __call__(self, x, t, cond):
        every = mixture(x, t)
        one = torch.stack(
            [mixture(x[i : i + 1], t, means=MEANS[[c]])[0] for i, c in enumerate(cond.tolist())]
        )
        return torch.where((cond < 0)[:, None], every, one)

    def null_condition(self, cond):
        return torch.full_like(cond, -1)


def test_runs_the_table():
    plan, x = Plan.parse("H1P2R1"), draw()
    told, vs = [], []

    def model(x, t, cond):
        told.append(t.item())
        vs.append(mixture(x, t))
        return vs[-1]

    def refiner(x, t, cond, history):
        assert [h[0] for h in history] == told
        assert all(torch.equal(h[1], v) for h, v in zip(history, vs, strict=True))
        return model(x, t, cond)

    out = sample(plan, model, x, refiner=refiner)
    assert told == plan.model_times.tolist()
    total = sum(w * v for w, v in zip(plan.weights.sum(0), vs, strict=True))
    assert torch.allclose(out, x + total, atol=1e-14)


def test_told_and_previous_reach_the_evaluators():
    plan = Plan(
        times=[0, 0.5, 1],
        evaluators=("model", "refiner"),
        weights=[[0.5, 0], [0, 0.5]],
        model_times=[0.1, 0.7],
    )
    seen = []

    def refiner(x, t, cond, history):
        seen.append((t.item(), [h[0] for h in history]))
        return history[-1][1]

    sample(plan, constant, draw(), refiner=refiner)
    assert seen == [(0.7, [0.1])]
    seen.clear()
    sample(Plan.blocks("H1R1", shipped=True), constant, draw(), refiner=refiner)
    assert seen == [(0.5, [0.0, 0.5]), (1.0, [0.0, 0.5])]


def test_zero_refiner_reuses_the_last_velocity():
    model = CountCalls(gaussian)
    x = draw()
    out = sample(Plan.parse("H1R1"), model, x, refiner=Reuse())
    v0 = gaussian(x, 0.0)
    v1 = gaussian(x + v0 / 2, 0.5)
    assert model.calls == 2
    assert torch.allclose(out, x + (v0 + v1) / 4 + v1 / 2, atol=1e-14)


def test_there_and_back():
    x = draw()
    data = sample(Plan.rk4(40), mixture, x)
    assert torch.allclose(sample(Plan.rk4(40, direction="backward"), mixture, data), x, atol=1e-5)


def test_from_the_middle():
    x, t = draw(), 0.35
    out = sample(Plan.parse("AB2:400").restrict(t), gaussian, x)
    assert torch.allclose(out, gaussian_flow(x, t, 1.0), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_low_precision_runs_in_float32(dtype):
    kept = torch.float64 if dtype == torch.float64 else torch.float32

    def model(x, t, cond):
        assert x.dtype == t.dtype == kept
        return gaussian(x, t)

    assert sample(Plan.euler(3), model, draw().to(dtype)).dtype == dtype


def test_gradients_only_when_asked():
    x = draw().requires_grad_()
    assert not sample(Plan.euler(3), gaussian, x).requires_grad
    out = sample(Plan.heun(50), gaussian, x, differentiable=True)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert torch.allclose(slope, torch.full_like(slope, 0.7), atol=1e-3)  # STD / 1
    with torch.no_grad():
        assert not sample(Plan.euler(3), gaussian, x, differentiable=True).requires_grad


# -- callbacks --------------------------------------------------------------------------------


def test_callback_receives_every_step():
    plan, x, steps, states = Plan.parse("H1P2R1"), draw(), [], [draw()]

    def callback(step):
        steps.append(step)
        if step.evaluator == "model":
            t = float(plan.times[step.index])
            v = mixture(states[-1], t)
            torch.testing.assert_close(step.x1, states[-1] + (1 - t) * v)
        states.append(step.x)

    out = sample(plan, mixture, x, refiner=Reuse(), callback=callback)
    assert [s.index for s in steps] == list(range(len(plan)))
    assert [s.time for s in steps] == plan.times[1:].tolist()
    assert [s.evaluator for s in steps] == list(plan.evaluators)
    assert {s.total for s in steps} == {len(plan)}
    assert torch.equal(steps[-1].x, out)
    assert torch.equal(out, sample(plan, mixture, x, refiner=Reuse()))


def test_callback_receives_the_predicted_clean_image():
    seen = []
    sample(Plan.euler(4), constant, draw(), callback=lambda s: seen.append(s.x1))
    assert len(seen) == 4
    exact = draw() + constant(draw(), 0.0)
    assert all(torch.allclose(x1, exact) for x1 in seen)


def test_callback_may_edit_the_state():
    def callback(step):
        return torch.full_like(step.x, 5.0) if step.index == 2 else None

    out = sample(Plan.euler(4), constant, draw(), callback=callback)
    assert torch.allclose(out, 5.0 + constant(draw(), 0.0) / 4)


def test_the_edit_of_the_last_step_is_the_result():
    out = sample(Plan.euler(4), constant, draw(), callback=lambda s: torch.zeros_like(s.x))
    assert torch.equal(out, torch.zeros_like(out))


def test_wrong_shapes_are_refused():
    with pytest.raises(
        ValueError, match=r"callback returned <tensor \(1, 2\) .* at t=0.25: .* \(4, 2\) on cpu"
    ):
        sample(Plan.euler(4), constant, draw(), callback=lambda s: s.x[:1])
    with pytest.raises(ValueError, match=r"model returned <tensor \(4, 1\) .* at t=0: .* \(4, 2\)"):
        sample(Plan.euler(4), lambda x, t, c: x[:, :1], draw())
    with pytest.raises(ValueError, match=r"refiner returned <tensor \(2,\) .* at t=0.5"):
        sample(Plan.parse("H1R1"), constant, draw(), refiner=lambda x, t, c, h: x[0])


def test_a_refiner_that_is_missing():
    with pytest.raises(ValueError, match=r"'H1P5R3' has 6 refiner evaluations.*pass refiner"):
        sample(Plan.parse("H1P5R3"), constant, draw())


# -- guidance ---------------------------------------------------------------------------------


def test_guidance_of_one_is_off():
    labels, model = torch.tensor([0, 1, 2, 0]), CountCalls(Labelled())
    off = sample(Plan.euler(4), Labelled(), draw(), labels)
    assert torch.equal(sample(Plan.euler(4), model, draw(), labels, guidance=1), off)
    assert model.calls == 4
    one = sample(Plan.euler(4), Labelled(), draw(), labels, guidance=torch.tensor(1.0))
    assert torch.allclose(one, off, atol=1e-14)


def test_guidance_formula():
    x, labels = draw(), torch.tensor([0, 1, 2, 0])
    field = Labelled()
    v_c, v_u = field(x, 0.0, labels), field(x, 0.0, field.null_condition(labels))
    out = sample(Plan.euler(1), field, x, labels, guidance=2.5)
    assert torch.allclose(out, x + v_u + 2.5 * (v_c - v_u), atol=1e-14)


def test_negative_condition():
    x, labels, negative = draw(), torch.tensor([0, 1, 2, 0]), torch.tensor([1])
    field = Labelled()
    v_c, v_n = field(x, 0.0, labels), field(x, 0.0, negative.expand(4))
    out = sample(Plan.euler(1), field, x, labels, guidance=2.5, negative=negative)
    assert torch.allclose(out, x + v_n + 2.5 * (v_c - v_n), atol=1e-14)


def test_guidance_per_image_is_each_image_alone():
    x, labels, scales = draw(), torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, 1.5, 3.0, 0.0])
    together = sample(Plan.parse("AB2:5"), Labelled(), x, labels, guidance=scales)
    for i, scale in enumerate(scales.tolist()):
        rows = slice(i, i + 1)
        alone = sample(Plan.parse("AB2:5"), Labelled(), x[rows], labels[rows], guidance=scale)
        assert torch.allclose(together[rows], alone, atol=1e-12)


def test_refiner_sees_guided_velocities_and_is_not_guided():
    labels, refiner, seen = torch.tensor([0, 1, 2, 0]), Reuse(), []

    def watch(x, t, cond, history):
        assert len(x) == 4
        seen.append(history[0][1])
        return refiner(x, t, cond, history)

    sample(Plan.parse("H1R1"), Labelled(), draw(), labels, guidance=2.0, refiner=watch)
    v_c, v_u = Labelled()(draw(), 0.0, labels), mixture(draw(), 0.0)
    assert refiner.calls == 2
    assert torch.allclose(seen[0], v_u + 2 * (v_c - v_u), atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_interval_skips_the_second_branch_by_the_numbers_of_the_plan(dtype):
    batches, times = [], []

    class Field(Labelled):
        def __call__(self, x, t, cond):
            batches.append(len(x))
            times.append(t)
            return super().__call__(x, t, cond)

    guided = Guidance(Field(), 3.0, interval=(0.25, 0.5))
    labels = torch.tensor([0, 1, 2, 0])
    sample(Plan.euler(8), guided, draw().to(dtype), labels)
    assert batches == [4, 4, 8, 8, 8, 4, 4, 4]
    assert all(t.dtype == dtype and t.ndim == 0 for t in times)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_condition_is_embedded_once_with_equal_results(tiny, scale):
    calls, x, cond = [], torch.randn(3, 2, 8, 8), torch.tensor([0, 3, 5])
    tiny.y_embedder.register_forward_hook(lambda *_: calls.append(1))
    refiner = PaperRefiner.from_model(tiny)
    torch.nn.init.normal_(refiner.network.final_layer.linear.weight)
    refiner.network.y_embedder.register_forward_hook(lambda *_: calls.append(2))
    once = sample("H1P1R1", tiny, x, cond, guidance=scale, refiner=refiner)
    assert sorted(calls) == [1, 2]
    every = lambda x, t, cond: tiny(x, t, cond)
    every.null_condition = tiny.null_condition
    each = lambda x, t, cond, history: refiner(x, t, cond, history)
    each.guided = False
    again = sample("H1P1R1", every, x, cond, guidance=scale, refiner=each)
    assert sorted(calls) == [1] * 4 + [2] * 3
    assert torch.equal(once, again)


# -- independence -----------------------------------------------------------------------------


def test_two_threads_share_a_plan():
    plan, xs = Plan.parse("H1P5R3"), [draw(n) for n in range(1, 9)]
    alone = [sample(plan, mixture, x, refiner=Reuse()) for x in xs]
    fresh = Plan.parse("H1P5R3")  # nothing cached on it yet
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(lambda x: sample(fresh, mixture, x, refiner=Reuse()), xs * 4))
    assert len(shared) == 32
    assert all(torch.equal(a, b) for a, b in zip(shared, alone * 4, strict=True))


def test_the_start_is_not_written_to():
    x = draw()
    sample(Plan.heun(3), constant, x)
    assert torch.equal(x, draw())


def test_memory_holds_only_velocities_still_used():
    alive = []

    class Model:
        def __call__(self, x, t, cond):
            alive.append(sum(r() is not None for r in refs))
            v = mixture(x, t)
            refs.append(weakref.ref(v))
            return v

    refs = []
    sample(Plan.adams_bashforth(10), Model(), draw())
    assert max(alive) <= 2


def test_a_wider_velocity_does_not_widen_the_state():
    layer = torch.nn.Linear(2, 2)
    shift = torch.ones(2, dtype=torch.float64)
    x = torch.randn(3, 2)
    out = sample(Plan.parse("H2"), lambda x, t, c: layer(x) + shift, x)
    assert out.dtype == torch.float32
    edited = sample(
        Plan.parse("H2"), lambda x, t, c: layer(x), x, callback=lambda step: step.x.double()
    )
    assert torch.equal(edited, sample(Plan.parse("H2"), lambda x, t, c: layer(x), x))


@pytest.mark.parametrize("answer", [None, 0.0, "v"])
def test_what_is_not_a_tensor_is_refused(answer):
    with pytest.raises(
        ValueError, match=rf"the model returned {answer!r} at t=0: must be a tensor"
    ):
        sample(Plan.parse("E1"), lambda x, t, c: answer, torch.zeros(2, 2))


def test_whole_numbers_are_no_state():
    with pytest.raises(
        ValueError, match=r"x=<tensor \(2, 2\) of torch.int64>: must be of torch.float16"
    ):
        sample(Plan.parse("E1"), lambda x, t, c: x, torch.zeros(2, 2, dtype=torch.long))


def test_a_plan_may_be_given_by_its_notation():
    x = torch.randn(3, 2, dtype=torch.float64)
    assert sample("H3", gaussian, x).equal(sample(Plan.parse("H3"), gaussian, x))


def test_an_error_of_the_field_says_what_it_was_called_with():
    with pytest.raises(IndexError) as raised:
        sample("E2", lambda x, t, cond: x * t[:, None], draw())
    (note,) = raised.value.__notes__
    assert "x=<tensor (4, 2) of torch.float64>, t=0 as a tensor of shape (), cond=None" in note
