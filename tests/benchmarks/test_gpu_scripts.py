"""The scripts for a GPU run on a CPU at a tiny size, to the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"
pytestmark = pytest.mark.slow


def run(script: str, out: Path, *options: str) -> dict:
    command = [sys.executable, str(SCRIPTS / script), "--device", "cpu", *options]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text("utf-8"))


def test_full_size(tmp_path):
    few = ("--size", "small", "--batch", "2", "--repeats", "1", "--plans", "H1P5R3", "AB2:4@1.6")
    out = tmp_path / "r.json"
    run("full_size.py", out, *few, "--parts", "uncompiled")
    record = run("full_size.py", out, *few, "--parts", "whole", "compiled")
    assert record["command"].count(" && ") == 1
    for found in record["profiles"].values():
        assert all(found["2"][k]["loop"]["kernels"] > 0 for k in ("uncompiled", "compiled"))
    for found in record["timed"].values():
        assert {"uncompiled", "whole", "compiled"} == set(found["2"])
        scopes = [m["scope"] for m in found["2"]["whole"]["methods"]]
        assert scopes == ["none", "network", "row", "plan"]
        for timed in found["2"].values():
            assert all(m["ms"]["median"] > 0 for m in timed["methods"])
        flops = [[m["flops"] for m in found["2"][k]["methods"]] for k in ("uncompiled", "compiled")]
        assert flops[0] == flops[1]


def test_full_size_is_not_added_to_what_was_measured_elsewhere(tmp_path):
    out = tmp_path / "r.json"
    run("full_size.py", out, "--size", "small", "--batch", "1", "--repeats", "1", "--plans",
        "AB2:4@1.6", "--parts", "uncompiled")  # fmt: skip
    before = out.read_bytes()
    for options in (("--size", "B/2"), ("--size", "small", "--guidance", "3")):
        command = [sys.executable, str(SCRIPTS / "full_size.py"), "--device", "cpu", *options]
        done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
        assert done.returncode == 2
        assert "give another" in done.stderr
    assert out.read_bytes() == before


def test_pipelines(tmp_path):
    pytest.importorskip("diffusers")
    tiny = ("--tiny", "--sizes", "64", "--repeats", "1", "--models")
    run("pipelines.py", tmp_path / "r.json", *tiny, "SD3")
    record = run("pipelines.py", tmp_path / "r.json", *tiny, "FLUX")
    for name in ("SD3", "FLUX"):
        found = record[name]["64"]
        assert found["ms_an_evaluation"] > 0
        assert found["evaluations"] == {"model": 6, "refiner": 5}
