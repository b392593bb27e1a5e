"""The benchmark of the method: its ratios, its rivals, and a whole run on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flowturbo as ft

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
sys.path.insert(0, str(ROOT / "benchmarks"))
import ratios  # noqa: E402
import schedulers  # noqa: E402


def record(model: str, cells: dict[int, dict[str, list[float]]]) -> dict:
    n = len(next(iter(next(iter(cells.values())).values())))
    told = {str(k): {"plans": {p: {"errors": e} for p, e in c.items()}} for k, c in cells.items()}
    return {"conditions": {"model": model, "noise_samples": n}, "cells": told}


def test_ratios_are_paired_and_means_geometric():
    errors = np.random.default_rng(0).gamma(2.0, size=64)
    one = record("a", {4: {"x": list(0.5 * errors), "y": list(errors)}})
    two = record("b", {4: {"x": list(2.0 * errors), "y": list(errors)}})
    asked = ratios.Asked("x", "y", (4, 5), 1.0, 1.0)
    for of in (ratios.rmse, ratios.median):
        ratio = ratios.Ratio([one, two], asked, of)
        assert ratio.cells == pytest.approx({("a", 4): 0.5, ("b", 4): 2.0})
        assert ratio.mean == pytest.approx(1.0)
        assert ratio.interval() == pytest.approx((1.0, 1.0))  # of the same rows: no spread
        assert ratio.missing == ["a 5", "b 5"]


@pytest.mark.parametrize("nfe", [4, 5])
def test_schedulers_take_as_many_evaluations_at_the_most(nfe):
    pytest.importorskip("diffusers")
    plans = schedulers.schedulers(nfe, (1.0, 2.0))
    assert len(plans) == 2 * 14
    assert {p.nfe["model"] for p in plans.values()} <= {nfe, nfe - 1}
    for name, plan in plans.items():
        assert plan.times[-1] == 1 or name.startswith("DEIS")


@pytest.mark.slow
def test_a_whole_run_goes_on_and_makes_a_table(tmp_path, tiny):
    from flowturbo.models.checkpoint import save_folder

    save_folder(tmp_path / "m", tiny, {"condition": {"kind": "class", "labels": list("abcde")}})
    out, script = tmp_path / "r.json", str(ROOT / "benchmarks" / "method.py")

    def run(*options: str) -> str:
        command = [sys.executable, script, *options, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    few = ["--model", str(tmp_path / "m"), "--noise-samples", "8", "--trajectories", "12"]
    few += ["--folder", str(tmp_path / "work"), "--reference", "AB4RK:41@0.5", "--nfe", "4"]
    run(*few)
    first = json.loads(out.read_text())
    run(*few)
    assert json.loads(out.read_text()) == first
    run(*few, "--split")
    found = json.loads(out.read_text())
    assert found["cells"] == first["cells"]
    assert len(found["split"]["4"]) == 5
    table = ratios.report([str(out)], [str(out)])
    assert "| tuned / scheduler | 4, 5, 6, 8, 10 | 0.8 (0.5) |" in table


@pytest.mark.slow
def test_plans_by_passes_and_by_evaluations_are_compared(tmp_path, tiny):
    from flowturbo.models.checkpoint import save_folder

    save_folder(tmp_path / "m", tiny, {"condition": {"kind": "class", "labels": list("abcde")}})
    out, script = tmp_path / "r.json", str(ROOT / "benchmarks" / "passes.py")

    def run(*options: str) -> str:
        done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    few = ["--model", str(tmp_path / "m"), "--noise-samples", "8", "--trajectories", "32"]
    few += ["--folder", str(tmp_path / "work"), "--reference", "AB4RK:41@0.5", "--passes", "8"]
    few += ["--guidance", "2", "--no-search", "--out", str(out)]
    run(*few)
    first = json.loads(out.read_text())
    run(*few)
    assert json.loads(out.read_text()) == first
    found = first["2"]["cells"]["8"]
    names = ("evaluations", "passes", "scheduler", "gated reuse")
    assert [found[name]["passes"] for name in names] == [8] * 4
    gated = ft.Plan.from_json(json.dumps(found["gated reuse"]["table"]))
    assert gated.nfe["conditional"] > 0
    assert "geometric mean" in run("--table", str(out))


@pytest.mark.slow
def test_samplers_at_equal_error_on_the_clock(tmp_path, tiny):
    from flowturbo.models.checkpoint import save_folder

    save_folder(tmp_path / "m", tiny, {"condition": {"kind": "class", "labels": list("abcde")}})
    out, script = tmp_path / "r.json", str(ROOT / "benchmarks" / "speed.py")
    command = [sys.executable, script, "--model", str(tmp_path / "m"), "--plan", "AB2:5@1.6"]
    command += [
        "--guidance",
        "2",
        "--noise-samples",
        "8",
        "--reference",
        "AB4RK:41@0.5",
        "--batch",
        "2",
    ]
    command += ["--repeats", "1", "--scopes", "none", "--folder", str(tmp_path), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    for kind, name in (("Euler", "FlowMatchEuler"), ("second order", "")):
        at = found["equal"][kind]
        assert at["value"] <= found["plan"]["rmse"]
        assert at["chosen"].startswith(name)
        assert found["faster"][kind]["none"] > 0
    methods = found["timed"]["methods"]
    counts = [m["evaluations"]["model"] for m in methods[:3]]
    assert counts[0] == 5
    assert counts[1:] == [found["equal"][k]["evaluations"] for k in ("Euler", "second order")]


@pytest.mark.parametrize(("order", "target"), [(1, 0.06), (1, 0.21), (2, 0.0007), (0.5, 0.1)])
def test_the_fewest_evaluations_are_found(order, target):
    import speed

    value = lambda n: n**-order
    asked = []
    measure = lambda n: (asked.append(n) or value(n), f"at {n}", None)
    fewest = next(n for n in range(4, 1000) if value(n) <= target)
    assert speed.equal(measure, target, 4, 1000)[:3] == (fewest, value(fewest), f"at {fewest}")
    assert len(asked) == len(set(asked)) < 12
    assert speed.equal(measure, target, 4, fewest)[0] == fewest
    few = fewest - 1
    if few >= 4:
        assert speed.equal(measure, target, 4, few)[:2] == (few, value(few))
