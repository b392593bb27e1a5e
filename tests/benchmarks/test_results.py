"""The page of results: what it says of records, and that the scripts that make them go on."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flowturbo as ft
from flowturbo.evaluate.analysis import analyze
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.stats import summary

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
sys.path.insert(0, str(ROOT / "benchmarks"))
import ablations  # noqa: E402
import bench  # noqa: E402
import page  # noqa: E402
import paper  # noqa: E402
import results  # noqa: E402
from ratios import paired  # noqa: E402

MAKE = ROOT / "benchmarks" / "make_results"
CONDITIONS = {
    "model": "made", "fingerprint": "0123456789abcdef", "guidance": 2.0, "noise_samples": 12,
    "seeds": "0 to 11", "reference": "AB4RK:41@0.5", "dtype": "float32", "device": "cpu",
    "threads": 1, "versions": {"torch": "2"},
}  # fmt: skip
CHECKED = {"rmse": 1e-5, "finer_plan": "AB4RK:73@0.5", "noise_samples": 12}
PART = {"conditions": CONDITIONS, "reference": CHECKED, "roughness": 0.1}


def entry(scale: float, model: int = 4, refiner: int = 0, **about: object) -> dict:
    errors = scale * np.random.default_rng(0).gamma(4.0, size=12)
    nfe = {"model": model, "refiner": refiner}
    return {"plan": "x", "nfe": nfe, **about, **summary(errors), "errors": errors.tolist()}


def frechet(relative: float) -> dict:
    bounds = [relative - 0.01, relative + 0.01]
    distance = {"relative": relative, "relative_95": bounds, "plan": 2.0, "reference": 1.9}
    c = {"plan": "x", "seeds": [0, 11], "real_images": None, "dtype": "torch.float32"}
    share = {"share": 0.5, "share_95": [0.4, 0.6]}
    return {
        "conditions": c, "evaluations": {"model": 4, "refiner": 0},
        "trajectory": entry(1.0), "reference": {"evaluations": 9},
        "precision": {"plan": share, "reference": {**share, "share": 0.45}},
        "frechet": {**distance, "target_images": 6, "images": 6},
    }  # fmt: skip


class Turning:
    """States turn by 2 over the trajectory, so their velocities change by that."""

    shape = (1, 1, 2)

    def __call__(self, x, t, cond):
        return 2.0 * torch.stack([-x[..., 1], x[..., 0]], dim=-1)


@pytest.fixture
def records(tmp_path) -> Path:
    """A record of each kind, made up."""
    folder = tmp_path / "records"
    folder.mkdir()
    about = {"model": "made", "fingerprint": "0123456789abcdef", "text": False}
    trained = {"steps": 3, "batch": 18, "lr": 5e-5, "dt": 0.12}
    about["refiners"] = {"paper": {"fingerprint": "f", "parameters": 9, "training": trained}}
    methods = [*results.SCHEDULERS, "AB2", "AB4", results.PAPER, results.PAPER_REFINED, "fitted"]
    cells = {
        nfe: {"plans": {m: entry((i + 1) / int(nfe), int(nfe), chosen=f"{m} chosen")
                        for i, m in enumerate(methods)}}
        for nfe in ("4", "6")
    }  # fmt: skip
    Image.new("L", (4 * 10, 2 * 10)).save(folder / "results-made-g2-6.png")
    main = {
        **about, "kind": results.KIND,
        "guidance": {"2": {**PART, "cells": cells}, "1": {**PART, "cells": cells}},
        "frechet": {"2": {"6": {"fitted": frechet(0.01), "UniPC-2": frechet(0.08)}}},
        "image_grids": {"results-made-g2-6.png": {
            "guidance": 2.0, "nfe": 6, "rows": ["reference solution", "fitted"],
            "prompts": list("abcd"), "seeds": [0, 3]}},
    }  # fmt: skip
    (folder / "results-made.json").write_text(json.dumps(main))
    rows = {r.title: entry(1.0, refiner=2) for a in paper.ABLATIONS[:3] for r in a.rows}
    rows |= {"H7": entry(2.0), "H7R1": entry(3.0, refiner=2), "H8": entry(1.0)}
    for name, far in (("H8", 0.02), ("H7R1", 0.1)):
        rows[name]["frechet"] = frechet(far)
    draws = {"4": [entry(1.0), entry(1.1)], "8": [entry(0.9)]}
    fitting = {"trajectories": {"6": draws}, "history": {"6": {"1": entry(2.0), "2": entry(1.0)}}}
    moved = {"6": {"1": entry(1.0), "2": entry(2.0), "range": entry(1.5)}}
    other = {
        **about, "kind": ablations.KIND, "tables": {"2": {**PART, "rows": rows}},
        "fitting": {"2": {**PART, **fitting}},
        "transfer": {"1": {**PART, "plans": moved}, "2": {**PART, "plans": moved}},
    }  # fmt: skip
    (folder / "ablations-made.json").write_text(json.dumps(other))
    turning = analyze({"made": Turning()}, [ft.Plan.parse("AB2:4")], nfe=(4,), trajectories=4,
                      steps=8)  # fmt: skip
    (folder / "analysis-made.json").write_text(json.dumps(turning))
    methods = {"evaluations": 0.5, "passes": 0.4, "scheduler": 1.0, "gated reuse": 0.8}
    cell = {name: entry(far, 4) for name, far in methods.items()}
    part = {"conditions": PART["conditions"], "reference": PART["reference"], "cells": {"8": cell}}
    (folder / "passes-made.json").write_text(json.dumps({"2": part}))
    plans = {"fast": {"passes": 8, "plan": entry(0.5, 4), "scheduler": entry(1.0, 4)}}
    kinds = {k: {**part, "plans": plans} for k in ("any names", "common names")}
    (folder / "bundled-made.json").write_text(json.dumps(kinds))
    return folder


@pytest.fixture
def make(monkeypatch) -> Callable[..., int]:
    """What the command returns for folders of records and of pages."""
    main = runpy.run_path(str(MAKE))["main"]

    def call(records: Path, docs: Path, *options: str) -> int:
        given = ["make_results", "--records", str(records), "--docs", str(docs), *options]
        monkeypatch.setattr(sys, "argv", given)
        return main()

    return call


def test_the_page_and_its_figures_are_made_from_records_alone(records, tmp_path, make):
    docs = tmp_path / "docs"
    (docs / "images").mkdir(parents=True)
    (docs / "images" / "emoji.png").write_bytes(b"of another page")
    assert make(records, docs, "--check") == 1
    assert make(records, docs) == 0
    text = (docs / "results.md").read_text("utf-8")
    shown = re.findall(r"!\[.+\]\(images/(results-.+\.png)\)", text)
    assert sorted(shown) == sorted(p.name for p in (docs / "images").glob("results-*"))
    assert len(shown) == 3 + 4
    bold = re.findall(r"\*\*.+?\*\*.{0,2}", text)
    assert len(bold) == 4
    assert all(mark.endswith(" (") for mark in bold)
    for name in ("digits", "emoji"):
        for command in page.COMMANDS.values():
            assert command.format(name) in text
    assert text.index("made, guidance 1") < text.index("made, guidance 2")
    (docs / "images" / "results-of-old.png").write_bytes(b"")
    assert make(records, docs, "--check") == 1
    assert make(records, docs) == 0
    assert not (docs / "images" / "results-of-old.png").exists()
    assert make(records, docs, "--check") == 0


def test_tables_say_what_agrees(records, tmp_path):
    text = page.build(records, tmp_path)
    row = lambda name: next(x for x in text.splitlines() if x.startswith(f"| {name} |"))
    assert "| 3.68 | 3.6116 (2.6873 to 4.4532), median" in row("H8")
    assert "| 4.42 |" in row("H7")
    assert row("H7").endswith("| 2.000 (2 to 2) | yes |  |")  # of the same errors: no spread
    assert row("H7R1").endswith("| 3.000 (3 to 3) | no | no |")  # the paper has it better
    assert row("H6R2").endswith("| 1.000 (1 to 1) | undecided |  |")
    assert row("P5R7H3").endswith("| 1.000 (1 to 1) | undecided |")
    assert "| not given |" in row("[H1P1R1]x3")
    assert "| tuned | 2 | fitted chosen | +1.0 % (+0.0 to +2.0) | yes |" in text
    assert "| UniPC-2 | 2 | UniPC-2 chosen | +8.0 % (+7.0 to +9.0) | NO |" in text
    short = "| none | plan | 4 | 8 | 3.6116 (2.6873 to 4.4532) | 6 | +1.0 % (+0.0 to +2.0) |"
    assert f"| tuned {short}" in text
    assert text.index("| UniPC-2 | none | none | 4 | 8 | 3.6116") < text.index(f"| tuned {short}")
    assert "| FlowTurbo (paper), with refiner | training images | refiner, 3 steps of 18 |" in text
    assert "| made | common names | `fast` | 8 | 1.8058 (" in text
    assert "ms, batch of" not in text  # no record of speed, so none are told
    assert "| tuned | 2 | 6 | 3.6116 (2.6873 to 4.4532) |  |  | 50.0 (40.0 to 60.0) |" in text
    assert "| reference solution | 2 | 9 |  |  |  | 45.0 (40.0 to 60.0) |" in text
    assert (
        "| tuned by passes / best scheduler | 1 | 0.400 | 0.400 | 0.400 (0.400 to 0.400) |" in text
    )
    assert "| tuned by passes / tuned, both branches | 1 | 0.800 |" in text
    assert "tuned / AB2 | 1 |" in text
    assert "| 6 | over the range |" in text
    turned = re.search(r"\| made \| velocity, time t \| ([\d.]+) ± ([\d.]+) \|", text)
    assert float(turned[1]) == pytest.approx(2.0, abs=0.02)
    assert "Not measured here: dt 0.03; dt 0.06; dt 0.25." in text


def test_milliseconds_are_by_the_costs_in_the_record_of_speed(records, tmp_path):
    record = json.loads((records / "results-made.json").read_text("utf-8"))
    plans = record["guidance"]["2"]["cells"]["6"]["plans"]
    plans["fitted, refiner"] = entry(0.5, 6, 5) | {"refiner": "own"}
    plans[results.PAPER_REFINED] = entry(2.0, 6, 4) | {"refiner": "another"}
    (records / "results-made.json").write_text(json.dumps(record))
    at = {"evaluations": 19, "value": 0.4, "reached": True, "chosen": "UniPC-2, linspace, 1.3"}
    speed = {
        "conditions": {"guidance": 2.0, "noise_samples": 8}, "plan": entry(0.5, 6, 5),
        "equal": {"second order": at}, "faster": {"second order": {"none": 2.0}},
        "timed": {
            "conditions": {"refiner": "own", "batch": 8, "threads": 2},
            "latency": {"fixed": 3.0, "model": 100.0, "refiner": 10.0, "worst": 0.01},
            "methods": [{"ms": {"median": 650.0}}],
        },
    }  # fmt: skip
    (records / "speed-made.json").write_text(json.dumps(speed))
    text = page.build(records, tmp_path)
    row = lambda name: next(x for x in text.splitlines() if x.startswith(f"| {name} | "))
    assert "| 6 + 5 R | 12 | 653 |" in row("tuned + refiner")
    assert "| 6 + 4 R | 12 | at least 603 |" in row("FlowTurbo (paper), with refiner")
    assert "| 6 | 12 | 603 |" in row("Euler")
    assert "3.00 + 100.00 an evaluation + 10.00 a refiner call, which is within 1.0 %" in text
    assert "(UniPC-2: 19)" in text
    assert "](images/results-made-time.png)" in text
    assert Image.open(tmp_path / "results-made-time.png").width > 1200


@pytest.mark.parametrize(
    ("fids", "bounds", "expected"),
    [
        ((2.0, 1.0), (1.1, 1.2), "yes"),
        ((2.0, 1.0), (0.8, 0.9), "no"),
        ((2.0, 1.0), (0.9, 1.1), "undecided"),
        ((28.60, 28.61), (0.9, 1.1), "yes"),
        ((28.60, 28.61), (1.1, 1.2), "no"),
        ((None, 1.0), (1.1, 1.2), ""),
    ],
)
def test_a_verdict_needs_an_interval_and_a_number_of_the_paper(fids, bounds, expected):
    one, two = (paper.Row("H2", fid=fid) for fid in fids)
    assert page.verdict(one, two, *bounds, 1.0) == expected


def test_paired_ratios_are_of_the_same_noise_samples():
    assert paired(entry(3.0), entry(1.0)) == pytest.approx((3.0, 3.0, 3.0))


def test_the_papers_plans_can_be_run():
    titles = [row.title for a in paper.ABLATIONS for row in a.rows if not a.text]
    assert len(titles) == len(set(titles)) > 20
    for what in paper.ABLATIONS:
        names = [row.title for row in what.rows]
        for row in what.rows:
            assert ft.Plan.parse(row.plan).nfe["model"] >= 5
            assert not row.over or row.over in names
            assert row.refiner in {*paper.TRAINED, paper.NARROW, "paper", bench.OWN}


def test_without_records_there_is_no_page(tmp_path, make):
    (tmp_path / "records").mkdir()
    assert make(tmp_path / "records", tmp_path / "docs") == 0
    assert not (tmp_path / "docs").exists()


def test_the_page_is_what_the_records_say():
    command = [sys.executable, MAKE, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_says_what_the_page_says():
    found = (ROOT / "README.md").read_text("utf-8").partition("## Six evaluations")[2]
    rows = [x for x in found.partition("\n## ")[0].splitlines() if x.startswith("| ")]
    assert len(rows) > 4
    assert set(rows) <= set((ROOT / "docs" / "results.md").read_text("utf-8").splitlines())


def test_the_readme_begins_with_what_the_records_say():
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    speed = {
        name: json.loads(
            (ROOT / "benchmarks" / "records" / f"speed-{name}.json").read_text("utf-8")
        )
        for name in ("digits", "emoji")
    }
    ours = speed["digits"]["timed"]["methods"][0]
    times = {name: s["faster"]["second order"]["none"] for name, s in speed.items()}
    by_images = {name: s["faster"]["second order, FD"]["none"] for name, s in speed.items()}
    assert ours["scope"] == "none"
    assert ours["name"].startswith(speed["digits"]["plan"]["plan"])
    assert all(s["equal"]["second order"]["reached"] for s in speed.values())
    assert all(s["equal"]["second order"]["chosen"].startswith("UniPC") for s in speed.values())
    for said in (
        f"in {ours['ms']['median']:.0f} ms where",
        f"takes {ours['ms']['median'] * times['digits']:.0f} ms for the same error",
        f"{times['digits']:.1f} times faster on the bundled model `digits`",
        f"{times['emoji']:.1f} times on `emoji`",
        f"with {speed['digits']['equal']['Euler']['evaluations']} evaluations",
        f"they are {by_images['digits']:.1f} and {by_images['emoji']:.1f} (",
    ):
        assert said in readme


def test_the_readme_counts_the_bundled_models_right():
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in ("digits", "emoji"):
        model = ft.load(name)
        line = next(x for x in readme.splitlines() if x.startswith(f"| `{name}` | "))
        assert f" | {sum(p.numel() for p in model.network.parameters()):,} | " in line
        shown = {found[0]: tuple(int(n or 0) for n in found[1:])
                 for found in re.findall(r"`(\w+)` (\d+)(?: \+ (\d+))?", line)}  # fmt: skip
        assert shown == {k: (p.nfe["model"], p.nfe["refiner"]) for k, p in model.plans.items()}


# -- the scripts, on a tiny model -------------------------------------------------------------


def pooled(images):
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def run(script, monkeypatch, *options: object) -> dict:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, options)])
    monkeypatch.setattr(bench, "FEATURES", pooled)
    script.main()
    return json.loads(Path(options[options.index("--out") + 1]).read_text("utf-8"))


@pytest.fixture
def small(tmp_path) -> Path:
    """The folder of a two-block model of grey pictures, and data beside it."""
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=8, channels=1, patch=4, width=16, depth=2, heads=2, classes=3))
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    labels = {"kind": "class", "labels": list("012")}
    save_folder(tmp_path / "m", network.eval(), {"name": "m", "condition": labels})
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 3)
    return tmp_path


@pytest.mark.slow
def test_the_scripts_go_on_where_they_were(small, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    own = dict(folder=small / "own", trajectories=8, steps=6, iterations=2, batch=4)
    ft.train_refiner(ft.load(small / "m"), **own)
    few: tuple = ("--model", small / "m", "--noise-samples", 8, "--reference", "AB4RK:25@0.5")
    few += ("--trajectories", 32, "--no-search", "--folder", small / "work", "--refiner")
    few += (small / "own", "--data", small / "data.npz", "--iterations", 2)
    out = small / "records" / "results-m.json"
    main = (*few, "--guidance", 2, "--nfe", 4, "--out", out)
    record = run(results, monkeypatch, *main)
    plans = record["guidance"]["2"]["cells"]["4"]["plans"]
    assert {*results.SCHEDULERS, "AB2", "AB4", results.PAPER, results.PAPER_REFINED} < set(plans)
    assert {"fitted", "fitted, refiner"} < set(plans)
    for found in plans.values():
        assert found["nfe"]["model"] <= 4
        low, high = found["rmse_95"]
        assert low <= found["rmse"] <= high
    assert record["refiners"]["paper"]["training"]["dt"] == 0.12
    asked = ("--num-images", 12, "--real-images", small / "data.npz")
    drawn = run(results, monkeypatch, *main, *asked)
    measured = drawn["frechet"]["2"]["4"]
    assert len(measured) == 7
    assert all(len(m["frechet"]["relative_95"]) == 2 for m in measured.values())
    assert all(m["frechet"]["floor"]["distance"] > 0 for m in measured.values())
    run(results, monkeypatch, *main, "--image-grid")
    assert Image.open(small / "records" / "results-m-g2-4.png").size == (32, 142)
    out = small / "records" / "ablations-m.json"
    other = (*few, "--counts", 4, 8, "--scales", 1, 2, "--nfe", 4, "--out", out)
    found = run(ablations, monkeypatch, *other)
    rows = found["tables"]["2"]["rows"]
    assert set(rows) == {row.title for a in paper.ABLATIONS for row in a.rows if not a.text}
    assert rows["H5P7R3, dt up to 0.25"]["refiner"] != rows["H5P7R3, dt up to 0.12"]["refiner"]
    assert [len(d) for d in found["fitting"]["2"]["trajectories"]["4"].values()] == [2, 1]
    assert set(found["transfer"]["1"]["plans"]["4"]) == {"1", "2", "range"}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for name in ("evaluate", "sample", "tune"):
        monkeypatch.setattr(ft, name, never)
    monkeypatch.setattr("ablations.fit_weights", never)
    assert run(results, monkeypatch, *main, *asked) == run(results, monkeypatch, *main)
    assert run(ablations, monkeypatch, *other) == found
    text = page.build(small / "records", small)
    assert "| tuned + refiner / tuned | 2 |" in text
    assert "H5P7R3, ours" in text
    with pytest.raises(SystemExit, match="give another"):
        run(results, monkeypatch, *main[:-1], out)
    record["guidance"]["2"]["conditions"]["device"] = "NVIDIA"
    main[-1].write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="was measured under"):
        run(results, monkeypatch, *main)
    with pytest.raises(SystemExit, match="2"):
        run(results, monkeypatch, *main, "--rows", "Eulre")
    more = run(results, monkeypatch, *main, "--rows", "Euler")["guidance"]["2"]
    assert more["cells"]["4"]["plans"] == {**plans, "Euler": {**plans["Euler"], "device": "cpu"}}
    more = run(results, monkeypatch, *main, "--rows", "fitted")["guidance"]["2"]
    assert more["cells"]["4"]["plans"]["fitted"] == {**plans["fitted"], "device": "cpu"}
    assert "on an NVIDIA (Euler, tuned: cpu)" in page.build(small / "records", small)
    with pytest.raises(SystemExit, match="measure the main table first"):
        run(results, monkeypatch, *main[:-4], "--nfe", 5, *main[-2:], "--image-grid")
    half = small / "work" / "refiners" / "paper" / "refiner.json"
    half.write_text(half.read_text("utf-8").replace('"step": 2', '"step": 1'))
    dataless = [x for x in few if x not in ("--data", small / "data.npz")]
    other = (*dataless, "--tables", "components", "--out", small / "half.json")
    assert set(run(ablations, monkeypatch, *other)["tables"]["2"]["rows"]) == {"H8", "H7"}
