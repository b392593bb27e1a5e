"""The recipe of a small SD3 pipeline, untrained, and the comparison with caches on it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("recipes/emoji", "recipes/emoji-sd3", "benchmarks")
MODULES = ("attention", "autoencoder", "caches", "augment", "data", "trial")
PROMPTS = ["red apple", "tiger, 3d style", "rocket"]
SMALL = dict(num_layers=3, num_attention_heads=2, caption_projection_dim=64)


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    before = list(sys.path)
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]
    found = {name: importlib.import_module(name) for name in MODULES[:3]}
    path = ROOT / "recipes" / "emoji-sd3" / "train.py"
    spec = importlib.util.spec_from_file_location("train_emoji_sd3", path)
    found["train"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found["train"])
    yield SimpleNamespace(**found)
    sys.path[:] = before
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pipeline(recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline as the recipe saves it, smaller, with random weights."""
    out = tmp_path_factory.mktemp("emoji-sd3")
    objective = recipe.train.Objective.__new__(recipe.train.Objective)
    tokenizer = recipe.train.tokenizer_of(PROMPTS * 5)
    objective.data, objective.out = SimpleNamespace(tokenizer=tokenizer), out
    objective.vae = recipe.autoencoder.make().eval()
    objective.vae.register_to_config(shift_factor=0.1, scaling_factor=0.9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.train, "TRANSFORMER", recipe.train.TRANSFORMER | SMALL)
        torch.manual_seed(0)
        network = recipe.train.Velocity(len(tokenizer), tokenizer.eos_token_id)
        for weight in network.transformer.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.05)
        objective.export(network, {})
    return out / "pipeline"


def test_it_loads_with_diffusers_alone_and_draws(pipeline):
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(pipeline)
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe("red apple, 3d style", num_inference_steps=2).images
    assert image.size == (128, 128)


def test_one_token_of_zeros_counts_for_all_that_the_pipeline_appends(recipe):
    torch.manual_seed(0)
    make = lambda: diffusers.SD3Transformer2DModel(**recipe.train.TRANSFORMER | SMALL).eval()
    theirs, ours, attention = make(), make(), recipe.attention.JointAttention()
    ours.load_state_dict(theirs.state_dict())
    ours.set_attn_processor(attention)
    attention.repeats = 256
    words, pooled = torch.randn(2, 20, 192), torch.randn(2, 192)

    def velocity(network: Any, zeros: int) -> torch.Tensor:
        context = torch.cat([words, torch.zeros(2, zeros, 192)], 1)
        x = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return network(x, context, pooled, torch.tensor([500.0, 500.0]), return_dict=False)[0]

    assert velocity(theirs, 256).std() > 1e-3
    torch.testing.assert_close(velocity(ours, 1), velocity(theirs, 256), rtol=1e-4, atol=1e-5)


def test_caches_are_measured_beside_schedulers_and_plans(recipe, pipeline, tmp_path, monkeypatch):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "caches.json"
    prompts.write_text("\n".join(PROMPTS), "utf-8")
    monkeypatch.setattr(recipe.caches, "REFERENCE", "AB4RK:20@1.6")
    monkeypatch.setattr(recipe.caches, "SHIFTS", (1.6,))
    arguments = ["--pipeline", pipeline, "--prompts", prompts, "--steps", 8, "--long", "--out", out]
    arguments += ["--noise-samples", 2, "--batch", 2, "--no-cache-dit", "--rounds", 1]
    monkeypatch.setattr(sys, "argv", ["caches.py", *map(str, arguments)])
    recipe.caches.main()
    found = json.loads(out.read_text())["methods"]
    plain = min(
        e["rmse"] for name, e in found.items() if name.startswith(("Euler", "UniPC", "DPM"))
    )
    for cache in ("FirstBlockCache 0.4, 8", "TaylorSeer 3, 8", "MagCache 0.24, 8"):
        assert found[cache]["rmse"] != pytest.approx(plain, rel=1e-3)  # it leaves something out
    assert found["gated guidance 0.5, 8"]["steps"] == 8
    assert all(e["milliseconds"]["median"] > 0 for e in found.values())
    monkeypatch.setattr(recipe.caches, "summarized", None)
    recipe.caches.main()  # what the record has is kept; only times are taken again
