"""The benchmark: its arithmetic, the baselines against plans, and a run at tiny size."""

from __future__ import annotations

import json
import time

import pytest
import torch
from fields import mixture

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.compiled import backend
from flowturbo.compiled.memory import peak_bytes
from flowturbo.evaluate.benchmark import benchmark
from flowturbo.field import CountCalls
from flowturbo.integrations import baselines as library
from flowturbo.timing import fit_latency, interleaved, spread


def test_the_order_of_calls_rotates():
    order = []
    calls = {name: lambda n=name: order.append(n) for name in "abc"}
    taken = interleaved(calls, repeats=3, warm_up=1)
    assert [len(ms) for ms in taken.values()] == [3, 3, 3]
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"
    slow = interleaved({"sleep": lambda: time.sleep(0.01)}, repeats=2)["sleep"]
    assert min(slow) >= 10
    with pytest.raises(ValueError, match="repeats=0"):
        interleaved(calls, repeats=0)


def test_spread():
    assert spread([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0, "least": 3.0}
    found = spread([float(i) for i in range(11)])
    assert found == {"median": 5.0, "low": 1.0, "high": 9.0, "least": 0.0}


def test_latency_is_fitted_exactly_where_it_is_linear():
    counts = [{"model": m, "refiner": r} for m, r in ((2, 0), (4, 0), (8, 0), (2, 2), (2, 6))]
    found = fit_latency(counts, [3 + 5 * c["model"] + 0.5 * c["refiner"] for c in counts])
    assert found["worst"] < 1e-9
    assert [round(found[k], 6) for k in ("fixed", "model", "refiner")] == [3, 5, 0.5]
    assert fit_latency(counts[:3], [13.0, 23.0, 43.0])["refiner"] is None


def test_peak_memory_is_what_is_held_at_once():
    def call():
        a = torch.ones(1000)
        b = a + 1
        del a
        return torch.ones(500) + b.sum()

    assert 8000 <= peak_bytes(call) <= 8200
    assert peak_bytes(lambda: None) == 0


def test_the_loop_keeps_nothing_but_its_result():
    x = torch.randn(64, 2, dtype=torch.float64)
    few, many = (lambda n=n: ft.sample(f"AB2:{n}", mixture, x) for n in (4, 24))
    few()
    assert peak_bytes(many) <= peak_bytes(few)


@pytest.mark.parametrize("guided", [False, True])
def test_baselines_solve_what_plans_solve(digits, guided):
    found, missing = library.baselines(4)
    assert "diffusers" not in missing
    assert "torchdiffeq" not in missing
    x, cond = ft.noise.draw([0, 1], digits.shape), digits.condition(["3", "7"])
    null, scale = (digits.null_condition(cond[:1]), 2.0) if guided else (None, 1.0)
    same = {"Euler": ft.Plan.parse("E4"), "midpoint": ft.Plan.parse("MID:2")}
    from diffusers import UniPCMultistepScheduler

    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    same["UniPC"] = ft.Plan.from_scheduler(UniPCMultistepScheduler(**config), 4)
    compared = 0
    for name, baseline in found.items():
        counted = CountCalls(digits)
        out = baseline(counted, x, cond, null, scale)
        assert counted.calls == 4, name
        for word, plan in same.items():
            if word in name:
                loop = ft.sample(plan, digits, x, cond, guidance=scale)
                torch.testing.assert_close(out, loop, rtol=1e-3, atol=1e-3)
                compared += 1
    assert compared >= 5


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    found, missing = library.baselines(4)
    assert list(found) == ["plain loop, Euler 4"]
    assert missing["flow_matching"] == "pip install flow_matching"


@pytest.mark.parametrize("arguments", [["--no-baselines"], ["--plan", "E2", "--guidance", "1"]])
def test_command(text_model, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.setattr(backend, "_BACKEND", "aot_eager")
    out, picture = tmp_path / "record.json", tmp_path / "plot.png"
    few = ["--batch", "2", "--repeats", "2", "--reference", "RK4:4", "--device", "cpu"]
    files = ["-o", str(out), "--plot", str(picture)]
    with pytest.raises(SystemExit) as end:
        main(["benchmark", "-m", str(text_model), *few, *files, *arguments])
    assert not end.value.code
    record = json.loads(out.read_text())
    rows = {row["name"]: row for row in record["methods"]}
    plain, fast = rows["E2, uncompiled"], rows["E2, compiled plan"]
    assert (
        plain["evaluations"] == fast["evaluations"] == {"model": 2, "conditional": 0, "refiner": 0}
    )
    assert plain["flops"] == fast["flops"] > 0
    assert fast["compile"]["recompiles"] == 0
    assert fast["compile"]["graphs"] == 1
    assert plain["error"]["rmse"] == pytest.approx(fast["error"]["rmse"], rel=1e-4)
    assert 0 < plain["mfu"] < 1
    assert {"network", "decode", "matrix product"} == record["parts"].keys()
    assert record["conditions"]["versions"]["torch"] == torch.__version__
    assert ("diffusers" in str(rows)) == ("--no-baselines" not in arguments)
    assert picture.stat().st_size > 1000
    shown = capsys.readouterr().out
    assert "E2, compiled plan" in shown
    assert ("not measured: flow_matching" in shown) == bool(record["missing"])


def test_bad_input_is_one_line(text_model, capsys):
    for arguments, message in (
        (["--scopes", "none,all"], "scopes=('none', 'all')"),
        (["--batch", "0"], "batch=0: must be"),
        (["--plan", "H0"], "H0"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["benchmark", "-m", str(text_model), "--no-baselines", *arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_a_model_of_latents_is_measured_without_decoding(text_model):
    model = ft.load(text_model)
    latent = ft.Model(model.network, {**model.card, "codec": {"kind": "latent"}})
    few = dict(batch=1, repeats=1, scopes=["none"], cond=model.condition(["tiger"]))
    records = [benchmark(m, [ft.Plan.parse("E2")], **few) for m in (model, latent)]
    assert ["decode" in record["parts"] for record in records] == [True, False]
    assert records[0]["missing"] == {}
    assert "pass --vae" in records[1]["missing"]["decode"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plans": [None]}, "plans=None: must be a flowturbo.Plan or its notation"),
        ({"plans": "E2"}, "plans='E2': must be a list"),
        ({"plans": []}, r"plans=\[\]: give at least one"),
        ({"model": "digits"}, r"model='digits': .* load it: flowturbo.load\('digits'\)"),
        ({"model": mixture}, "model=.* must have a shape"),
        ({"batch": 0}, "batch=0: must be a whole number from 1"),
        ({"batch": 2.5}, "batch=2.5: must be a whole number"),
        ({"repeats": 0}, "repeats=0: must be a whole number from 1"),
        ({"seed": -1}, "seed=-1: must be a whole number"),
        ({"guidance": "2"}, "guidance='2': must be a finite number"),
        ({"scopes": "none"}, "scopes='none': must be a list"),
        ({"scopes": []}, "must be one or more of"),
        ({"cond": torch.zeros(3)}, "cond=<tensor .*batch=1 takes 1 rows"),
        ({"baselines": 3}, "baselines=3: must be a dictionary"),
        ({"refiner": 3}, "refiner=3: must be a function"),
        ({"dtype": "float32"}, "dtype='float32': must be one of"),
        ({"reference": "Q"}, "Q"),
        ({"repeat": 3}, "has no argument 'repeat'; did you mean 'repeats'"),
    ],
)
def test_bad_arguments(text_model, given, message):
    few = dict(model=ft.load(text_model), plans=["E2"], batch=1)
    with pytest.raises(ValueError, match=message):
        benchmark(**few | given)
