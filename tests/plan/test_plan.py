"""Plans: the order of every solver, then what a plan is as a value."""

import copy
import itertools
import json
import os
import pickle
import time

import numpy as np
import pytest
import torch
from fields import Reuse, constant, gaussian, gaussian_flow, mixture, runge_kutta
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdiffeq import odeint

from flowturbo.field import CountCalls
from flowturbo.plan import Plan
from flowturbo.sampling import sample

ORDERS = {  # solver of n steps: order of convergence
    "E{n}": 1,
    "H{n}": 2,
    "MID:{n}": 2,
    "P{n}": 2,
    "H2P{n}": 2,
    "E1P{n}": 2,
    "H{n}P{n}": 2,
    "[H1P2E1]x{n}": 1,
    "AB2:{n}": 2,
    "AB2RK:{n}": 2,
    "AB3:{n}": 2,
    "AB3RK:{n}": 3,
    "AB4RK:{n}": 4,
    "RK4:{n}": 4,
    "RK38:{n}": 4,
}
TEXTS = [
    "E1", "E8", "H1", "H4", "P1", "P5", "H1P5", "H1P5R3", "H2P4R2", "H2P8R2", "H5P7R3",
    "[H1P1R1]x2", "[[H1R1]x2P2]x2", "E2H2P3", "E1R2", "P2R1H1", "AB2:1", "AB2:8", "AB3:8",
    "AB4:12", "AB2RK:5", "AB3RK:9", "AB4RK:14", "MID:4", "RK4:2", "RK38:2", "AB2:8@1.6",
    "H1P5R3@3", "RK4:2@0.5",
]  # fmt: skip
FORWARD = ["UNIPC2:1", "UNIPC2:8", "UNIPC3:8@1.6", "DPM2:8", "DPM3:20@3"]  # mirrored backward


def noise(n=8):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def rmse(a, b):
    return (a - b).square().mean().sqrt().item()


def slope(plans, errors):
    """The order: how fast the error falls with the number of intervals."""
    intervals = [len(np.unique(plan.times)) - 1 for plan in plans]
    return -np.polyfit(np.log(intervals), np.log(errors), 1)[0]


def every_plan():
    plans = [Plan.parse(text, direction=d) for text in TEXTS for d in ("forward", "backward")]
    plans += [Plan.parse(text) for text in FORWARD]
    plans += [Plan.blocks(text, shipped=True) for text in ("H1P5R3", "[H1P1R1]x2", "H1R2P2")]
    plans += [p.restrict(t) for p in list(plans) for t in (0.07, 0.25, 0.5, 0.93)]
    assert len(plans) > 200
    return plans


# -- mathematics ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def references():
    data = runge_kutta(mixture, noise(), 0.0, 1.0, 1000)
    return {
        "forward": (noise(), data),
        "backward": (data, runge_kutta(mixture, data, 1.0, 0.0, 1000)),
    }


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("text", ORDERS)
def test_order_of_convergence(text, direction, references):
    start, exact = references[direction]
    sizes = (32, 48, 64) if ORDERS[text] < 3 else (128, 192, 256)
    plans = [Plan.parse(text.format(n=n), direction=direction) for n in sizes]
    errors = [rmse(sample(plan, mixture, start), exact) for plan in plans]
    assert slope(plans, errors) == pytest.approx(ORDERS[text], abs=0.2)


@pytest.mark.parametrize("text", ["AB2RK:{n}", "AB3RK:{n}", "RK4:{n}", "P{n}"])
def test_order_on_an_uneven_grid(text, references):
    start, exact = references["forward"]
    plans = [Plan.parse(text.format(n=n), shift=2.5) for n in (128, 192, 256)]
    errors = [rmse(sample(plan, mixture, start), exact) for plan in plans]
    assert slope(plans, errors) == pytest.approx(ORDERS[text], abs=0.2)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("solver", [Plan.unipc, Plan.dpm])
def test_order_between_the_ends_of_the_path(solver, order):
    exact = runge_kutta(mixture, noise(), 0.1, 0.9, 200)
    plans = [solver(n, order, times=np.linspace(0.1, 0.9, n + 1)) for n in (32, 48, 64)]
    errors = [rmse(sample(plan, mixture, noise()), exact) for plan in plans]
    assert slope(plans, errors) >= 1.8


def test_unipc_and_dpm_follow_a_fixed_image_exactly():
    def towards(x, t, cond=None):
        return (3.0 - x) / (1 - t)

    def away(x, t, cond=None):
        return (x - 3.0) / t

    for text in FORWARD:
        assert (sample(Plan.parse(text), towards, noise()) - 3.0).abs().max() < 1e-12
        back = Plan.parse(text, direction="backward")
        assert (sample(back, away, noise()) - 3.0).abs().max() < 1e-12


def test_unipc_in_closed_form():
    plan = Plan.unipc(2, times=[0.25, 0.5, 0.75])
    first = np.array([1 / 4, 0])  # predicted
    d0, d1 = np.array([[3 / 4, 0], [1 / 4, 1 / 2]])  # data, beyond the x that all share
    corrected = (d0 + d1) / 2 / 3
    last = (corrected + d1) / 2
    np.testing.assert_allclose(plan.weights, [first, last - first], atol=1e-15)


def test_the_closed_form_of_one_gaussian():
    x = noise()
    assert rmse(sample(Plan.rk4(64), gaussian, x), gaussian_flow(x, 0.0, 1.0)) < 1e-6
    assert rmse(runge_kutta(gaussian, x, 0.0, 1.0, 64), gaussian_flow(x, 0.0, 1.0)) < 1e-6


def test_constant_field_is_exact_for_every_plan():
    x = noise(2)
    for plan in every_plan():
        moved = (plan.times[-1] - plan.times[0]) * constant(x, 0.0)
        assert torch.allclose(sample(plan, constant, x, refiner=Reuse()), x + moved, atol=1e-14)


def test_rows_move_the_state_by_the_time_between():
    for plan in every_plan():
        np.testing.assert_allclose(plan.weights.sum(1), np.diff(plan.times), atol=1e-14)


def test_pseudo_corrector_is_two_step_adams_bashforth_on_the_predictor_states():
    pseudo, adams = Plan.blocks("P7"), Plan.adams_bashforth(7)
    np.testing.assert_allclose(pseudo.weights[:7, :7], adams.weights, atol=1e-15)
    np.testing.assert_array_equal(pseudo.times[:8], adams.times)
    np.testing.assert_allclose(pseudo.weights[7, 6:], [-1 / 14, 1 / 14])  # the last correction


def test_pseudo_corrector_increment_on_an_uneven_grid():
    grid = [0, 0.1, 0.4, 0.6, 1]
    plan, h = Plan.blocks("P4", times=grid), np.diff(grid)
    for i in (1, 2, 3):
        expected = [-h[i - 1] / 2, h[i] + h[i - 1] / 2]
        np.testing.assert_allclose(plan.weights[i, i - 1 : i + 1], expected)


def test_adams_bashforth_has_the_textbook_coefficients():
    three, four = (Plan.adams_bashforth(8, order).weights[-1] * 8 for order in (3, 4))
    np.testing.assert_allclose(three[-3:], np.array([5, -16, 23]) / 12, atol=1e-12)
    np.testing.assert_allclose(four[-4:], np.array([-9, 37, -59, 55]) / 24, atol=1e-12)
    assert not three[:-3].any()
    assert not four[:-4].any()


def test_adams_bashforth_integrates_polynomials_exactly_on_any_grid():
    grid = [0.0, 0.1, 0.15, 0.4, 0.7, 0.9, 1.0]
    for order in (2, 3, 4):
        row = Plan.adams_bashforth(6, order, times=grid).weights[-1]
        for power in range(order):
            exact = (grid[-1] ** (power + 1) - grid[-2] ** (power + 1)) / (power + 1)
            assert row @ np.array(grid[:-1]) ** power == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize(
    ("plan", "method"),
    [(Plan.euler, "euler"), (Plan.midpoint, "midpoint"), (Plan.heun, "heun2"), (Plan.rk38, "rk4")],
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_same_as_torchdiffeq(plan, method, direction):
    table = plan(5, shift=1.6, direction=direction)
    times = torch.tensor(np.unique(table.times))
    assert len(times) >= 6
    grid = torch.tensor(Plan.euler(5, shift=1.6, direction=direction).times)
    theirs = odeint(lambda t, x: mixture(x, t), noise(), grid, method=method)[-1]
    assert (sample(table, mixture, noise()) - theirs).abs().max() < 1e-10


def test_heun_and_the_first_pseudo_corrector_agree():
    assert np.array_equal(Plan.blocks("P1").weights, Plan.blocks("H1").weights)
    assert np.array_equal(Plan.blocks("H1P3").weights, Plan.blocks("P4").weights)


def test_the_papers_refiner_block():
    plan = Plan.blocks("H1R1")
    assert plan.evaluators == ("model", "model", "refiner", "refiner")
    assert plan.times.tolist() == [0, 0.5, 0.5, 1, 1]
    expected = [[0.5, 0, 0, 0], [-0.25, 0.25, 0, 0], [0, 0, 0.5, 0], [0, 0, -0.25, 0.25]]
    assert plan.weights.tolist() == expected
    assert [list(plan.seen_by(k)) for k in (2, 3)] == [[0, 1], [0, 1, 2]]


def test_the_refiner_block_as_shipped():
    plan = Plan.blocks("H1R2P1", shipped=True)
    assert [plan.seen_by(k)[-1] for k in (2, 3, 4, 5)] == [1, 1, 2, 2]
    assert plan.weights[5].tolist() == pytest.approx([0, 0, -1 / 8, 0, 1 / 4, 1 / 8, 0])
    assert (
        Plan.blocks("H1P5", shipped=True).weights.tolist() == Plan.blocks("H1P5").weights.tolist()
    )


# -- evaluations ------------------------------------------------------------------------------


def test_nfe_is_what_is_called():
    for plan in every_plan():
        model, refiner = CountCalls(constant), Reuse()
        sample(plan, model, noise(1), refiner=refiner)
        assert plan.nfe == {"model": model.calls, "conditional": 0, "refiner": refiner.calls}
        assert len(plan) == model.calls + refiner.calls


@pytest.mark.parametrize(
    ("text", "model", "refiner"),
    [
        ("H1P5R3", 7, 6), ("H2P4R2", 8, 4), ("H5P7R3", 17, 6), ("P3", 4, 0), ("E8", 8, 0),
        ("H4", 8, 0), ("[H1P1R1]x2", 6, 4), ("AB2:8", 8, 0), ("AB3RK:12", 12, 0), ("MID:4", 8, 0),
        ("RK4:2", 8, 0), ("RK38:3", 12, 0), ("UNIPC2:8", 8, 0), ("UNIPC3:8", 8, 0),
        ("DPM2:8", 8, 0), ("DPM3:20", 20, 0),
    ],
)  # fmt: skip
def test_nfe(text, model, refiner):
    plan = Plan.parse(text)
    assert plan.nfe == {"model": model, "conditional": 0, "refiner": refiner}
    assert plan.cost(model=3.39, refiner=0.1, fixed=2) == pytest.approx(
        3.39 * model + 0.1 * refiner + 2
    )


def test_no_evaluation_at_the_end_of_the_grid():
    for text in ("AB2:8", "AB3:8", "AB4RK:14", "E5", "MID:3", "UNIPC3:8", "DPM2:8"):
        assert Plan.parse(text).times[-2] < 1


def test_a_plan_between_two_times():
    plan = Plan.parse("AB2:8@1.6", start=0.4)
    assert plan.times[0] == 0.4
    assert plan.times[-1] == 1
    assert plan.name == "AB2:8@1.6 from 0.4 to 1"
    np.testing.assert_allclose(plan.times, 0.4 + 0.6 * Plan.parse("AB2:8@1.6").times)
    back = Plan.parse("UNIPC2:4", end=0.25, direction="backward")
    np.testing.assert_allclose(back.times, [1, 0.8125, 0.625, 0.4375, 0.25])
    exact = runge_kutta(mixture, noise(), 0.4, 0.8, 400)
    assert rmse(sample(Plan.parse("RK4:8", start=0.4, end=0.8), mixture, noise()), exact) < 1e-5


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("text", ["AB2:{n}", "AB3RK:{n}", "H{n}", "MID:{n}"])
def test_the_order_up_to_a_time(text, direction):
    start, end = (0.0, 0.7) if direction == "forward" else (1.0, 0.3)
    exact = runge_kutta(mixture, noise(), start, end, 400)
    for sizes in ((40, 80, 160), (31, 61, 121)):  # on the grid, and off it
        plans = [Plan.parse(text.format(n=n), direction=direction).until(end) for n in sizes]
        assert all(abs(plan.times[-1] - end) < 1e-9 for plan in plans)
        errors = [rmse(sample(p, mixture, noise()), exact) for p in plans]
        assert slope(plans, errors) > 1.8


def test_up_to_a_time_of_the_plan_rows_stay():
    plan = Plan.parse("AB2:8")
    part = plan.until(0.5)
    assert len(part) == 4
    np.testing.assert_array_equal(part.weights, plan.weights[:4, :4])
    assert plan.until(1.0) is plan
    heun = Plan.heun(4)
    assert len(heun.until(0.5)) == 4  # with the correction there
    assert len(heun.until(0.6)) == 5
    apart = Plan.parse("AB2:FFCFC")
    assert apart.until(0.6).evaluators == apart.evaluators[:3]
    for t, named in ((0.0, "t=0.0"), (1.2, "t=1.2")):
        with pytest.raises(ValueError, match=named):
            plan.until(t)


# -- restriction ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("start", [0.3, 0.5])
@pytest.mark.parametrize("text", ["AB2:{n}", "AB3RK:{n}", "H{n}", "H1P{n}", "MID:{n}"])
def test_restricted_order(text, start, direction):
    end = 1.0 if direction == "forward" else 0.0
    exact = runge_kutta(mixture, noise(), start, end, 200)
    for sizes in ((40, 80, 160), (31, 61, 121)):  # on the grid; always as far off it
        plans = [Plan.parse(text.format(n=n), direction=direction).restrict(start) for n in sizes]
        errors = [rmse(sample(p, mixture, noise()), exact) for p in plans]
        assert slope(plans, errors) == pytest.approx(2, abs=0.2)


def test_restriction_starts_at_t_and_ends_where_the_plan_does():
    for plan in (Plan.parse("H1P5R3"), Plan.parse("RK4:3@2", direction="backward")):
        for t in (0.05, 0.31, 0.5, 0.77, 0.99):
            part = plan.restrict(t)
            assert part.times[0] == pytest.approx(t, abs=1e-15)
            assert part.times[-1] == plan.times[-1]
            assert len(part) <= len(plan)


def test_restriction_on_a_grid_time_adds_no_evaluation():
    assert np.array_equal(
        Plan.heun(4).restrict(0.25).weights, Plan.heun(3, times=[0.25, 0.5, 0.75, 1]).weights
    )
    assert np.allclose(
        Plan.adams_bashforth(10).restrict(0.3).weights,
        Plan.adams_bashforth(7, times=np.linspace(0.3, 1, 8)).weights,
    )
    assert len(Plan.euler(10).restrict(0.3)) == 7  # 0.3 is not 3/10 to the last bit
    assert len(Plan.euler(10).restrict(0.31)) == 7


def test_restriction_keeps_rows_that_use_no_dropped_velocity():
    plan, part = Plan.parse("AB2:8"), Plan.parse("AB2:8").restrict(0.3)
    assert part.times.tolist() == [0.3, *plan.times[3:]]
    np.testing.assert_array_equal(part.weights[2:, 1:], plan.weights[4:, 3:])


def test_restriction_drops_corrections_by_dropped_velocities():
    part = Plan.heun(4).restrict(0.3)  # an Euler step to 0.5, then Heun
    assert part.times.tolist() == [0.3, 0.5, 0.75, 0.75, 1, 1]
    np.testing.assert_array_equal(part.weights[1:, 1:], Plan.heun(4).weights[4:, 4:])


def test_restriction_replaces_refiner_rows_without_two_times_before_them():
    plan = Plan.parse("H1P5R3")
    assert plan.restrict(0.2).nfe["refiner"] == 6
    part = plan.restrict(0.8)
    assert part.evaluators == ("model", "model", "refiner")
    assert part.times.tolist() == [0.8, *plan.times[-3:-1], 1.0]
    for t in np.linspace(0.01, 0.99, 99):
        part = plan.restrict(t)
        for k, evaluator in enumerate(part.evaluators):
            if evaluator == "refiner":
                assert len({part.times[j] for j in part.seen_by(k)}) >= 2


def test_restriction_of_a_fitted_plan_is_consistent():
    """Its rows compensate for one another, so that the weights of one do not sum to its step."""
    plan = Plan.adams_bashforth(8)
    weights = plan.weights.copy()
    weights[6, 6] += 0.03
    weights[7, 7] -= 0.03
    fitted = Plan(times=plan.times, evaluators=plan.evaluators, weights=weights)
    for t in np.linspace(0.05, 0.95, 19):
        part = fitted.restrict(t)
        np.testing.assert_allclose(part.weights.sum(1), np.diff(part.times), atol=1e-12)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("text", ["H2R4", "H1R1P1R1P1", "[H1R1P1]x3"])
def test_restriction_of_a_plan_with_refiners_loses_no_step(text, direction):
    plan = Plan.parse(text, direction=direction)
    first, second = plan.times[0], next(t for t in plan.times if t != plan.times[0])
    part = plan.restrict(first + 0.1 * (second - first))
    assert part.nfe["refiner"] >= plan.nfe["refiner"] - 1  # the model took its place
    assert len(part) >= len(plan) - 1  # a correction of the first step
    assert set(plan.times[1:]) <= set(part.times)


def test_restriction_does_not_extrapolate_from_velocities_too_close():
    part = Plan.adams_bashforth(4).restrict(0.2499)
    assert np.abs(part.weights).sum(1).max() < 1


def test_restriction_keeps_model_times():
    plan = Plan.euler(4)
    plan = Plan(
        times=plan.times,
        evaluators=plan.evaluators,
        weights=plan.weights,
        model_times=[0, 0.2, 0.4, 0.6],
    )
    assert plan.restrict(0.5).model_times.tolist() == [0.4, 0.6]
    assert plan.restrict(0.3).model_times.tolist() == [0.3, 0.4, 0.6]


def test_restriction_to_the_start_is_the_plan_itself():
    plan = Plan.parse("H1P5R3")
    assert plan.restrict(0.0) is plan
    again = plan.restrict(0.4).restrict(0.6)
    assert again.times[0] == 0.6
    assert again.weights.tolist() == plan.restrict(0.6).weights.tolist()


@pytest.mark.parametrize("t", [1.0, 1.2, -0.1, float("nan"), float("inf")])
def test_restriction_out_of_range(t):
    with pytest.raises(ValueError, match=r"must (lie from 0|be a finite number)"):
        Plan.euler(4).restrict(t)


# -- the value --------------------------------------------------------------------------------


@st.composite
def tables(draw):
    n = draw(st.integers(1, 6))
    number = st.floats(-1e3, 1e3)
    times = draw(st.lists(st.floats(0, 1), min_size=n + 1, max_size=n + 1))
    times.sort(reverse=draw(st.booleans()))
    if times[0] == times[-1]:
        times = np.linspace(0, 1, n + 1).tolist()
    rows = [draw(st.lists(number, min_size=k + 1, max_size=k + 1)) for k in range(n)]
    kinds = ["model"] + [draw(st.sampled_from(["model", "refiner"])) for _ in range(n - 1)]
    return Plan(
        times=times,
        evaluators=kinds,
        weights=[row + [0.0] * (n - len(row)) for row in rows],
        model_times=draw(st.none() | st.lists(st.floats(0, 1), min_size=n, max_size=n)),
        last_velocity=[
            draw(st.integers(0, k - 1)) if kind == "refiner" else k - 1
            for k, kind in enumerate(kinds)
        ],
        name=draw(st.sampled_from(["plan", "x y", "é✓"])),
        info=draw(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False))),
    )


@settings(max_examples=60, deadline=None)
@given(tables(), st.floats(0, 1), st.randoms(use_true_random=False))
def test_any_consistent_table_stays_consistent_restricted(plan, where, random):
    ends = sorted(random.sample(range(101), 2), reverse=bool(plan.times[0] > plan.times[-1]))
    inner = sorted(random.choices(range(min(ends), max(ends) + 1), k=len(plan) - 1))
    times = np.array([ends[0], *(inner if ends[0] < ends[1] else inner[::-1]), ends[1]]) / 100
    weights = plan.weights.copy()
    np.fill_diagonal(weights, 0)
    np.fill_diagonal(weights, np.diff(times) - weights.sum(1))
    plan = Plan(
        times=times, evaluators=plan.evaluators, weights=weights, last_velocity=plan.last_velocity
    )
    t = times[0] + round(where * 99) / 100 * (times[-1] - times[0])
    part = plan.restrict(t)
    assert part.times[0] == pytest.approx(t, abs=1e-9)
    assert part.times[-1] == times[-1]
    np.testing.assert_allclose(part.weights.sum(1), np.diff(part.times), atol=1e-9)
    kept = part.nfe["model"] - 1, part.nfe["refiner"]
    assert kept <= (plan.nfe["model"], plan.nfe["refiner"])


@settings(max_examples=40, deadline=None)
@given(tables())
def test_json_is_exact(plan):
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert np.array_equal(again.weights, plan.weights)
    assert np.array_equal(again.model_times, plan.model_times)
    assert pickle.loads(pickle.dumps(plan)) == plan == copy.deepcopy(plan)


def test_save_and_load(tmp_path):
    plan = Plan.parse("H1P5R3@1.6")
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan
    Plan.euler(2).save(str(tmp_path / "p.json"))
    assert Plan.load(str(tmp_path / "p.json")) == Plan.parse("E2")
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace('"version": 1', '"version": 9'), "version: 9: .* reads version 1"),
        (lambda s: s.replace('"version": 1,', ""), "version: is missing"),
        (
            lambda s: s.replace('"times"', '"tims"'),
            "times: is missing; tims: a list of 3: is not known",
        ),
        (lambda s: s[:-20], "p.json"),
        (lambda s: "", "p.json"),
        (lambda s: "[]", "must be an object"),
        (lambda s: "[" * 100_000, "nested"),
        (lambda s: s.replace("0.5", "NaN", 1), "NaN"),
        (lambda s: s.replace("0.5", '"0.5"', 1), "times.1: '0.5': Input should be a valid number"),
        (lambda s: s.replace("0.5", "1e999", 1), "finite"),
        (lambda s: s.replace("[0.5]", "[0.5, 0.1]"), "weights.0: 2 numbers, must be 1"),
        (lambda s: s.replace('"info": {', '"name": "x", "info": {'), "twice"),
        (lambda s: s.replace('"model"', '"student"', 1), "student"),
        (lambda s: s.replace('"times": [', '"times": 5, "told": ['), "times: 5: must be a list"),
        (lambda s: "\xff\xfe", "p.json"),
    ],
)
def test_a_bad_file_gives_one_line_that_names_it(change, message, tmp_path):
    text = Plan.euler(2).to_json()
    assert change(text) != text
    (tmp_path / "p.json").write_text(change(text), encoding="latin-1")
    with pytest.raises(ValueError, match=message) as error:
        Plan.load(tmp_path / "p.json")
    assert str(tmp_path / "p.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_the_largest_plan_is_quick_to_make_to_save_and_to_read(tmp_path):
    start = time.process_time()
    plan = Plan.parse("E2000")
    assert str(plan).count("\n") == 2001
    plan.save(tmp_path / "p.json")
    again = Plan.load(tmp_path / "p.json")
    assert time.process_time() - start < 5  # it takes about 1
    assert again == plan
    assert sum(len(row.update) for row in again.rows) == 2000


def test_a_table_without_zeros_of_the_largest_size_can_be_read_again(tmp_path):
    weights = np.tril(np.full((1200, 1200), -0.12345678901234567))
    times = np.linspace(0, 1, 1201)
    plan = Plan(times=times, evaluators=["model"] * 1200, weights=weights)
    plan.save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p)])
def test_special_files_are_refused_without_blocking(tmp_path, make):
    make(tmp_path / "p.json")
    with pytest.raises(OSError, match=r"cannot read .*p\.json: not a regular file"):
        Plan.load(tmp_path / "p.json")


def test_value_equality():
    assert Plan.euler(8) == Plan.parse("e8") == Plan.blocks(" E 8 ")
    assert len({Plan.euler(8), Plan.parse("E8"), Plan.euler(7)}) == 2
    assert Plan.euler(8) != Plan.euler(8, shift=2)
    assert Plan.euler(8) != "E8"


def test_a_plan_cannot_be_changed():
    plan = Plan.euler(3)
    for array in (
        plan.times,
        plan.weights,
        plan.model_times,
        pickle.loads(pickle.dumps(plan)).weights,
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        plan.name = "x"
    with pytest.raises(TypeError):
        plan.info["x"] = 1


def test_a_plan_does_not_share_the_callers_arrays():
    times = np.array([0.0, 0.5, 1.0])
    plan = Plan.euler(2, times=times)
    times[1] = 0.9
    assert plan.times[1] == 0.5


def test_printing():
    lines = str(Plan.parse("H1P5R3")).splitlines()
    assert lines[0] == "H1P5R3: 7 model + 6 refiner evaluations, t 0 to 1"
    assert lines[1].split() == ["time", "evaluator", "to", "weights"]
    assert " ".join(lines[3].split()) == "1 0.1111 model 0.2222 v0 -0.0556 v1 +0.1667"
    assert len(lines) == 2 + 13
    assert repr(Plan.euler(1)) == "<Plan E1: 1 model evaluation, t 0 to 1>"
    assert "(after v1)" in str(Plan.blocks("H1R1", shipped=True))


def test_names_are_notation():
    grids = [{}, {"shift": 1.6}]
    made = [
        *(make(3, **g) for make in (Plan.euler, Plan.heun, Plan.midpoint) for g in grids),
        *(make(2, **g) for make in (Plan.rk4, Plan.rk38) for g in grids),
        *(
            Plan.adams_bashforth(14, order, start, **g)
            for order, start, g in itertools.product((2, 3, 4), ("low", "runge-kutta"), grids)
        ),
        *(
            make(8, order, **g)
            for make, order, g in itertools.product((Plan.unipc, Plan.dpm), (2, 3), grids)
        ),
    ]
    assert len(made) == 30
    for plan in made:
        assert Plan.parse(plan.name) == plan


def test_freed_velocities_are_not_used_again():
    for plan in every_plan():
        assert sorted(j for row in plan.frees for j in row) == list(range(len(plan)))
        gone: set[int] = set()
        for k, row in enumerate(plan.frees):
            used = set(np.flatnonzero(plan.weights[k]))
            used |= set(plan.seen_by(k)) if plan.evaluators[k] == "refiner" else set()
            assert not used & gone
            gone |= set(row)
    assert Plan.euler(3).frees == ((0,), (1,), (2,))


def test_rows_are_the_table_in_plain_numbers():
    for plan in every_plan():
        assert len(plan.rows) == len(plan)
        for k, row in enumerate(plan.rows):
            assert (row.k, row.evaluator, row.frees) == (k, plan.evaluators[k], plan.frees[k])
            assert (row.time, row.model_time, row.to) == (
                plan.times[k],
                plan.model_times[k],
                plan.times[k + 1],
            )
            weights = np.zeros(len(plan))
            for j, w in row.update:
                weights[j] = w
            assert np.array_equal(weights, plan.weights[k])
            assert 0.0 not in dict(row.update).values()
            seen = plan.seen_by(k) if row.evaluator == "refiner" else ()
            assert row.history == tuple((j, plan.model_times[j]) for j in seen)


# -- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h1Q5", r"'h1Q5'.*at 'Q5' \(character 3\).*H1P5R3"),
        ("", "at least one block"),
        ("H", "block with its count.*at 'H'"),
        ("H1P5R3x2", r"at 'x2' \(character 7\)"),
        ("R1H1", "before the first R"),
        ("[R1]x2", "before the first R"),
        ("[H1P1", "for every '\\['"),
        ("[H1P1]", "']x' with its count"),
        ("H1]x2", "no ']' without"),
        ("[]x2", "blocks inside"),
        ("H0", "count from 1 to 2000"),
        ("H-1", "at 'H-1'"),
        ("H1.5", "at '.5'"),
        ("E2001", "count from 1"),
        ("E" + "9" * 1500, "count from 1"),
        ("E" + "9" * 5000, "of 5001 characters, .*at most 2000"),
        ("H1001", "at most 2000"),
        ("[[[E99]x99]x99]x99", "at most 2000"),
        ("[H1P1R1]x1000000", "count from 1 to 2000"),
        ("[" * 1500 + "E1", "for every '\\['"),
        ("[" * 1_000_000 + "E1", "of 1000002 characters"),
        ("AB5:8", "known solver"),
        ("UNIPC4:8", "known solver"),
        ("UNIPC:8", "known solver"),
        ("DPM2:x", "whole number"),
        ("AB2:", "whole number"),
        ("AB2:0", "count from 1"),
        ("RK4:2.5", "whole number"),
        ("RK4:501", "at most 2000"),
        ("AB2:8@", "number for the shift"),
        ("AB2:8@fast", "at 'fast'"),
        ("AB2:8@0", "shift=0.0"),
        ("AB2:8@nan", "shift=nan"),
        ("AB3RK:6", "at least 7"),
        ("H\u0661", "at 'H"),
        (8, "must be a string"),
    ],
)
def test_bad_notation(text, message):
    with pytest.raises(ValueError, match=message) as error:
        Plan.parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 450


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan.euler(0), "steps=0"),
        (lambda: Plan.euler(2.5), "steps=2.5"),
        (lambda: Plan.euler(True), "steps=True"),
        (lambda: Plan.heun(10**12), "at most 2000"),
        (lambda: Plan.euler(4, shift=-1), "shift=-1"),
        (lambda: Plan.euler(4, shift=2, times=[0, 1]), "both given"),
        (lambda: Plan.parse("E4@2", shift=3), "both give the shift"),
        (lambda: Plan.euler(4, direction="up"), "direction='up'"),
        (lambda: Plan.euler(2, times=[0, 1]), "need 3 points"),
        (lambda: Plan.euler(2, times=[0, 0.5, 0.5]), "no two equal"),
        (lambda: Plan.euler(2, times=[1, 0.5, 0]), "must ascend"),
        (lambda: Plan.euler(2, times=[0, 0.5, 1], direction="backward"), "must descend"),
        (lambda: Plan.euler(2, times=[0, 0.5, 1.5]), "in \\[0, 1\\]"),
        (lambda: Plan.euler(2, times=["0", "0.5", "1"]), "numbers only"),
        (lambda: Plan.adams_bashforth(8, 4, shift=1000), "use a lower order"),
        (lambda: Plan.blocks("AB2:8"), "only blocks"),
        (lambda: Plan.adams_bashforth(8, 5), "order=5"),
        (lambda: Plan.adams_bashforth(8, 2, "high"), "starter='high'"),
        (lambda: Plan.adams_bashforth(0), "evaluations=0"),
        (lambda: Plan.unipc(0), "steps=0"),
        (lambda: Plan.unipc(8, 4), "order=4: must be a whole number from 2 to 3"),
        (lambda: Plan.dpm(2, times=[0, 0.5, 0.5]), "no two equal"),
        (lambda: Plan.euler(2, start=0.5, end=0.5), "start=0.5, end=0.5: .* start below its end"),
        (lambda: Plan.euler(2, start=0.5, direction="backward", end=0.7), "start above its end"),
        (lambda: Plan.euler(2, start=1.5), "start=1.5"),
        (lambda: Plan.euler(2, times=[0, 0.5, 1], end=0.9), "end=0.9 and times are both given"),
    ],
)
def test_bad_constructor_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [0, 0.5]}, "2 evaluators: 2 times need 1"),
        ({"times": [0, 0.7, 0.5]}, "ascend"),
        ({"times": [0.5, 0.5, 0.5]}, "from one time to another"),
        ({"times": [0, np.nan, 1]}, "finite"),
        ({"times": [[0, 0.5, 1]]}, "shape"),
        ({"evaluators": ("model", "teacher")}, "evaluators\\[1\\]='teacher'"),
        ({"evaluators": ("refiner", "model")}, "need a velocity"),
        ({"evaluators": "model"}, "1 evaluators"),
        ({"weights": [[0.5, 0.1], [0, 0.5]]}, "lower triangular"),
        ({"weights": [[0.5, 0], [np.inf, 0.5]]}, "finite"),
        ({"weights": [[0.5]]}, "need shape \\(2, 2\\)"),
        ({"weights": [[0.5], [0, 0.5]]}, "one length"),
        ({"weights": [["0.5", "0"], ["0", "0.5"]]}, "numbers only"),
        ({"model_times": [0.0]}, "model_times of shape"),
        ({"model_times": [0.0, np.nan]}, r"model_times=.*: must be finite"),
        ({"model_times": [0.0, 500.0]}, "model_times\\[1\\]=500.0: must lie in \\[0, 1\\]"),
        ({"times": [0, True, 1]}, "not bool"),
        ({"times": [0, 0.5, 1.5]}, "times\\[2\\]=1.5: all must lie in"),
        ({"times": [0, 10**400, 1]}, "numbers only"),
        ({"times": np.linspace(0, 1, 2002)}, "2002 times: a plan has at most 2000 evaluations"),
        ({"weights": [[0.5, 0], [True, 0.5]]}, "not bool"),
        ({"weights": [[0.5, 0], [1e300, 0.5]]}, "weights\\[1\\]\\[0\\]=1e\\+300: must be from"),
        ({"weights": [[0.5, 0], [-1.1e4, 0.5]]}, "from -10000 to 10000"),
        ({"last_velocity": 5}, "one per evaluation"),
        ({"name": "x" * 5000}, "one line"),
        ({"info": {"guidance": "ab"}}, "info: guidance: 'ab': must be a list"),
        ({"info": {"guidance": [2, 1]}}, "must be \\[lowest, highest\\]"),
        ({"info": {"error": 0.3}}, "error: 0.3: must be an object"),
        ({"info": {"error": {"rmse": 0.3}}}, "error.median: is missing"),
        ({"info": {"baseline": {"rmse": 0.3, "median": 0.2}}}, "baseline.name: is missing"),
        ({"info": {"x": "\ud800"}}, "surrogates"),
        ({"last_velocity": (-1,)}, "one per evaluation"),
        ({"last_velocity": (-1, 1)}, "last_velocity\\[1\\]=1: must be from 0 to 0 for a refiner"),
        ({"last_velocity": (0, 0)}, "must be -1 for a model row"),
        ({"last_velocity": (-1, 0.0)}, "whole number"),
        ({"name": "a\nb"}, "one line"),
        ({"info": {"x": float("nan")}}, "JSON"),
        ({"info": {"x": object()}}, "JSON"),
        ({"info": 3}, "mapping"),
    ],
)
def test_bad_columns(change, message):
    good = {"times": [0, 0.5, 1], "evaluators": ("model", "refiner"), "weights": np.eye(2) / 2}
    assert len(Plan(**good)) == 2
    with pytest.raises(ValueError, match=message):
        Plan(**{**good, **change})


def test_files_with_earlier_names_of_columns_load():
    plan = Plan(
        times=[0, 0.5, 1],
        evaluators=["model", "refiner"],
        weights=[[0.5, 0], [0, 0.5]],
        model_times=[0, 0.4],
        last_velocity=(-1, 0),
    )
    text = plan.to_json()
    assert '"model_times"' in text
    assert Plan.from_json(text.replace('"model_times"', '"told"')) == plan
    error = {"rmse": 0.3, "median": 0.2, "name": "E3"}
    old = Plan.from_json(plan.with_info({"plain": error}).to_json())
    assert old.info["baseline"] == error
    assert "plain" not in old.info
    columns = json.loads(text) | {"previous": [-1, 0]}
    assert Plan.from_json(json.dumps(columns)) == plan
