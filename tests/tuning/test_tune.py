"""Fitting plans: on closed-form fields, where the truth is known."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fields import mixture
from tuned import FIELDS_AT_REST, Oracle, initial_noise

import flowturbo as ft
from flowturbo.progress import Progress
from flowturbo.tuning.polish import run
from flowturbo.tuning.problem import Problem
from flowturbo.tuning.reference import error, fine, solve


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_tune_on_a_field_of_the_callers_own(direction):
    plan = ft.tune(mixture, nfe=5, noise=initial_noise(256), direction=direction)
    assert plan.nfe == {"model": 5, "conditional": 0, "refiner": 0}
    assert plan.info["notes"] == []
    fresh = solve(mixture, initial_noise(200, seed=1))
    fresh = fresh if direction == "forward" else fresh.reversed()
    errors = error(run(plan, mixture, fresh), fresh.states[-1])
    said = plan.info["error"]
    assert errors.square().mean().sqrt() < 0.2 * plan.info["baseline"]["rmse"]
    assert 0.5 < float(errors.median()) / said["median"] < 2
    assert said["rmse_95"][0] <= said["rmse"] <= said["rmse_95"][1]
    assert ft.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("until", [0.0, 0.2])
def test_a_round_trip_returns(until):
    """On images that nothing was fitted on, to themselves; two ways of Adams-Bashforth 2 do not."""
    plan = ft.tune(mixture, nfe=5, noise=initial_noise(256), direction="round trip", until=until)
    assert plan.times[[0, -1]].tolist() == [1.0, until]
    assert (plan.name, plan.info["inverts"]) == ("inverse of AB2:5@1.6", "AB2:5@1.6")
    assert plan.info["guidance"] == [1, 1]
    images = ft.sample("RK4:20", mixture, initial_noise(200, seed=1))
    back = ft.Plan.parse("AB2:5@1.6", start=until)
    usual = ft.Plan.parse("AB2:5@1.6", direction="backward", end=until)
    fitted, classical = (
        error(ft.sample(back, mixture, ft.sample(there, mixture, images)), images)
        for there in (plan, usual)
    )
    assert 0.5 < float(fitted.median()) / plan.info["error"]["median"] < 2
    assert fitted.square().mean() < 0.1**2 * classical.square().mean()


def test_too_few_trajectories_give_the_best_classical_solver_by_name():
    plan = ft.tune(mixture, nfe=4, noise=initial_noise(8))
    assert "too few to fit on" in plan.info["notes"][0]
    assert ft.Plan.parse(plan.name).weights.tolist() == plan.weights.tolist()


def test_fitting_that_does_not_pay_is_left_out():
    """A field that forgets its past: what was fitted on some rows is worth nothing on others."""

    def rough(x, t, cond):
        phase = (x * 1e4).sum(1, keepdim=True) + 40 * float(t)
        return torch.sin(phase) * torch.ones_like(x)

    plan = ft.tune(rough, nfe=3, noise=initial_noise(40))
    fitted, plain = plan.info["error"]["rmse"], plan.info["baseline"]["rmse"]
    assert fitted <= 1.05 * plain


def test_tune_of_a_model_with_a_card(tmp_path, tiny):
    from flowturbo.models.checkpoint import save_folder

    condition = {"kind": "class", "labels": list("abcde")}
    save_folder(tmp_path / "m", tiny, {"condition": condition, "defaults": {"guidance": 1.5}})
    model = ft.load(tmp_path / "m")
    plan = ft.tune(model, nfe=3, trajectories=8)
    assert plan.info["fingerprint"] == model.fingerprint
    assert plan.info["guidance"] == [1.5, 1.5]
    assert plan.info["trajectories"] == {"fit": 8, "choose": 16, "test": 16}
    ranged = ft.tune(model, nfe=3, trajectories=8, guidance=(1.0, 3.0))
    assert ranged.info["guidance"] == [1.0, 3.0]


def test_a_killed_search_goes_on_and_ends_the_same(tmp_path):
    whole = ft.tune(mixture, nfe=4, noise=initial_noise(64), cache_dir=tmp_path / "a")

    class Killed(Exception):
        pass

    def until_killed(x, t, cond):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return mixture(x, t)

    kills = 0
    while True:
        left = [30 + 30 * kills]  # evaluations
        try:
            ft.tune(until_killed, nfe=4, noise=initial_noise(64), cache_dir=tmp_path / "b")
            break
        except Killed:
            kills += 1
    assert kills > 2
    with (tmp_path / "b" / "journal.jsonl").open("a") as f:
        f.write('["half a li')
    calls = ft.CountCalls(mixture)
    again = ft.tune(calls, nfe=4, noise=initial_noise(64), cache_dir=tmp_path / "b")
    assert again == whole
    assert calls.calls < 20  # the test part only
    with pytest.raises(ValueError, match=r"seed=0 there, 1 now"):
        ft.tune(mixture, nfe=4, seed=1, noise=initial_noise(64), cache_dir=tmp_path / "b")


def test_searches_share_what_they_have_in_common(tmp_path):
    options = dict(noise=initial_noise(64), cache_dir=tmp_path)
    ft.tune(mixture, nfe=3, refiner=Oracle(), refiner_cost=0, **options)
    field = ft.CountCalls(mixture)
    ft.tune(field, nfe=3, **options)
    alone = ft.CountCalls(mixture)
    ft.tune(alone, nfe=3, noise=initial_noise(64))
    assert field.calls < 0.35 * alone.calls  # the polish of the winner and the test part
    plan = ft.tune(field, nfe=4, **options)
    assert plan == ft.tune(mixture, nfe=4, noise=initial_noise(64))


def test_a_better_mean_with_a_worse_median_is_noted(monkeypatch):
    """Rows of the test part are made so: the fitted plan is best on average, not in the middle."""
    errors = {"fitted 4": np.array([1.0, 1.0, 1.0, 1.0]), "other": np.array([0.5, 0.5, 0.5, 9.0])}
    fixed = lambda problem, plan: errors.get(plan.name, errors["other"])
    monkeypatch.setattr(Problem, "test_errors", fixed)
    plan = ft.tune(mixture, nfe=4, noise=initial_noise(64))
    assert plan.name == "fitted 4"
    assert "its median is not" in plan.info["notes"][0]


def test_a_disk_too_small_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    field = ft.CountCalls(mixture)
    with pytest.raises(OSError, match=r"need 0\.1 MB in .*, and 0\.0 MB are free"):
        ft.tune(field, nfe=4, noise=initial_noise(64), cache_dir=tmp_path / "a")
    assert field.calls <= 3  # to tell it from others


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(nfe=1), "nfe=1: must be a whole number from 2"),
        (dict(nfe=2.5), "nfe=2.5: must be a whole number"),
        (dict(trajectories=-1), "trajectories=-1: must be a whole number from 1"),
        (dict(seed=1.5), "seed=1.5: must be a whole number"),
        (dict(budget_ms=0), "budget_ms=0: must be a finite number above 0"),
        (dict(direction="up"), "direction='up': must be one of 'forward', 'backward'"),
        (dict(until=0.1), "until=0.1, direction='forward': only a 'round trip' turns"),
        (dict(until=1, direction="round trip"), "until=1: must be a finite number from 0 to 0.99"),
        (dict(passes=8, direction="round trip"), "passes=8, direction='round trip': .* nfe full"),
        (dict(search=False, direction="round trip"), "search=False, direction='round trip'"),
        (dict(search="no"), "search='no': must be True or False"),
        (dict(cache_dir=3), "cache_dir=3: must be a path"),
        (dict(report=3), "report=3: must be a function"),
        (dict(refiner=3), "refiner=3"),
        (dict(refiner_cost=1), "refiner_cost=1, refiner=None: there is no refiner"),
        (dict(refiner_cost=-1), "refiner_cost=-1: must be a finite number from 0"),
        (dict(refiner_cost=1, budget_ms=9), "refiner_cost=1 and budget_ms=9: with a budget the"),
        (dict(guidance=(3.0, 1.0)), r"guidance=\(3\.0, 1\.0\): must be \(lowest, highest\)"),
        (dict(guidance="2"), "guidance='2': must be a finite number"),
        (dict(guidance=(1, 2, 3)), r"guidance=\(1, 2, 3\): must be \(lowest, highest\)"),
        (dict(guidance=float("nan")), "guidance=nan: must be a finite number"),
        (dict(trajectorys=8), "has no argument 'trajectorys'; did you mean 'trajectories'"),
        (dict(noise=None), "noise=None: a field without a shape"),
        (dict(noise=initial_noise(2)), r"noise=<tensor \(2, 2\).*: must be .* at least 4 rows"),
        (dict(noise=torch.zeros(())), "noise=.*: must be"),
        (dict(noise=np.zeros((16, 2))), "noise=<array .*: must be a tensor"),
        (dict(noise=torch.zeros(16, 2, dtype=torch.long)), "noise=<tensor .* must be of torch"),
        (dict(noise=initial_noise(16) / 0), "noise=<tensor .*: must be finite"),
        (dict(cond=torch.zeros(3)), r"cond=<tensor \(3,\) .*: noise has 16 rows"),
        (dict(cond=(None, torch.zeros(()))), r"cond=.*: noise has 16 rows"),
        (dict(cond=[1] * 16), r"cond=\[1, .*: a list of labels or numbers is not a condition"),
        (dict(cond=["a"]), r"cond=\['a'\]: a list of labels"),
        (dict(cond=np.array(["a"] * 16)), "cond=<array .*: must hold numbers"),
    ],
    ids=str,
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        ft.tune(mixture, **{"noise": initial_noise(16), **options})


def test_a_round_trip_takes_no_refiner():
    with pytest.raises(ValueError, match=r"refiner=.*, direction='round trip'"):
        ft.tune(mixture, refiner=Oracle(), direction="round trip", noise=initial_noise(16))


def test_a_fitted_plan_used_elsewhere_warns_with_the_reason(reference):
    plan = ft.Plan.parse("E2").with_info({"fingerprint": "a", "guidance": [1.0, 2.0]})

    def field(x, t, cond):
        return mixture(x, t)

    field.null_condition = lambda cond: cond
    field.fingerprint = "a"
    cond = torch.zeros(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (1.0, 2.0, 2.4):
            ft.sample(plan, field, initial_noise(4), cond, guidance=scale)
    with pytest.warns(UserWarning, match="fitted at guidance 1 to 2, not 3"):
        ft.sample(plan, field, initial_noise(4), cond, guidance=3.0)
    field.fingerprint = "b"
    with pytest.warns(UserWarning, match="fitted to weights a .*, not b"):
        ft.sample(plan, field, initial_noise(4), cond)
    refined = ft.Plan.parse("E2R1").with_info({"refiner": "a"})
    oracle = Oracle()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ft.sample(refined, mixture, initial_noise(4), refiner=oracle)
        oracle.fingerprint = "a"
        ft.sample(refined, mixture, initial_noise(4), refiner=oracle)
    oracle.fingerprint = "b"
    with pytest.warns(UserWarning, match="fitted to a refiner with weights a .*, not b"):
        ft.sample(refined, mixture, initial_noise(4), refiner=oracle)


@pytest.mark.parametrize("name", FIELDS_AT_REST)
@pytest.mark.parametrize("shape", [(32, 2), (32,), (5, 1)], ids=str)
@pytest.mark.parametrize("contrast", [False, True])
def test_fields_that_start_at_rest_or_never_change(name, shape, contrast):
    x0 = initial_noise(64).float().flatten()[: int(np.prod(shape))].reshape(shape)
    plan = ft.tune(FIELDS_AT_REST[name], nfe=2, noise=x0, preserve_contrast=contrast)
    assert plan.info["error"]["rmse"] <= plan.info["baseline"]["rmse"]
    assert plan.info["baseline"]["rmse"] < 0.5
    assert plan.nfe == {"model": 2, "conditional": 0, "refiner": 0}
    if name in "01":
        assert plan.info["error"]["rmse"] < 1e-5
    assert np.abs(plan.weights).max() < 5


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda x, t, cond: x / 0, r"NaN or infinity at t=0"),
        (lambda x, t, cond: torch.where(t < 0.5, x, torch.nan), r"NaN or infinity at t=0\.5"),
        (lambda x, t, cond: x[:1], r"returned \(1, 2\) at t=0 for states \(8, 2\)"),
        (lambda x, t, cond: x if t < 0.6 else None, r"returned NoneType at t=0\.6"),
    ],
)
def test_a_field_that_returns_no_velocity_is_refused_with_the_time(field, message):
    with pytest.raises(ValueError, match=message):
        ft.tune(field, nfe=2, noise=initial_noise(16))


@pytest.mark.parametrize("model", [None, "digits", 3])
def test_what_is_no_field_is_refused(model):
    with pytest.raises(ValueError, match=r"model=.*must be a model of flowturbo\.load, or a field"):
        ft.tune(model, noise=initial_noise(16))


def test_a_field_undefined_at_the_end_of_time_is_fitted():
    """0/0 at t=1, as of a network that predicts the data."""
    inside = lambda x, t, cond: mixture(x, t, cond) * (1 - t) / (1 - t)
    plan = ft.tune(inside, nfe=4, noise=initial_noise(256))
    whole = ft.tune(mixture, nfe=4, noise=initial_noise(256))
    assert plan.info["error"]["rmse"] < 1.05 * whole.info["error"]["rmse"]
    assert plan.model_times.max() < 1


def test_a_reference_is_refined_until_it_is_accurate():
    smooth = ft.tune(mixture, nfe=4, noise=initial_noise(64))
    assert smooth.info["reference_error"] < 0.02 * smooth.info["error"]["rmse"]

    def rough(x, t, cond):
        return mixture(x, t, cond) + 0.3 * torch.sin(400 * torch.as_tensor(t))

    plan = ft.tune(rough, nfe=4, noise=initial_noise(256))
    x0 = initial_noise(200, seed=1)
    exact = ft.sample("RK4:500", rough, x0)
    errors = (ft.sample(plan, rough, x0) - exact).square().mean(1).sqrt()
    assert 0.7 < errors.square().mean().sqrt() / plan.info["error"]["rmse"] < 1.4


def test_a_reference_that_stays_inaccurate_is_noted():
    random = lambda x, t, cond: mixture(x, t, cond) + 0.3 * torch.sin(1e7 * torch.as_tensor(t))
    notes = ft.tune(random, nfe=8, noise=initial_noise(64)).info["notes"]
    assert any("the reference solution is not accurate" in note for note in notes)


def test_a_network_in_training_mode_is_refused():
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())

        def forward(self, x, t, cond):
            return self.net(x)

    with pytest.raises(ValueError, match=r"model=Field: its Linear is in training mode; call"):
        ft.tune(Field(), nfe=2, noise=initial_noise(16))
    field = Field().double()
    field.net.eval()  # a wrapper around a network, itself as it was made
    plan = ft.tune(field, nfe=2, noise=initial_noise(64))
    with torch.no_grad():
        field.net[0].weight += 1
    with pytest.warns(UserWarning, match="was fitted to weights"):
        ft.sample(plan, field, initial_noise(2))


def test_a_plan_is_fitted_to_a_negative_condition():
    class Field(torch.nn.Module):
        null_condition = staticmethod(torch.zeros_like)

        def forward(self, x, t, cond):
            return mixture(x + cond, t)

    cond, negative = torch.zeros(256, 2), torch.ones(1, 2)
    noise = initial_noise(256)
    given = dict(nfe=4, noise=noise, cond=cond, guidance=2.0)
    plan, other = ft.tune(Field(), negative=negative, **given), ft.tune(Field(), **given)
    sampled = partial(ft.sample, model=Field(), x=noise, cond=cond, guidance=2.0, negative=negative)
    exact = sampled("RK4:100")
    rmse = lambda p: float((sampled(p) - exact).square().mean().sqrt())
    assert 0.5 < rmse(plan) / plan.info["error"]["rmse"] < 1.5
    assert rmse(plan) < 0.8 * rmse(other)
    with pytest.raises(ValueError, match=r"a negative condition has 1 rows"):
        ft.tune(Field(), negative=torch.ones(3, 2), **given)


def test_noise_is_used_in_full():
    with pytest.raises(ValueError, match=r"trajectories=8 and noise=.*: all rows of noise"):
        ft.tune(mixture, trajectories=8, noise=initial_noise(64))


def test_a_field_on_which_no_plan_stays_finite_is_refused():
    known = torch.from_numpy(np.append(fine(96).model_times, [*fine(48).model_times, 1.0]))

    def field(x, t, cond):
        return x if (known - t).abs().min() < 1e-6 else torch.full_like(x, torch.nan)

    with pytest.raises(ValueError, match="nfe=4: no plan of so few evaluations stays finite"):
        ft.tune(field, nfe=4, noise=initial_noise(40))


def test_arrays_are_conditions():
    field = lambda x, t, cond: cond["to"][:, None] - x
    to = np.linspace(-1, 1, 32, dtype=np.float32)
    plans = [ft.tune(field, nfe=2, noise=initial_noise(32), cond={"to": c, "by": 1})
             for c in (to, torch.from_numpy(to))]  # fmt: skip
    assert plans[0] == plans[1]


def test_half_precision_is_sampled_in_single_as_elsewhere():
    plans = [
        ft.tune(mixture, nfe=2, noise=x)
        for x in (initial_noise(32).half(), initial_noise(32).half().float())
    ]
    assert plans[0] == plans[1]


def test_the_info_of_a_plan_is_json_and_cannot_be_changed():
    plan = ft.tune(mixture, nfe=2, noise=initial_noise(8), guidance=np.float64(1))
    assert json.loads(json.dumps(plan.info)) == plan.info
    assert json.loads(json.dumps(ft.Plan.parse("E2").info)) is not None
    with pytest.raises(TypeError, match="cannot be changed"):
        plan.info["error"] = 0
    with pytest.raises(TypeError, match="cannot be changed"):
        plan.info.update(error=0)
    assert pickle.loads(pickle.dumps(plan)) == copy.deepcopy(plan) == plan


def test_progress_is_reported_regularly(monkeypatch):
    monkeypatch.setattr("flowturbo.tuning.monitor.EVERY", 0.0)
    reports: list[Progress] = []
    ft.tune(mixture, nfe=3, noise=initial_noise(130), report=reports.append, search=False)
    counts = [p.done for p in reports if p.stage == "evaluations"]
    assert len(counts) > 20
    assert counts == sorted(counts)
    solved = [(p.done, p.total) for p in reports if p.stage == "reference trajectories"]
    assert solved == [(64, 130), (128, 130), (130, 130)]
    baselines = [p for p in reports if p.stage == "baselines"]
    assert [p.done for p in baselines] == list(range(1, len(baselines) + 1))
    assert all(p.total == len(baselines) and p.values["error"] > 0 for p in baselines)
