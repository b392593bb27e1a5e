"""Every command stopped at moments spread over its time, by a kill or by Ctrl-C, or run twice at
once: what it says is one line, and the same command then leaves what an undisturbed one leaves.

``FLOWTURBO_KILLS`` is how often each is stopped in each way.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from interruption import KILLS, interrupted

import flowturbo as ft
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig

MODEL = ["-m", "model", "--guidance", "2", "--device", "cpu"]
SMALL = ["--size", "8", "--width", "16", "--depth", "1", "--heads", "2", "--batch", "8"]
COMMANDS = {  # of the folder that each writes into
    "train": lambda out: [
        *["--data", "data.npz", "-o", out, *SMALL, "--name", "toy", "--steps", "120"],
        *["--save-every", "10", "--preview-every", "40", "--no-compile", "--no-bf16"],
    ],
    "train-refiner": lambda out: [
        *[*MODEL, "--trajectories", "80", "--iterations", "120", "--save-every", "20"],
        *["--plan", "AB2:FFRF", "-o", out],
    ],
    "tune": lambda out: [
        *[*MODEL, "--trajectories", "16", "--nfe", "3"],
        *["-o", f"{out}/plan.json", "--cache-dir", f"{out}/kept"],
    ],
    "evaluate": lambda out: [
        *[*MODEL, "-n", "200", "--no-features", "--repeats", "0", "--plan", "AB2:4"],
        *["--batch", "20", "-o", f"{out}/record.json", "--cache-dir", f"{out}/kept"],
    ],
    "analyze": lambda out: [
        *[*MODEL, "--trajectories", "100", "--batch", "20", "--steps", "32", "--nfe", "2,3,4"],
        *["--plan", "AB2:4", "-o", out],
    ],
    "benchmark": lambda out: [
        *[*MODEL, "--plan", "AB2:4", "--no-baselines", "--scopes", "none", "--reference", "E4"],
        *["--repeats", "5", "-o", f"{out}/record.json"],
    ],
    "export": lambda out: [*MODEL, "--plan", "E2", "--batch", "2", "-o", f"{out}/sampler.pt2"],
    "convert": lambda out: ["official.pt", "-a", "S/8", "--size", "8", "-o", f"{out}/sit"],
}
RESUMED = {"train", "train-refiner", "tune", "evaluate"}
VARIES = {"log.jsonl", "sampler.pt2"}  # times, and what a compiler makes


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder but for a model, data and a checkpoint of others; the current one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=4, channels=1, patch=2, width=16, depth=2, heads=2, classes=2))
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    save_folder("model", network, {"condition": {"kind": "class", "labels": ["0", "1"]}})
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez("data.npz", images=images, labels=np.arange(40) % 4)
    torch.save(SiT(SiTConfig.named("S/8", size=8)).state_dict(), "official.pt")


def left(out: str) -> dict[str, bytes]:
    """What a run has left in a folder, a benchmark's figures but for the times in them."""
    files = [p for p in Path(out).rglob("*") if p.is_file()]
    found = {str(p.relative_to(out)): p.read_bytes() for p in files}
    for name in found:
        if Path(name).name in VARIES:
            found[name] = b""
    record = json.loads(found.get("record.json", b"{}"))
    if "methods" in record:
        methods = [[m["name"], m["error"]] for m in record["methods"]]
        found["record.json"] = json.dumps(methods).encode()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_stopped_and_repeated_it_is_undisturbed(command, home):
    call = lambda out: [command, *COMMANDS[command](out)]
    ways = ("SIGKILL", "SIGINT", "twice")
    stops = max(2, KILLS // 4) if command == "export" else KILLS  # it compiles for long
    found = interrupted(call("once"), {how: (call(how), stops) for how in ways})
    whole = left("once")
    for how, ends in found.items():
        files = left(how)
        assert files.keys() == whole.keys(), how
        assert [name for name in files if files[name] != whole[name]] == [], how
        for code, said in ends.stopped:
            if code not in (0, -9):
                assert said, (how, code)
                last = said.splitlines()[-1]
                assert code == (2 if how == "twice" else 130), said
                assert ("another run" if how == "twice" else "flowturbo: stopped") in last
                goes_on = "the same command resumes" in last
                early = last == "flowturbo: stopped"  # before the command began
                assert how == "twice" or early or goes_on == (command in RESUMED)
    assert found["SIGKILL"].killed
    assert found["SIGINT"].killed
    if command == "export":
        x0 = ft.noise.draw([0, 1], (1, 4, 4))
        ends = [ft.load_compiled(f"{out}/sampler.pt2")(x0, torch.tensor([0, 1])) for out in found]
        assert torch.equal(ends[0], ends[1])
    if command == "convert":
        assert ft.load("SIGKILL/sit").fingerprint == ft.load("once/sit").fingerprint
