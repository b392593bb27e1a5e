"""Commands killed at any moment and repeated end the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig

SCRIPT = """
import json, os, random, signal, sys, time
import torch, accelerate, matplotlib.figure
from flowturbo.cli import main

torch.set_num_threads(1)
once, again, kills = (json.loads(text) for text in sys.argv[1:])

def start(command):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            main(command)
        except SystemExit as e:
            code = e.code or 0
        finally:
            os._exit(code)
    return child

begin = time.perf_counter()
assert os.waitpid(start(once), 0)[1] == 0
whole, killed = time.perf_counter() - begin, 0
shares = [random.uniform(0, 0.6) for _ in range(kills)] or (0.05, 0.15, 0.3, 0.5, 0.7, 0.9)
for share in shares:
    child = start(again)
    time.sleep(share * whole)
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
assert os.waitpid(start(again), 0)[1] == 0
print("killed", killed)
"""


KILLS = os.environ.get("FLOWTURBO_KILLS", "0")  # at random moments, instead of the six


def run_twice(once: list[str], again: list[str]) -> int:
    """Run ``once`` undisturbed, and ``again`` killed and repeated; how often it was killed."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(once), json.dumps(again), KILLS],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1].removeprefix("killed "))


@pytest.mark.slow
def test_training_killed_and_repeated_is_uninterrupted(tmp_path):
    data = tmp_path / "data.npz"
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez(data, images=images, labels=np.arange(40) % 4)
    train = lambda out: [
        *["train", "--data", str(data), "--out", str(out), "--name", "tiny", "--size", "8"],
        *["--width", "16", "--depth", "1", "--heads", "2", "--batch", "8", "--steps", "240"],
        *["--save-every", "10", "--preview-every", "40", "--no-compile", "--no-bf16"],
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_twice(train(one), train(two)) > 1
    last = [f"checkpoints/step-{step:08d}.safetensors" for step in (230, 240)]
    previews = [p.relative_to(one) for p in (one / "previews").iterdir()]
    assert len(previews) == 6
    for name in ("model.safetensors", "card.json", "config.json", *last, *previews):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    logs = [(out / "log.jsonl").read_text().splitlines() for out in (one, two)]
    lines = [[{**json.loads(x), "seconds": 0} for x in log] for log in logs]
    assert lines[0] == lines[1]
    left = [p for p in two.rglob("*") if p.name.startswith(".") and p.name != ".lock"]
    assert left == []


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    config = SiTConfig(size=4, channels=1, patch=2, width=16, depth=2, heads=2, classes=2)
    network = SiT(config)
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    condition = {"kind": "class", "labels": ["0", "1"]}
    save_folder(tmp_path / "model", network, {"condition": condition})
    return tmp_path / "model"


def leftovers(folder):
    return [p for p in folder.rglob("*") if ".writing-" in p.name]


@pytest.mark.slow
def test_killed_and_repeated_is_uninterrupted(model, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shared = ["-m", str(model), "--guidance", "2", "--device", "cpu"]

    few = ["--trajectories", "80", "--iterations", "200", "--save-every", "20", "--plan", "MMRM"]
    train = lambda out: ["train-refiner", *shared, *few, "-o", str(out)]
    assert run_twice(train(one), train(two)) > 1
    for name in ("refiner.safetensors", "refiner.json", "refiner-run/refiner.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name

    few = ["--trajectories", "16", "--nfe", "4", "--refiner", str(one)]
    tune = lambda out: [
        "tune", *shared, *few, "-o", str(out / "plan.json"), "--folder", str(out / "search")
    ]  # fmt: skip
    assert run_twice(tune(one), tune(two)) > 1
    assert (one / "plan.json").read_bytes() == (two / "plan.json").read_bytes()

    few = ["-n", "400", "--no-features", "--repeats", "0", "--plan", "AB2:4", "--batch", "20"]
    evaluate = lambda out: [
        "evaluate", *shared, *few, "-o", str(out / "record.json"), "--folder", str(out / "drawn")
    ]  # fmt: skip
    assert run_twice(evaluate(one), evaluate(two)) > 1
    files = [p.relative_to(one) for p in (one / "drawn").glob("*.safetensors")]
    assert len(files) > 40
    for name in ("record.json", *files):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_measurements_killed_and_repeated_are_whole(model, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shared = ["-m", str(model), "--guidance", "2", "--device", "cpu", "--plan", "AB2:4"]

    few = ["--trajectories", "200", "--batch", "20", "--steps", "32", "--nfe", "2,3,4"]
    analyze = lambda out: ["analyze", *shared, *few, "-o", str(out)]
    assert run_twice(analyze(one), analyze(two)) > 1
    names = sorted(p.name for p in one.iterdir())
    assert names == [".lock", "curvature.png", "gaps.png", "record.json", "rows.png", "solvers.png"]
    assert sorted(p.name for p in two.iterdir()) == names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name

    few = ["--no-peers", "--scope", "none", "--reference", "E4", "--repeats", "20"]
    benchmark = lambda out: [
        "benchmark", *shared, *few, "-o", str(out / "ms.json"), "--plot", str(out / "ms.png")
    ]  # fmt: skip
    assert run_twice(benchmark(one), benchmark(two)) > 1
    found = [json.loads((out / "ms.json").read_text()) for out in (one, two)]
    errors = [[(m["name"], m["error"]) for m in record["methods"]] for record in found]
    assert errors[0] == errors[1]
    assert (two / "ms.png").stat().st_size > 1000
    assert leftovers(tmp_path) == []
