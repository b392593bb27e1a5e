"""The page of speeds: what it says of records, and of those there are not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import flowturbo as ft
from flowturbo.evaluate.benchmark import benchmark

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import speed_page


@pytest.fixture(scope="module")
def timed():
    """A real record of a small field."""

    def field(x, t, cond=None):
        return -x * (1 - t)

    field.shape = (1, 4, 4)
    plans = [ft.Plan.parse(p) for p in ("AB2:4", "E9", "AB2:3")]
    return benchmark(field, plans, batch=2, scopes=["none"], repeats=2)


def entry(name: str, rmse: float) -> dict:
    bounds = [rmse / 2, 2 * rmse]
    return {"plan": name, "nfe": {"model": 4, "refiner": 2}, "rmse": rmse, "rmse_95": bounds}


def test_the_page_says_what_the_records_say(tmp_path, timed):
    speed = {
        "conditions": {"reference": "AB4RK:105@0.5", "noise_samples": 16, "guidance": 2.0},
        "plan": entry("fitted FFRFRF", 0.0312), "control": entry("AB2:4@1.6", 0.0444),
        "equal": {
            "Euler": {"evaluations": 9, "value": 0.0299, "reached": True,
                      "chosen": "FlowMatchEuler, linspace, 1"},
            "second order": {"evaluations": 96, "value": 0.04, "reached": False,
                             "chosen": "UniPC-2, default, 1"},
            "Euler, FD": {"evaluations": 9, "value": 1.25, "reached": True, "real": 7.5,
                          "chosen": "FlowMatchEuler, default, 2"},
        },
        "frechet": {
            "to_reference": 1.5, "plan": 6.5, "reference": 6.25, "images": 50,
            "real_images": "real.npz",
        },
        "faster": {
            "Euler": {"none": 2.25}, "second order": {"none": 20}, "Euler, FD": {"none": 3.5},
        },
        "timed": timed,
    }  # fmt: skip
    cold = {"sooner": {"process": 5.5, "without_import": 7.25}, "largest_difference": 1e-6}
    compiled = {**timed, "faster_than": {"plan than none": 1.5, "none than plan": 0.67}}
    compiled |= {"loop_share": [0.021], "cold_start": cold}
    (tmp_path / "speed-digits.json").write_text(json.dumps(speed))
    (tmp_path / "compile-digits.json").write_text(json.dumps(compiled))
    text = speed_page.build(tmp_path)
    line = lambda start: next(x for x in text.splitlines() if x.startswith(start))
    ours = "| fitted FFRFRF | 4 + 2 R | 8 | 0.0312 (0.0156 to 0.0624) | 1.50 | 6.50 |  |"
    assert line("| fitted FFRFRF ") == ours
    assert line("| FlowMatchEuler, l").endswith(", 1 | 9 | 18 | 0.0299 |  |  | none 2.25 |")
    assert line("| FlowMatchEuler, d").endswith(", 2 | 9 | 18 |  | 1.25 | 7.50 | none 3.50 |")
    assert line("| UniPC").endswith(
        "| more than 96 | more than 192 | 0.0400 |  |  | none more than 20.00 |"
    )
    assert "of 50 images to the reference images of the same noise" in text
    assert "the real images of real.npz, whose distance to the reference images is 6.25." in text
    ms = timed["methods"][1]["ms"]
    assert f"{ms['median']:.1f} ({ms['low']:.1f} to {ms['high']:.1f})" in line("| E9, uncompiled")
    assert "Faster: plan than none 1.50 times." in text
    assert "Of an uncompiled sample, 2.1 % is not the network." in text
    assert "5.5 times sooner than compiling (7.2 times without" in text
    for missing in ("speed-emoji", "compile-emoji", "refiner-cost-digits", "refiner-cost-emoji"):
        assert f"makes `{missing}.json`" in text
    for lines in text.split("\n\n"):
        if lines.startswith("|"):
            assert len({row.count("|") for row in lines.splitlines()}) == 1


def test_full_size_records_are_shown(tmp_path, timed):
    text = speed_page.build(tmp_path)
    assert "Not measured yet: `python benchmarks/gpu/full_size.py --out gpu-full-size.json`" in text
    assert "Not measured yet: `python benchmarks/gpu/pipelines.py --out gpu-pipelines.json`" in text
    fit = {"fixed": 1.5, "model": 42.75, "refiner": 2.06, "worst": 0.012}
    timed = {**timed, "latency": fit}
    full = {
        "paper_latency": {"fixed": 13.74, "model": 3.39, "refiner": 0.355},
        "timed": {"ours": {"2": {"uncompiled": timed}}}, "profiles": {},
    }  # fmt: skip
    ms = {"median": 100.0, "low": 99.0, "high": 101.0}
    found = {
        "ms": dict.fromkeys(("Euler", "enabled", "enabled, refiner"), ms), "parameters": 2.03e9,
        "ms_an_evaluation": 16.5, "overhead": 0.008, "refiner_share": 0.038,
        "evaluations": {"model": 6, "refiner": 5},
    }  # fmt: skip
    pipelines = {"conditions": timed["conditions"], "SD3": {"512": found}, "FLUX": {"1024": found}}
    (tmp_path / "gpu-full-size.json").write_text(json.dumps(full))
    (tmp_path / "gpu-pipelines.json").write_text(json.dumps(pipelines))
    text = speed_page.build(tmp_path)
    peak = timed["matrix_product_flops_per_second"] / 1e12
    assert "Not captured, 1.50 + 42.75 evaluations + 2.060 refiner calls" in text
    assert f"The peak is {peak:.0f} TFLOP/s" in text
    assert "Not measured yet: what compiling gains, and the profile of kernels." in text
    took = {"matrix products": 6.0, "others": 2.0}
    way = {"ms": ms, "kernels": 9, "kernels_ms": 8.0, "kernels_ms_by_kind": took}
    ways = {"loop": {**way, "left_over_ms": 80.0}, "captured": {**way, "left_over_ms": 4.0}}
    full["profiles"] = {"ours": {"1": {"compiled": ways}}}
    (tmp_path / "gpu-full-size.json").write_text(json.dumps(full))
    text = speed_page.build(tmp_path)
    assert "Not measured yet: what compiling gains." in text
    captured = (
        "| our refiner | 1 | compiled, captured | 100.00 | 9 | 8.00 | 75 % | 0 % | 0 % | 25 % |"
    )
    assert f"{captured} 4.00 | 5.0 % |" in text
    assert "| SD3, 2.0 billion | 512 | 100.0 (99.0 to 101.0) |" in text
    assert "| 16.5 | +0.8 % | 3.8 % |" in text
