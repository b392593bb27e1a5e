"""Ctrl-C at any moment of any command: one line, exit status 130, and the same command goes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interruption import KILLS, interrupted

from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig


def commands(folder, out) -> dict[str, list[str]]:
    """Each on its own model or data in ``folder``, writing into ``out``."""
    shared = ["-m", str(folder / "model"), "--guidance", "2", "--device", "cpu"]
    small = ["--size", "8", "--width", "16", "--depth", "1", "--heads", "2", "--batch", "8"]
    return {
        "train": ["--data", str(folder / "data.npz"), "-o", str(out), *small, "--steps", "100",
                  "--save-every", "10", "--no-compile", "--no-bf16"],
        "train-refiner": [*shared, "--trajectories", "80", "--iterations", "100", "-o", str(out)],
        "tune": [*shared, "--trajectories", "16", "--nfe", "3", "-o", str(out / "plan.json"),
                 "--folder", str(out / "kept")],
        "evaluate": [*shared, "-n", "200", "--no-features", "--repeats", "0", "--plan", "AB2:4",
                     "--batch", "20", "--folder", str(out / "kept")],
        "analyze": [*shared, "--trajectories", "64", "--steps", "16", "-o", str(out)],
        "benchmark": [*shared, "--no-peers", "--scope", "none", "-o", str(out / "record.json")],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["train", "train-refiner", "tune", "evaluate", "analyze", "benchmark"]
)
def test_stopped_in_one_line(command, tmp_path):
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=4, channels=1, patch=2, width=16, depth=2, heads=2, classes=2))
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    save_folder(tmp_path / "model", network, {"condition": {"kind": "class", "labels": ["0", "1"]}})
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 4)
    call = lambda out: [command, *commands(tmp_path, tmp_path / out)[command]]
    ends = interrupted(call("once"), {"SIGINT": (call("stopped"), KILLS)})["SIGINT"]
    assert ends.killed
    for code, said in ends.stopped:
        if code == 130:
            last = said.splitlines()[-1]
            assert last.startswith("flowturbo: stopped")
            assert ("the same command goes on" in last) == (command not in ("analyze", "benchmark"))
        else:
            assert code == 0  # it had ended before
