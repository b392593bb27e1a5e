"""`flowturbo train-refiner`: both kinds, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig

FEW = ["--iterations", "2", "--batch", "4", "--device", "cpu"]


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    config = SiTConfig(size=4, channels=1, patch=2, width=16, depth=1, heads=2, classes=2)
    condition = {"kind": "class", "labels": ["0", "1"]}
    network = SiT(config)
    torch.nn.init.normal_(network.final_layer.linear.weight)
    save_folder(tmp_path / "tiny", network, {"condition": condition})
    return tmp_path / "tiny"


def _run(*arguments) -> int:
    with pytest.raises(SystemExit) as e:
        main(["train-refiner", *map(str, arguments)])
    return e.value.code


def test_from_the_model_alone_into_its_folder(model, capsys):
    few = [*FEW, "--trajectories", "3", "--steps", "4", "--guidance", "1-3", "--plan", "AB2:FFR"]
    assert _run("-m", model, "-o", model, *few) == 0
    out = capsys.readouterr().out
    assert "linear extrapolation" in out
    assert "rollout: plan AB2:FFR@1.6" in out
    refiner = ft.load_refiner(model, ft.load(model))
    assert refiner.guidance_range == (1.0, 3.0)


def test_the_papers_on_data(model, tmp_path):
    images = np.zeros((6, 4, 4), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(6) % 2)
    data = ["--paper", "--data", tmp_path / "data.npz"]
    assert _run("-m", model, "-o", tmp_path / "r", *FEW, *data) == 0
    refiner = ft.load_refiner(tmp_path / "r", ft.load(model))
    assert refiner.kind == "paper"
    given = {"steps": 2, "batch": 4}
    assert refiner.card["training"].items() >= {"lr": 5e-5, "ema": 0.9999, **given}.items()


def test_bad_input_is_one_line(model, tmp_path, capsys):
    for arguments, message in (
        (["--paper"], "--data"),
        (["--guidance", "high"], "--guidance 'high'"),
        (["--plan", "AB2:RF"], "F, C and R from an F on"),
        (["--kind", "unet"], "kind='unet'"),
        (["--minutes", "0"], "minutes=0"),
        (["--paper", "--data", "x", "--plan", "AB2:FFR"], "--plan: not an option of the paper's"),
        (["--paper", "--data", "x", "--minutes", "1"], "--minutes: not an option of the paper's"),
        (["--lr", "0"], "lr=0"),
        (["--batch", "0"], "batch=0"),
    ):
        assert _run("-m", model, "-o", tmp_path / "r", *FEW, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "r").exists()
