"""A disk without room ends a command in one line; the same command later ends as if it had not.

A limit on the size of files stands in for the disk: writes fail in the same calls.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from runs import same

from flowturbo.cli import main
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig


@contextmanager
def _room(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _status(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as e:
        main(arguments)
    return int(e.value.code or 0)


@pytest.fixture
def commands(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(6) % 2)
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=4, channels=1, patch=2, width=16, depth=2, heads=2, classes=2))
    torch.nn.init.normal_(network.final_layer.linear.weight, std=0.2)
    model = tmp_path / "model"
    save_folder(model, network, {"condition": {"kind": "class", "labels": ["0", "1"]}})
    train = ["train", "--data", str(tmp_path / "data.npz"), "--name", "toy", "--size", "4"]
    train += ["--patch", "2", "--width", "8", "--depth", "1", "--heads", "1", "--batch", "2"]
    train += ["--steps", "4", "--save-every", "2", "--preview-every", "2"]
    refine = ["train-refiner", "-m", str(model), "--guidance", "2", "--trajectories", "70"]
    refine += ["--steps", "4", "--iterations", "2", "--save-every", "1", "--batch", "4"]
    return {
        "train": [*train, "--no-compile", "--no-bf16"],
        "train-refiner": [*refine, "--plan", "AB2:FFR", "--device", "cpu"],
    }


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("train", ("model.safetensors", "card.json", "checkpoints/step-00000004.safetensors")),
        ("train-refiner", ("refiner.safetensors", "refiner.json", "refiner-run/trajectories.npy")),
    ],
)
def test_without_room_training_stops_with_one_line_and_goes_on_later(
    command, names, commands, tmp_path, capsys
):
    arguments = commands[command]
    whole, full = tmp_path / "whole", tmp_path / "full"
    assert _status([*arguments, "-o", str(whole)]) == 0
    largest = max(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    for share in (0, 0.01, 0.1, 0.5, 0.99):
        capsys.readouterr()
        with _room(int(share * largest)):
            assert _status([*arguments, "-o", str(full)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "error: cannot write" in line
        assert "File too large" in line
        assert [p for p in full.rglob(".*") if p.name != ".lock"] == []
    assert _status([*arguments, "-o", str(full)]) == 0
    same(whole, full, *names)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("convert official.pt -a S/8 --size 8 -o out", "out/model.safetensors"),
        pytest.param(
            "export -m model --plan E2 --guidance 2 --device cpu --batch 2 -o out.pt2",
            "out.pt2",
            marks=pytest.mark.slow,  # compiles four times
        ),
    ],
    ids=["convert", "export"],
)
def test_without_room_a_file_is_whole_or_not_there(
    arguments, name, commands, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    torch.save(SiT(SiTConfig.named("S/8", size=8)).state_dict(), "official.pt")
    for most in (0, 1000, 40_000):
        with _room(most):
            assert _status(arguments.split()) == 1
        (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
        assert "cannot write" in line
        assert not (tmp_path / name).exists()
        assert not [*tmp_path.rglob(".*writing*")]
    assert _status(arguments.split()) == 0
    assert (tmp_path / name).stat().st_size > 40_000


def test_without_room_a_run_that_has_ended_stays_as_it_is(commands, tmp_path, capsys):
    out = tmp_path / "run"
    for arguments in commands.values():
        assert _status([*arguments, "-o", str(out)]) == 0
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        with _room(0):
            assert _status([*arguments, "-o", str(out)]) == 1
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
