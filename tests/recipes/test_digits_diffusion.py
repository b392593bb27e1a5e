"""The recipe of the diffusion model of digits, run dry at tiny size."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import flowturbo as ft

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "digits"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("diffusion")
    for name in ("diffusion", "train"):
        sys.modules.pop(name)


def test_dry_run_makes_a_model_and_goes_on(recipe, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (20, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(20) % 10)
    how = replace(
        recipe.HOW, steps=2, batch=4, save_every=1, preview_every=0, compile=False, warmup=1
    )
    assert how.times == "diffusion"
    small = replace(recipe.NETWORK, width=16, depth=1, heads=2, patch=16)
    monkeypatch.setattr(recipe, "NETWORK", small)
    monkeypatch.setattr(recipe, "HOW", how)
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path / "d.npz"), "--out", str(out)])
    recipe.main()
    weights = (out / "model.safetensors").read_bytes()
    recipe.main()  # nothing is left to do
    assert (out / "model.safetensors").read_bytes() == weights
    model = ft.load(out)
    assert model.card["config"]["prediction"] == "noise"
    x0 = ft.noise.draw([0, 1], model.shape)
    x1 = ft.sample("E4@3", model, x0, model.condition(["3", "7"]), guidance=2.0)
    assert x1.isfinite().all()
    log = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(1, abs=0.3)  # untrained, it predicts 0
