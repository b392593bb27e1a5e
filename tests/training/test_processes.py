"""Several processes: they train one network, one of them writes, and killed runs are resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import refiner_run, same, toy_run

import flowturbo as ft
from flowturbo.training.processes import Processes

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from runs import refiner_run, toy_run

torch.set_num_threads(1)
what, out, killed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

def report(progress):
    if progress.done == killed and progress.stage != "trajectories":
        os.kill(os.getpid(), signal.SIGKILL)

if what == "train":
    toy_run(out, report=report, accumulate=2)
else:
    refiner_run(out, report=report)
"""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


def _launch(launcher: list[str], folder: Path, what: str, out: Path, killed: int = -1):
    script = folder / "script.py"
    script.write_text(SCRIPT)
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    port = ["--main_process_port", "0"] if launcher is ACCELERATE else []
    return subprocess.run(
        [sys.executable, "-m", *launcher, *port, str(script), what, str(out), str(killed)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_killed_and_resumed_equal_uninterrupted(tmp_path, launcher):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = _launch(launcher, tmp_path, "train", whole)
    assert done.returncode == 0, done.stderr
    assert _launch(launcher, tmp_path, "train", killed, 4).returncode != 0
    assert [p.name for p in (killed / "checkpoints").iterdir()] == ["step-00000002.safetensors"]
    done = _launch(launcher, tmp_path, "train", killed)
    assert done.returncode == 0, done.stderr
    last = "checkpoints/step-00000006.safetensors"
    same(whole, killed, "model.safetensors", "card.json", last)
    assert [p for p in killed.rglob(".*") if p.name != ".lock"] == []
    toy_run(tmp_path / "one", accumulate=2)
    one, two = (ft.load(tmp_path / name).fingerprint for name in ("one", "whole"))
    assert one != two  # each drew images of its own
    with pytest.raises(ValueError, match=r"processes=2 there, 1 now.*another folder"):
        toy_run(whole, accumulate=2)


@pytest.mark.slow
def test_two_processes_train_a_refiner(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out, step in ((whole, -1), (killed, 4), (killed, 1), (killed, -1)):
        done = _launch(TORCHRUN, tmp_path, "refiner", out, step)
        assert (done.returncode == 0) == (step == -1), done.stderr
    same(whole, killed, "refiner.safetensors", "refiner.json", "refiner-run/trajectories.npy")
    refiner_run(tmp_path / "one")
    same(whole, tmp_path / "one", "refiner-run/trajectories.npy")


@pytest.mark.slow
def test_two_processes_are_told_the_error_of_the_first(tmp_path):
    toy_run(tmp_path / "one", accumulate=2)
    done = _launch(TORCHRUN, tmp_path, "train", tmp_path / "one")
    assert done.returncode != 0
    assert "ValueError" in done.stderr
    assert "processes=1 there, 2 now: continue it with the same options" in done.stderr


def test_one_process_works_alone_and_its_errors_are_its_own():
    processes = Processes()
    assert (processes.index, processes.count) == (0, 1)
    assert processes.first(lambda: 3) == processes.in_turn(lambda: 3) == 3

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        processes.first(fail)
    network = torch.nn.Linear(1, 1)
    assert processes.parallel(network) is network


def test_processes_that_do_not_work_together_are_refused(monkeypatch):
    Processes()  # accelerate has looked at the environment
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ValueError, match="2 processes were started, and accelerate makes 1"):
        Processes()
