"""The recipes of moving digits and point clouds, and what is measured of them, at tiny sizes."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flowturbo.training import train

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("recipes/moving-digits", "recipes/shapes", "benchmarks")
MODULES = ("clips", "shapes", "any_flow", "method", "ratios", "schedulers", "trial")


@pytest.fixture(scope="module")
def recipes() -> Iterator[Any]:
    before = list(sys.path)
    for name in (*MODULES, "train"):
        sys.modules.pop(name, None)
    sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES[:3]})
    sys.path[:] = before
    for name in (*MODULES, "train"):
        sys.modules.pop(name, None)


def trainer(folder: str) -> ModuleType:
    path = ROOT / "recipes" / folder / "train.py"
    spec = importlib.util.spec_from_file_location(f"train_{folder.replace('-', '_')}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_clip_is_laid_out_as_an_image_and_back(recipes):
    clip = torch.randn(3, *recipes.clips.SHAPE)
    image = recipes.clips.to_image(clip)
    assert torch.equal(recipes.clips.to_clip(image), clip)
    assert torch.equal(image[:, 1, 32:, :32], clip[:, 0, 5])  # the second of the third pair


def test_digits_move_evenly_within_the_box(recipes):
    glyphs = torch.ones(10, 1, 14, 14)
    clips, labels = recipes.clips.Clips(glyphs).clips(64, generator())
    assert clips.shape == (64, 1, 8, 32, 32)
    assert clips.min() == -1
    assert 0.99 < clips.max() <= 1
    assert set(labels.tolist()) <= set(range(55))
    covered = (clips > 0).flatten(3).float().sum(3)
    assert covered.max() <= 2 * 15**2  # two squares,
    assert covered.min() >= 13**2  # perhaps as one


def test_points_are_spread_evenly_over_their_surfaces(recipes):
    u = torch.rand(40, 256, 5, generator=generator())
    sphere, box, cylinder, cone, torus, letter = (make(u) for make in recipes.shapes.SURFACES)
    torch.testing.assert_close(sphere.norm(dim=-1), torch.ones(40, 256))
    assert (box.abs().amax(-1) == 1).all()
    share = lambda mask: float(mask.float().mean())
    assert share(cylinder[..., 2].abs() == 1) == pytest.approx(1 / 3, abs=0.02)
    on_base = 1 / (1 + 5**0.5)
    assert share(cone[..., 2] == -1) == pytest.approx(on_base, abs=0.02)
    radius = cone[..., :2].norm(dim=-1)
    side = cone[..., 2] > -1
    torch.testing.assert_close(cone[..., 2][side], (1 - 2 * radius)[side])
    ring = torus[..., :2].norm(dim=-1) - 0.8
    torch.testing.assert_close(ring**2 + torus[..., 2] ** 2, torch.full((40, 256), 0.35**2))
    assert letter.abs().max() <= 1


def test_order_of_the_points_does_not_matter(recipes):
    torch.manual_seed(0)
    field, x, cond = recipes.shapes.Cloud(width=16, depth=1), torch.randn(2, 256, 3), torch.ones(2)
    order = torch.randperm(256, generator=generator())
    v = field(x, 0.3, cond.long())
    torch.testing.assert_close(field(x[:, order], 0.3, cond.long()), v[:, order])


def test_both_are_trained_tuned_and_drawn(recipes, tmp_path, monkeypatch):
    train_clips = trainer("moving-digits")
    small = replace(train_clips.ARCHITECTURE, width=16, depth=1, heads=2)
    data = recipes.clips.Clips(torch.rand(10, 2, 14, 14, generator=generator()))
    few = replace(train_clips.TRAINING, steps=2, batch=2, compile=False, optimizer="adamw")
    train(small, data, tmp_path / "clips", few, card=train_clips.CARD)
    torch.manual_seed(0)
    cloud = recipes.shapes.Cloud
    monkeypatch.setattr(recipes.shapes, "Cloud", lambda: cloud(width=16, depth=1))
    (tmp_path / "shapes").mkdir()
    save_file(recipes.shapes.Cloud().state_dict(), tmp_path / "shapes" / "model.safetensors")
    monkeypatch.setattr(recipes.any_flow, "REFERENCE", "AB4RK:20")
    monkeypatch.setattr(recipes.any_flow, "SHOWN", 2)
    monkeypatch.setattr(sys.modules["flowturbo.tuning.tune"], "SUBSTEPS", (1,))  # it is untrained
    out = tmp_path / "record.json"
    arguments = ["any_flow.py", "--clips", tmp_path / "clips", "--shapes", tmp_path / "shapes"]
    arguments += ["--passes", 8, "--noise-samples", 8, "--trajectories", 8, "--no-search"]
    arguments += ["--out", out, "--folder", tmp_path / "work", "--images", tmp_path]
    monkeypatch.setattr(sys, "argv", [str(a) for a in arguments])
    recipes.any_flow.main()
    record = json.loads(out.read_text())
    for name in ("clips", "shapes"):
        plans = record[name]["plans"]
        assert list(plans) == ["Euler", "best scheduler", "tuned"]
        assert all(plan["passes"] <= 8 for plan in plans.values())
    with Image.open(tmp_path / "moving-digits.gif") as picture:
        assert picture.n_frames == 8
    assert (tmp_path / "shapes.png").stat().st_size
