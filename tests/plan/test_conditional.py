"""Plans with conditional evaluations: one branch of guidance, and weights for the difference."""

import numpy as np
import pytest
import torch

import flowturbo as ft
from flowturbo.field import CountCalls
from flowturbo.guidance import Guidance

ONES = torch.ones(3, 1, dtype=torch.float64)


class Field:
    """Two branches that differ; the numbers of rows it was called with are in ``rows``."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, t, cond):
        self.rows.append(len(x))
        return torch.tanh(x.roll(1, 1) + cond * torch.cos(3 * torch.as_tensor(t)))

    def null_condition(self, cond):
        return torch.zeros_like(cond)


def states():
    generator = torch.Generator().manual_seed(0)
    x, cond = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    return x, cond


def by_hand(plan, field, x, cond, scale):
    """The update of the documentation, with both branches at every row."""
    difference = plan.guidance_weights
    conditional, differences = [], []
    for k, t in enumerate(plan.model_times):
        v_c, v_u = field(x, t, cond), field(x, t, 0 * cond)
        conditional.append(v_c)
        differences.append(v_c - v_u)
        for j in range(k + 1):
            x = x + plan.weights[k, j] * conditional[j]
            x = x + (scale - 1) * difference[k, j] * differences[j]
    return x


def random_plan(pattern="FFCFCC", seed=0):
    made = ft.Plan.parse(f"AB2:{pattern}@1.6")
    size, rng = len(made), np.random.default_rng(seed)
    weights = made.weights + np.tril(0.05 * rng.normal(size=(size, size)))
    difference = np.tril(0.2 * rng.normal(size=(size, size)))
    difference[:, [letter == "C" for letter in pattern]] = 0
    return ft.Plan(
        times=made.times,
        evaluators=made.evaluators,
        weights=weights,
        guidance_weights=difference,
        name="random",
    )


@pytest.mark.parametrize("scale", [2.5, 0.0, torch.tensor([1.0, 2.0, 4.0])])
def test_it_is_the_documented_update(scale):
    plan, (x, cond), field = random_plan(), states(), Field()
    result = ft.sample(plan, field, x, cond, guidance=scale)
    assert field.rows == [6, 6, 3, 6, 3, 3]
    w = scale.double()[:, None] if isinstance(scale, torch.Tensor) else scale
    torch.testing.assert_close(result, by_hand(plan, field, x, cond, w), rtol=1e-12, atol=1e-12)


def test_by_default_the_last_difference_is_reused():
    plan, (x, cond), field = ft.Plan.parse("AB2:FFCCF"), states(), Field()
    kept = {}

    def reusing(x, t, cond):  # both branches, the difference only where it is computed
        v = field(x, t, cond)
        if not np.isclose(float(t), plan.times[2:4]).any():
            kept["d"] = v - field(x, t, 0 * cond)
        return v + 2.0 * kept["d"]

    expected = ft.sample("AB2:5", reusing, x, cond)
    torch.testing.assert_close(ft.sample(plan, field, x, cond, guidance=3.0), expected)


def test_where_nothing_is_guided_a_conditional_evaluation_is_the_models():
    (x, cond), field = states(), Field()
    expected = ft.sample("AB2:6@1.6", field, x, cond)
    assert torch.equal(ft.sample("AB2:FFCFCC@1.6", field, x, cond), expected)
    reached = ft.sample("AB2:FFCFCC@1.6", field, x, cond, guidance=torch.ones(3))
    torch.testing.assert_close(reached, expected)


def test_a_plan_without_conditional_evaluations_is_as_it_was():
    plan, (x, cond), field = ft.Plan.parse("AB2:5"), states(), Field()
    assert plan.guidance_weights is None
    assert plan.digest == "45aa23c572cd1a18"
    same = ft.Plan(
        times=plan.times,
        evaluators=plan.evaluators,
        weights=plan.weights,
        guidance_weights=plan.weights,
    )
    run = lambda p: ft.sample(p, field, x, cond, guidance=2.0)
    assert torch.equal(run(plan), run(same))


def test_counts():
    plan = ft.Plan.parse("AB2:FFCFC@1.6")
    assert plan.nfe == {"model": 3, "conditional": 2, "refiner": 0}
    assert (plan.passes(4.0), plan.passes(1.0), plan.passes(0.0)) == (8, 5, 8)
    assert plan.cost(model=2.0) == 8.0
    assert plan.cost(model=2.0, conditional=2.0) == 10.0
    assert ft.Plan.parse("H1P2R1").passes(2) == 8
    assert "3 model + 2 conditional evaluations" in str(plan)
    assert "d1 +0.1898" in str(plan)
    with pytest.raises(ValueError, match="guidance='2'"):
        plan.passes("2")


@pytest.mark.parametrize(
    "text", ["AB2:FFCFC@1.6", "UNIPC2:FCFC", "E1", "dpm2:ffc", "AB2:FFRFR@2", "AB2:FRC"]
)
def test_notation_and_json(text):
    plan = ft.Plan.parse(text)
    assert plan.name == text.upper()
    assert ft.Plan.parse(plan.name) == plan
    assert ft.Plan.from_json(plan.to_json()) == plan
    made = random_plan()
    assert ft.Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "text", ["AB2:CF", "AB2:RF", "AB2:FXC", "AB2:", "RK4:FFC", "AB3RK:FFFFC", "FFC"]
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(ValueError, match=r"^plan .*allowed"):
        ft.Plan.parse(text)


def test_guidance_weights_are_checked():
    plan = random_plan("FFC")
    bad = np.ones((3, 3))
    for weights, message in (
        (bad, r"guidance_weights\[0\]\[1\]"),
        (np.tril(bad), r"guidance_weights\[:, 2\].*must be 0 .* 'conditional'"),
        (np.zeros((2, 2)), "guidance_weights of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            ft.Plan(
                times=plan.times,
                evaluators=plan.evaluators,
                weights=plan.weights,
                guidance_weights=weights,
            )
    with pytest.raises(ValueError, match=r"evaluators\[0\]='conditional': must be 'model'"):
        ft.Plan(times=[0, 1], evaluators=["conditional"], weights=[[1]])


def test_a_callback_sees_the_guided_velocity_as_the_plan_estimates_it():
    (x, cond), field, steps = states(), Field(), []
    ft.sample("AB2:FFC", field, x, cond, guidance=3.0, callback=steps.append)
    assert [s.evaluator for s in steps] == ["model", "model", "conditional"]
    before, last = steps[1], steps[2]
    at = torch.tensor(before.time, dtype=torch.float64)
    v_c = field(before.x, at, cond)
    earlier = steps[0]
    term = before.v - field(earlier.x, torch.tensor(earlier.time, dtype=torch.float64), cond)
    torch.testing.assert_close(last.v, v_c + term)
    torch.testing.assert_close(last.x1, before.x + (1 - before.time) * last.v)


def test_a_refiner_sees_it_too():
    (x, cond), field, seen, steps = states(), Field(), [], []

    def refiner(x, t, cond, history):
        seen.append(history[-1])
        return history[-1][1]

    plan = ft.Plan.parse("AB2:FFCF")
    plan = ft.Plan(
        times=plan.times,
        evaluators=("model", "model", "conditional", "refiner"),
        weights=plan.weights,
    )
    ft.sample(plan, field, x, cond, guidance=2.0, refiner=refiner, callback=steps.append)
    assert torch.equal(seen[0][1], steps[2].v)


def test_outside_the_interval_of_guidance_nothing_is_added():
    (x, cond), field = states(), Field()
    guided = Guidance(field, 3.0, interval=(0.0, 0.5))
    steps = []
    ft.sample("AB2:FFCC", guided, x, cond, callback=steps.append)
    last, before = steps[3], steps[2]
    at = torch.tensor(before.time, dtype=torch.float64)
    torch.testing.assert_close(last.v, field(before.x, at, cond))


def test_it_starts_in_the_middle():
    plan = ft.Plan.parse("AB2:FFCFC")
    later = plan.restrict(0.3)
    assert later.evaluators == ("model", "conditional", "model", "conditional")
    x, cond = states()
    assert torch.isfinite(ft.sample(later, Field(), x, cond, guidance=2.0)).all()
    fitted = random_plan()
    rest = fitted.restrict(float(fitted.times[1]))
    assert rest.guidance_weights is not None
    conditional = [e == "conditional" for e in rest.evaluators]
    assert not rest.guidance_weights[:, conditional].any()


def test_it_converges_to_the_guided_solution():
    (x, cond), field = states(), Field()
    exact = ft.sample("RK4:64", field, x, cond, guidance=2.0)
    errors = [
        float((ft.sample(f"AB2:{'FC' * n}", field, x, cond, guidance=2.0) - exact).abs().max())
        for n in (8, 16, 32)
    ]
    assert errors[0] / errors[2] > 3.5  # the stale difference is of order 1


@pytest.mark.parametrize("scope", ["plan", "row", "network", "none"])
def test_compiled_it_is_the_same(scope):
    torch.manual_seed(0)
    network = torch.nn.Linear(6, 5).eval().requires_grad_(False)

    def field(x, t, cond):
        return torch.tanh(network(torch.cat([x, cond[:, None] + t.expand(len(x), 1)], 1)))

    field.null_condition = torch.zeros_like
    plan, x, cond = random_plan("FFCFC"), torch.randn(2, 5), torch.randn(2)
    made = ft.compile(field, plan, batch=2, shape=(5,), cond=cond[:1], guidance=2.5, scope=scope)
    expected = ft.sample(plan, field, x, cond, guidance=2.5)
    torch.testing.assert_close(made(x, cond), expected, rtol=1e-4, atol=1e-5)
    assert made.recompiles == 0


def test_calls_are_counted_as_passes():
    (x, cond), counted = states(), CountCalls(Field())
    ft.sample("AB2:FFCFC", counted, x, cond, guidance=2.0)
    assert counted.calls == 5
    assert sum(counted.field.rows) == len(x) * ft.Plan.parse("AB2:FFCFC").passes(2.0)
