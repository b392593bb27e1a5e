"""Trajectories and errors against fields known in closed form, and the command at tiny size."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from fields import Reuse, constant, mixture
from PIL import Image

import flowturbo as ft
from flowturbo.cli import analyze as command
from flowturbo.cli import main
from flowturbo.evaluate.analysis import analyze, solvers
from flowturbo.evaluate.analysis_figures import figures, read_record, tables
from flowturbo.evaluate.curvature import change, gap_errors, mean, predictions, rate
from flowturbo.evaluate.error_profile import profile
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.diffusion import to_linear
from flowturbo.models.sit import SiT
from flowturbo.tuning.reference import solve

NOISE = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = 2.0


def rotation(x, t, cond=None):
    return W * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def accelerating(x, t, cond=None):
    """dx/dt = t: Euler errs by h^2/2 in each step, whatever the state."""
    return torch.as_tensor(t).to(x) * torch.ones_like(x)


def standard(x, t, cond=None):
    """The velocity of the linear path to standard normal data: it keeps x / |(t, 1-t)|."""
    return (2 * t - 1) / (t**2 + (1 - t) ** 2) * x


def test_a_straight_flow_does_not_change():
    times, values = predictions(constant, solve(constant, NOISE), "velocity", 16)
    rates = rate(times, values)
    assert rates.shape == (17, 6)
    assert rates.abs().max() < 1e-12
    assert change(times, rates).abs().max() < 1e-12
    for errors in gap_errors(values, 4).values():
        assert errors.shape == (6,)
        assert errors.abs().max() < 1e-12


def test_a_rotation_changes_by_the_angle_turned():
    steps, gap = 64, 8
    times, values = predictions(rotation, solve(rotation, NOISE), "velocity", steps)
    rates = rate(times, values)
    torch.testing.assert_close(rates, torch.full_like(rates, W), rtol=1e-3, atol=0)
    angle = change(times, rates)
    assert angle[0].abs().max() == 0
    expected = (W * times)[:, None].expand_as(angle)
    torch.testing.assert_close(angle, expected, rtol=1e-3, atol=1e-6)
    found, chord = gap_errors(values, gap), 2 * math.sin(W * gap / steps / 2)
    torch.testing.assert_close(found["reuse"], torch.full((6,), chord).double(), rtol=1e-4, atol=0)
    square = torch.full((6,), chord**2).double()
    torch.testing.assert_close(found["extrapolate"], square, rtol=1e-4, atol=0)


def test_the_change_does_not_depend_on_the_clock():
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    turn = lambda t: torch.stack([(W * t).cos(), (W * t).sin()], dim=1)[:, None]
    uneven = t + 0.5 * t * (1 - t)
    ends = [change(clock, rate(clock, turn(t)))[-1] for clock in (t, uneven)]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=0)


def test_noise_predictions_of_standard_normal_data():
    """The predicted noise is the state of the diffusion model, which stays, times its sigma."""
    reference = solve(standard, NOISE, steps=128)
    u, values = predictions(standard, reference, "noise", 64)
    t = to_linear(u)
    sigma = (1 - t) / (t**2 + (1 - t) ** 2).sqrt()
    expected = sigma[:, None, None] * NOISE
    torch.testing.assert_close(values, expected, rtol=1e-2, atol=1e-4)
    ends = change(u, rate(u, values))[32]
    size = sigma.square().mean().sqrt()
    torch.testing.assert_close(ends, ((1 - sigma[32]) / size).expand(6), rtol=0.01, atol=0)


def test_arguments_of_curvature():
    reference = solve(constant, NOISE, steps=8)
    for bad in (
        (reference, "score", 8),
        (reference, "velocity", 1),
        (reference.reversed(), "noise", 8),
    ):
        with pytest.raises(ValueError, match=r"kind='score'|steps=1|data to noise"):
            predictions(constant, *bad)
    with pytest.raises(ValueError, match="gap=4: must be from 1 to 3"):
        gap_errors(torch.zeros(9, 1, 2), 4)


def test_mean_and_interval():
    told = mean(torch.tensor([[1.0, 3.0, 5.0, 7.0], [2.0, 2.0, 2.0, 2.0]]))
    assert told["mean"] == [4.0, 2.0]
    assert told["half"] == pytest.approx([1.96 * math.sqrt(20 / 3) / 2, 0])


def test_rows_of_euler_err_equally_where_the_field_accelerates():
    reference = solve(accelerating, NOISE)
    rows = profile(ft.Plan.euler(4), accelerating, reference, batch=4)
    assert [r["to"] for r in rows] == [0.25, 0.5, 0.75, 1.0]
    for i, row in enumerate(rows):
        assert row["local"] == pytest.approx(1 / 32)
        assert row["part"] == pytest.approx(1 / 32)
        assert row["state"] == pytest.approx((i + 1) / 32)
        assert row["propagated"] == pytest.approx((i + 1) / 32)
        assert row["part_95"] == pytest.approx([1 / 32, 1 / 32])


@pytest.mark.parametrize("text", ["H1P3", "H2", "H1P1R1", "UNIPC2:4"])
def test_parts_add_up_to_the_error_of_the_plan(text):
    reference, refiner = solve(mixture, NOISE), Reuse() if "R" in text else None
    plan = ft.Plan.parse(text)
    rows = profile(plan, mixture, reference, refiner)
    assert len(rows) == len(plan)
    x1 = ft.sample(plan, mixture, NOISE, refiner=refiner)
    error = float((x1 - reference.states[-1]).square().mean().sqrt())
    assert sum(r["part"] for r in rows) == pytest.approx(error, rel=1e-9)
    assert rows[-1]["propagated"] == pytest.approx(error, rel=1e-9)
    assert rows[0]["local"] == pytest.approx(rows[0]["propagated"])


def test_a_plan_backwards_is_refused():
    with pytest.raises(ValueError, match=r"'E2' runs from data to noise"):
        profile(ft.Plan.euler(2, direction="backward"), mixture, solve(mixture, NOISE))


def test_solvers_take_the_evaluations_they_are_given():
    for n in range(1, 10):
        plans = solvers(n, 1.6)
        assert {"Euler", "AB2", "AB4", "DPM-Solver++ 2M", "UniPC-2"} <= set(plans)
        assert ("Heun" in plans) == (n % 2 == 0)
        assert ("H1P" in plans) == (n > 2)
        assert {p.nfe["model"] for p in plans.values()} == {n}


class Plane:
    """A field with a shape."""

    shape, name = (2,), "plane"

    def __init__(self, field):
        self.field = field

    def __call__(self, x, t, cond):
        return self.field(x, t)


def test_a_record_of_fields():
    models = {"mixture": Plane(mixture), "straight": Plane(constant)}
    plan = ft.Plan.parse("AB2:4")
    record = analyze(models, [plan], nfe=(4, 8), trajectories=12, steps=32, batch=5)
    assert record == json.loads(json.dumps(record))
    assert record["conditions"]["seeds"] == [0, 11]
    assert record["conditions"]["condition"] == "none"
    assert record["models"]["mixture"]["reference_rmse"] < 1e-3
    curve = record["curvature"]["straight"]["velocity"]
    assert max(curve["change"]["mean"]) < 1e-5
    assert [g["gap"] for g in curve["gaps"]] == [1 / 32, 1 / 16, 1 / 8, 1 / 4]
    lines = {r["plan"]: r for r in record["solvers"]}
    assert len(lines) == 14
    assert lines["AB2:8"]["rmse"] < lines["AB2:4"]["rmse"]
    (rows,) = record["rows"]
    assert rows["rows"][-1]["propagated"] == lines["AB2:4"]["rmse"]
    one = analyze(models, [plan], sections=["rows"], trajectories=12, steps=32)
    assert "solvers" not in one
    assert one["rows"][0]["rows"][0]["local"] == pytest.approx(rows["rows"][0]["local"], rel=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            dict(sections=["curves"]),
            "sections=.'curves',.: must be one or more of curvature, solvers, rows",
        ),
        (dict(trajectories=1), "trajectories=1: must be a whole number from 2"),
        (dict(steps=4), "steps=4: must be a whole number from 8"),
        (dict(nfe=()), r"nfe=\(\): give at least one"),
        (dict(nfe=(4, 2.5)), "nfe=2.5: must be a whole number"),
        (dict(nfe="4"), "nfe='4': must be a list"),
        (dict(seed=1.5), "seed=1.5: must be a whole number"),
        (dict(shift=0), "shift=0: must be a finite number above 0"),
        (dict(guidance="2"), "guidance='2': must be a finite number"),
        (dict(plans="E4"), "plans='E4': must be a list"),
        (dict(plans=[None]), "plans=None: must be a flowturbo.Plan"),
        (dict(cond=torch.zeros(3)), r"cond=<tensor \(3,\).*: trajectories=64 takes 64 rows"),
        (dict(trajectorie=3), "has no argument 'trajectorie'; did you mean 'trajectories'"),
        (dict(plans=[ft.Plan.parse("H1R1")]), "refiner=None"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        analyze({"plane": Plane(mixture)}, **given)


def test_a_plain_field_and_noise_of_ones_own():
    few = dict(steps=32, nfe=(4,), sections=["solvers"])
    found = analyze(mixture, ["AB2:4"], noise=NOISE, **few)
    assert [*found["models"]] == ["model"]
    assert found["conditions"]["seeds"] is None
    assert found["conditions"]["trajectories"] == 6
    exact = solve(mixture, NOISE, steps=32).states[-1]
    off = (ft.sample("AB2:4", mixture, NOISE) - exact).square().mean().sqrt()
    assert found["solvers"][-1]["rmse"] == pytest.approx(float(off), rel=1e-4)
    same = analyze({"plane": Plane(mixture)}, ["AB2:4"], noise=NOISE, **few)
    assert same["solvers"] == found["solvers"]
    with pytest.raises(ValueError, match=r"models\['model'\]=.*: has no shape.* noise="):
        analyze(mixture, **few)
    with pytest.raises(ValueError, match=r"trajectories=6 and noise=.*; leave trajectories out"):
        analyze(mixture, noise=NOISE, trajectories=6)
    with pytest.raises(ValueError, match=r"noise=\[1, 2\]: must be a tensor"):
        analyze(mixture, noise=[1, 2])
    with pytest.raises(ValueError, match=r"noise=.*: this model takes \(N, 2\)"):
        analyze(Plane(mixture), noise=NOISE[:, :1])


def test_plans_with_conditional_evaluations(tmp_path):
    class Pulled(Plane):
        def __call__(self, x, t, cond):
            return cond - x

        def null_condition(self, cond):
            return 0 * cond

    cond = torch.ones_like(NOISE)
    found = analyze(
        Pulled(None), ["AB2:FCF"], noise=NOISE, cond=cond, guidance=2.0, steps=16, nfe=(3,)
    )
    (tmp_path / "record.json").write_text(json.dumps(found))
    assert [r["evaluator"] for r in found["rows"][0]["rows"]] == ["model", "conditional", "model"]
    assert read_record(tmp_path / "record.json") == found
    assert len(figures(found, tmp_path)) == 4


def test_models_must_be_alike():
    other = Plane(mixture)
    other.shape = (3,)
    with pytest.raises(ValueError, match="models of shapes"):
        analyze({"a": Plane(mixture), "b": other})


def flowturbo(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main(["analyze", *map(str, arguments)])
    return end.value.code or 0


def test_command_and_figures_from_the_record_alone(tiny, tmp_path, monkeypatch, capsys):
    card = {"condition": {"kind": "class", "labels": list("abcde")}}
    save_folder(tmp_path / "flow", tiny, card)
    network = SiT(replace(tiny.config, prediction="noise"))
    network.load_state_dict(tiny.state_dict())
    save_folder(tmp_path / "diffusion", network, card)
    few = ["--trajectories", 3, "--steps", 8, "--nfe", "2,3", "--guidance", 2, "--device", "cpu"]
    models = ["-m", tmp_path / "flow", "--compare-model", tmp_path / "diffusion"]
    out = tmp_path / "out"
    assert flowturbo(*models, *few, "--plan", "AB2:3@1.6", "--plan", "H1P1", "-o", out) == 0
    shown = capsys.readouterr().out
    names = ["curvature.png", "gaps.png", "record.json", "rows.png", "solvers.png"]
    assert sorted(p.name for p in out.iterdir()) == [".lock", *names]
    for word in ("AB2:3@1.6", "extrapolate", "noise", "median"):
        assert word in shown
    record = read_record(out / "record.json")
    assert record["models"]["diffusion"]["prediction"] == "noise"
    assert record["conditions"]["condition"] == "sampled evenly"
    monkeypatch.setattr(command, "load", None)  # nothing is computed again
    again = tmp_path / "again"
    assert flowturbo("--record", out / "record.json", "-o", again) == 0
    for name in set(names) - {"record.json"}:
        assert Image.open(again / name).tobytes() == Image.open(out / name).tobytes()
    assert not (again / "record.json").exists()


def test_a_record_of_one_part(tmp_path):
    record = analyze({"m": Plane(mixture)}, sections=["curvature"], trajectories=3, steps=8)
    assert [p.name for p in figures(record, tmp_path)] == ["curvature.png", "gaps.png"]
    assert len(tables(record)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--record", "none.json"], "none.json"),
        (["--record", "bad.json"], "bad.json: not a record"),
        (["--nfe", "4,x"], "'4,x' is not a list such as 4,6,8"),
        (["-m", "digits", "--sections", "curve"], "sections=('curve',)"),
        (["-m", "digits", "--compare-model", "digits"], "names on cards must differ"),
        (["-m", "digits", "--plan", "E1R1"], "at 1 distinct times, and it needs 2"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('{"kind": "other"}')
    assert flowturbo(*arguments) != 0
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_models_of_other_conditions_are_not_compared():
    cards = [{"condition": {"kind": "class", "labels": labels}} for labels in (["a", "b"], ["b"])]
    models = {name: Plane(mixture) for name in "xy"}
    for model, card in zip(models.values(), cards, strict=True):
        model.card = card
    with pytest.raises(ValueError, match="models x, y: their conditions mean different things"):
        analyze(models, trajectories=3, steps=8)
    models["y"].card = cards[0]
    assert analyze(models, trajectories=3, steps=8, sections=["curvature"])["curvature"]["y"]


def test_plans_by_notation_and_plans_of_a_part():
    few = dict(trajectories=3, steps=8, nfe=[2], sections=["solvers"])
    found = analyze({"m": Plane(mixture)}, ["AB2:3"], **few)
    assert found["solvers"][-1]["plan"] == "AB2:3"
    with pytest.raises(ValueError, match="take one that runs from noise"):
        analyze({"m": Plane(mixture)}, [ft.Plan.parse("AB2:8").restrict(0.4)], **few)


def test_trajectories_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"model 'm': .* NaN or infinity at t=0"):
        analyze({"m": Plane(lambda x, t: x / 0)}, trajectories=3, steps=8)


@pytest.mark.parametrize("missing", ["conditions", "rmse"])
def test_a_record_that_is_not_whole_is_refused(missing, tmp_path):
    record = analyze({"m": Plane(mixture)}, trajectories=3, steps=8, nfe=[2], sections=["solvers"])
    (record if missing in record else record["solvers"][0]).pop(missing)
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"record\.json: not a record"):
        read_record(tmp_path / "record.json")
