"""Two runs of a command started at once in one folder: one works, the other is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig

SCRIPT = """
import json, os, sys
import torch, accelerate, matplotlib.figure
from flowturbo.cli import main

torch.set_num_threads(1)

def start(command, errors):
    child = os.fork()
    if child == 0:
        sys.stderr = open(errors, "w")
        code = 1
        try:
            main(command)
        except SystemExit as e:
            code = e.code or 0
        finally:
            sys.stderr.close()
            os._exit(code)
    return child

once, twice, *errors = (json.loads(text) for text in sys.argv[1:])
assert os.waitpid(start(once, os.devnull), 0)[1] == 0
children = [start(twice, path) for path in errors]
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


def _run(once: list[str], twice: list[str], folder: Path) -> None:
    """Run ``once`` alone, then ``twice`` in two processes, of which one is to be refused."""
    errors = [folder / "first.txt", folder / "second.txt"]
    told = [once, twice, *map(str, errors)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(json.dumps, told)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    assert sorted(codes) == [0, 2]
    (line,) = errors[codes.index(2)].read_text().splitlines()
    assert "is in use by another run; wait until it has ended" in line


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_two_trainings_in_one_folder(tmp_path, attempt):
    data = tmp_path / "data.npz"
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez(data, images=images, labels=np.arange(40) % 4)
    train = lambda out: [
        *["train", "--data", str(data), "--out", str(out), "--name", "tiny", "--size", "8"],
        *["--width", "16", "--depth", "1", "--heads", "2", "--batch", "8", "--steps", "100"],
        *["--save-every", "10", "--preview-every", "0", "--no-compile", "--no-bf16"],
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    _run(train(one), train(two), tmp_path)
    for name in ("model.safetensors", "card.json", "checkpoints/step-00000100.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_two_trainings_of_a_refiner_in_one_folder(tmp_path, attempt):
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=4, channels=1, patch=2, width=16, depth=2, heads=2, classes=2))
    torch.nn.init.normal_(network.final_layer.linear.weight, std=0.2)
    model, one, two = (tmp_path / name for name in ("model", "one", "two"))
    save_folder(model, network, {"condition": {"kind": "class", "labels": ["0", "1"]}})
    train = lambda out: [
        *["train-refiner", "-m", str(model), "-o", str(out), "--guidance", "2"],
        *["--trajectories", "80", "--iterations", "100", "--save-every", "20", "--plan", "MMRM"],
        *["--device", "cpu"],
    ]
    _run(train(one), train(two), tmp_path)
    for name in ("refiner.safetensors", "refiner.json", "refiner-run/trajectories.npy"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
