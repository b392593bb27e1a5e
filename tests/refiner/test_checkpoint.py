"""Files of refiners: round trips, and damaged ones refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from refiners import random_history, random_weights
from torch import nn

import flowturbo as ft
from flowturbo.models.checkpoint import save_folder
from flowturbo.refiner import PaperRefiner, VelocityRefiner, save_refiner
from flowturbo.refiner.checkpoint import REFINER_CARD, REFINER_WEIGHTS


def _refiners(model):
    return {
        "paper": PaperRefiner.from_model(model),
        "velocity": VelocityRefiner.from_model(model, (1, 4), width=16, heads=2),
        "conv": VelocityRefiner.small((2, 8, 8), (1, 4), classes=6, width=8),
    }


@pytest.mark.parametrize("kind", ["paper", "velocity", "conv"])
def test_round_trip_in_half_precision(tiny, tmp_path, kind):
    save_folder(tmp_path, tiny, {})
    model = ft.load(tmp_path)
    refiner = random_weights(_refiners(model)[kind]).half().float()
    refiner.card = {"training": {"steps": 3}, "measured": {"held-out": 0.5}}
    save_refiner(tmp_path, refiner, model)
    loaded = ft.load_refiner(tmp_path, model)
    x, history, cond = torch.randn(3, 2, 8, 8), random_history((0.1, 0.3)), torch.arange(3)
    assert torch.equal(loaded(x, 0.4, cond, history), refiner(x, 0.4, cond, history))
    assert loaded.kind == kind == loaded.card["architecture"]
    assert loaded.card["model"] == {"name": model.name, "fingerprint": model.fingerprint}
    assert loaded.card["measured"] == {"held-out": 0.5}
    assert not any(p.requires_grad for p in loaded.parameters())
    half = ft.load_refiner(tmp_path, ft.load(tmp_path, dtype=torch.bfloat16), dtype=torch.bfloat16)
    assert half.fingerprint == loaded.fingerprint
    torch.testing.assert_close(
        half(x, 0.4, cond, history), loaded(x, 0.4, cond, history), rtol=0.1, atol=0.1
    )
    tiny.blocks[0].mlp.fc1.bias.add_(0.5)
    save_folder(tmp_path, tiny, {})
    with pytest.raises(ValueError, match="train one for it"):
        ft.load_refiner(tmp_path, ft.load(tmp_path))


def _truncate(folder):
    data = (folder / REFINER_WEIGHTS).read_bytes()
    (folder / REFINER_WEIGHTS).write_bytes(data[: len(data) // 2])


def _edit(**changes):
    def edit(folder):
        card = json.loads((folder / REFINER_CARD).read_text())
        (folder / REFINER_CARD).write_text(json.dumps({**card, **changes}))

    return edit


DAMAGE = {
    "truncated": (_truncate, "corrupt or truncated"),
    "pickle": (lambda f: torch.save({}, f / REFINER_WEIGHTS), "pickle"),
    "no weights": (lambda f: (f / REFINER_WEIGHTS).unlink(), "no refiner.safetensors"),
    "no card": (lambda f: (f / REFINER_CARD).unlink(), "no refiner.json"),
    "not JSON": (lambda f: (f / REFINER_CARD).write_text("{"), "refiner.json: not JSON"),
    "of the future": (_edit(format=9), "format: 9: this library reads version 1"),
    "another kind": (_edit(architecture="paper"), "refiner.json: config: unknown SiT option"),
    "unknown kind": (_edit(architecture="sit"), "'paper', 'velocity' or 'conv'"),
    "wrong options": (
        _edit(config={"shape": [2, 8, 8], "wide": 3}),
        "config: wide: 3: is not known",
    ),
    "no options": (_edit(config=[]), "config: a list of 0: must be an object"),
    "deep": (_edit(config={"shape": [2, 8, 8], "depth": 900}), "tensors cannot be of depth=900"),
    "deeper": (
        _edit(config={"shape": [2, 8, 8], "depth": 20_000}),
        "depth: 20000: .* equal to 1000",
    ),
    "a square": (_edit(config={"shape": [8, 8]}), r"config: shape: .*must be \[channels, height"),
    "vast": (_edit(config={"shape": [2, 8, 8], "width": 10**10}), "config: width: 10000000000"),
    "half": (_edit(config={"shape": [2, 8, 8], "width": 8.5}), "config: width: 8.5"),
    "model": (_edit(model=3.5), "model: 3.5: must be an object"),
    "model, name": (_edit(model={"name": 3}), "model.name: 3"),
    "turned": (_edit(guidance=[4.0, 1.0]), "must be \\[lowest, highest\\]"),
    "one scale": (_edit(guidance=[4.0]), "must be \\[lowest, highest\\]"),
    "text": (_edit(guidance="ab"), "guidance: 'ab': must be a list"),
    "huge": (_edit(guidance=[1.0, 1e300]), "guidance.1: 1e\\+300"),
    "other size": (_edit(config={"shape": [3, 8, 8], "width": 8}), "missing|the config wants"),
    "no range": (_edit(guidance=None), "guidance: None: must be a list"),
    "no folder": (shutil.rmtree, "no such model or folder"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_refiners_are_refused_in_one_line(tmp_path, kind):
    save_refiner(tmp_path / "r", VelocityRefiner.small((2, 8, 8), width=8))
    damage, message = DAMAGE[kind]
    damage(tmp_path / "r")
    with pytest.raises(ValueError, match=message) as e:
        ft.load_refiner(tmp_path / "r")
    assert "\n" not in str(e.value)


def test_a_refiner_that_is_not_finite_is_not_saved(tmp_path):
    refiner = VelocityRefiner.small((2, 8, 8))
    nn.init.constant_(refiner.network.last.bias, float("nan"))
    with pytest.raises(ValueError, match="last"):
        save_refiner(tmp_path / "r", refiner)
    assert not (tmp_path / "r").exists()
