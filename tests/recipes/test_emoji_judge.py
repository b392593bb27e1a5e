"""Judging `emoji`: its parts on cases with known answers, then all of it on pictures made here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.models.tokenizer import Tokenizer, build_vocabulary

RECIPE = Path(__file__).parents[2] / "recipes" / "emoji"
MODULES = (
    "blind", "choose", "classifiers", "drawn", "judge", "measure", "names", "others", "real",
    "sheet", "styles",
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe() -> Any:
    pytest.importorskip("efficientnet_lite_pytorch")
    sys.path.insert(0, str(RECIPE))
    try:
        return SimpleNamespace(**{m: importlib.import_module(m) for m in MODULES})
    finally:
        sys.path.remove(str(RECIPE))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shares_carry_the_interval_of_wilson(recipe):
    found = recipe.measure.share(torch.tensor([True] * 8 + [False] * 2))
    assert found == {"share": 0.8, "of": 10, "interval": [0.4902, 0.9433]}


def test_distorted_pictures_keep_paper_white(recipe):
    x = torch.ones(50, 3, 32, 32)
    x[:, :, 8:24, 8:24] = torch.rand(50, 3, 1, 1, generator=generator())
    out = recipe.classifiers.distort(x, generator(1))
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert out[:, :, 0].mean() > 0.95
    assert not torch.equal(out, recipe.classifiers.distort(x, generator(2)))


@pytest.fixture
def few_epochs(recipe, monkeypatch) -> None:
    monkeypatch.setattr(recipe.styles, "EPOCHS", 40)
    monkeypatch.setattr(recipe.styles, "MOVES", [(1, 1), (0, 1)])
    monkeypatch.setattr(recipe.judge, "OTHER_CONCEPTS", 40)
    monkeypatch.setattr(recipe.styles.torch, "compile", lambda network: network)


@pytest.mark.slow
def test_styles_are_told_by_shading_and_kept(recipe, few_epochs, monkeypatch, tmp_path):
    shape = (160, 3, 4, 4)
    flat = torch.rand(shape, generator=generator()).repeat_interleave(4, 2).repeat_interleave(4, 3)
    shade = torch.linspace(0.6, 1, 16)[:, None]
    pictures = torch.stack([flat, flat * shade], 1).flatten(0, 1)
    style = torch.arange(320) % 2
    styles = recipe.styles.Styles(pictures[:240], style[:240], tmp_path)
    assert (styles(pictures[240:]) == style[240:]).float().mean() > 0.9
    monkeypatch.setattr(recipe.styles, "_train", None)
    again = recipe.styles.Styles(pictures[:240], style[:240], tmp_path)
    assert torch.equal(again(pictures), styles(pictures))


def test_nearest_and_memory_know_copies(recipe):
    images = torch.randint(0, 256, (40, 8, 8, 3), generator=generator(), dtype=torch.uint8).numpy()
    features, pairs = torch.from_numpy(images).float().flatten(1), [(i, i % 4) for i in range(40)]
    group = lambda a, b: (images[a:b], features[a:b], pairs[a:b])
    found = recipe.measure.memory(
        {"copied": group(0, 10), "unseen": group(20, 40)}, group(0, 20), "unseen"
    )
    assert found["copied"]["distance in pixels, median"] == 0
    assert found["copied"]["copies"]["share"] == 1
    assert found["copied"]["nearest in pixels is of the very pair"]["share"] == 1
    assert found["unseen"]["nearest in features is of the name"]["share"] == 0
    assert found["unseen"]["copies"]["share"] <= 0.05


def test_frechet_of_the_same_pictures_is_the_floor(recipe):
    train = torch.randn(90, 5, generator=generator())
    first = train[torch.randperm(90, generator=generator())[:30]]
    found = recipe.measure.frechet(first, train)
    assert found["against the rest"] == found["floor: the same real pictures against the rest"]
    assert (found["pictures"], found["pictures of the rest"]) == (30, 60)
    moved = recipe.measure.frechet(first + 10, train)
    assert moved["against the training set"] > 400


def test_the_rule_takes_what_is_least_alike(recipe):
    names = list(recipe.names.HELD_NAMES) + [f"thing {i}" for i in range(200)]
    concepts = [{"name": n, "family": n, "subgroup": "any"} for n in names]
    concepts[13]["family"] = concepts[12]["family"]
    concepts[14]["subgroup"] = ""
    about = {"concepts": concepts, "held": [[i, 0] for i in range(100)]}
    concept = [i for i in range(212) for _ in range(5)][:-1]  # the last lacks a style
    unit = torch.randn(212, 64, generator=generator()).repeat_interleave(5, 0)[:-1]
    chosen = recipe.choose.choose(unit, concept, about)
    assert len(set(chosen)) == 100
    assert chosen[:12] == names[:12]
    assert set(chosen[:60]) <= set(names[:100])
    assert not set(chosen) >= {"thing 0", "thing 1"}
    assert not {"thing 2", "thing 199"} & set(chosen)


def test_the_file_holds_a_hundred_names(recipe):
    names = recipe.choose.FILE.read_text("utf-8").splitlines()
    assert len(set(names)) == len(names) == 100
    assert names[:12] == list(recipe.names.HELD_NAMES)


def test_stored_is_made_once_for_a_key(recipe, tmp_path):
    made = []
    make = lambda: made.append(1) or np.arange(3)
    for key in ("a", "a", "b"):
        assert recipe.drawn.stored(tmp_path / "x.npz", key, make).tolist() == [0, 1, 2]
    assert len(made) == 2


@pytest.fixture(scope="module")
def data(recipe, tmp_path_factory) -> Path:
    """Things that are patterns of squares, in five styles that are colours."""
    folder = tmp_path_factory.mktemp("emoji")
    names = recipe.choose.FILE.read_text("utf-8").splitlines() + [f"thing {i}" for i in range(60)]
    ink = torch.rand(len(names), 1, 4, 4, 1, generator=generator()) < 0.5
    colour = torch.tensor(
        [[200, 30, 30], [30, 190, 60], [40, 60, 220], [20, 20, 20], [200, 180, 0]]
    )
    images = torch.where(ink, colour[:, None, None], 255).flatten(0, 1)
    images = images.repeat_interleave(16, 1).repeat_interleave(16, 2).numpy().astype(np.uint8)
    pair = np.arange(len(images))
    np.savez(folder / "emoji64.npz", images=images, concept=pair // 5, style=pair % 5)
    about = {
        "concepts": [{"name": n, "others": [], "emoji": ""} for n in names],
        "styles": list(recipe.names.STYLES),
        "held": [[i, i % 5] for i in range(30)],
        "packages": {"made here": {"version": "1"}},
    }
    (folder / "emoji.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def quick(recipe, monkeypatch) -> None:
    """Pixels for features, and pictures of the data set for those of other sets."""
    see = lambda pictures: torch.nn.functional.avg_pool2d(pictures, 8).flatten(1)
    monkeypatch.setattr(recipe.real, "EffNetFeatures", lambda: see)
    monkeypatch.setattr(recipe.drawn, "TOTAL", 60)
    monkeypatch.setattr(recipe.drawn, "SEEN", 480)


@pytest.mark.slow
def test_real_pictures_are_judged_right(recipe, data, quick, few_epochs, monkeypatch, tmp_path):
    real = recipe.real.Pictures(data, tmp_path)
    other = lambda *_: (real.images[:500:5], ["set"] * 100, list(range(100)))
    monkeypatch.setattr(recipe.judge, "other_pictures", other)
    out, record = tmp_path / "out", tmp_path / "record.json"
    run = ["judge.py", "--data", data, "--model", "real", "--out", out, "--others", tmp_path]
    run += ["--record", record, "--images", tmp_path]
    monkeypatch.setattr(sys, "argv", [str(x) for x in run])
    recipe.judge.main()
    made = json.loads(record.read_text())
    assert made["seen"]["pictures"] == 480
    assert made["seen"]["pairs"] == 470
    assert made["held out"]["pairs"] == 30
    for name in ("seen", "held out"):
        assert made[name]["name"]["top 5"]["share"] == 1
        assert made[name]["style"]["share"] == 1
    assert made["classifier of styles"]["checked"]["share"] == 1
    assert made["memory"]["seen"]["copies"]["share"] == 1
    assert (tmp_path / "emoji.png").is_file()
    assert (tmp_path / "emoji-nearest.png").is_file()


def test_a_model_draws_and_goes_on(recipe, data, quick, monkeypatch, tmp_path):
    real = recipe.real.Pictures(data, tmp_path)
    words = [recipe.drawn.canonical(c, s) for c in real.about["concepts"] for s in ("noto", "fx")]
    tokenizer = Tokenizer(build_vocabulary(words, 500), 8)
    config = SiTConfig(
        size=32, channels=3, patch=16, width=32, depth=1, heads=2, text_length=8,
        vocabulary=len(tokenizer),
    )  # fmt: skip
    card = {"name": "tiny", "condition": {"kind": "text", "tokenizer": tokenizer.to_json()}}
    save_folder(tmp_path / "tiny", SiT(config), card)
    model = recipe.drawn.Model(str(tmp_path / "tiny"), real.about, "E2", 1.5)
    assert model.conditions["evaluations"]["model"] == 2
    pairs = [(0, 0), (1, 3)]
    first = recipe.drawn.draw(model, "seen", pairs, tmp_path)
    assert first.shape == (2, 32, 32, 3)
    monkeypatch.setattr(recipe.drawn.ft, "generate", None)
    assert (recipe.drawn.draw(model, "seen", pairs, tmp_path) == first).all()


def test_the_new_pictures_are_found_where_the_key_says(recipe, data, monkeypatch, tmp_path, capsys):
    styles = {"old": ["noto", "fx"], "new": list(recipe.names.STYLES)}
    monkeypatch.setattr(
        recipe.blind.ft, "load", lambda name: SimpleNamespace(name=name, styles=styles[name])
    )
    sizes = {"old": (32, "black"), "new": (64, "red")}

    def generate(model: Any, prompts: list[str], **options: Any) -> list[Image.Image]:
        assert all(p.endswith(("noto style", "fx style")) for p in prompts)
        size, colour = sizes[model.name]
        return [Image.new("RGB", (size, size), colour) for _ in prompts]

    monkeypatch.setattr(recipe.blind.ft, "generate", generate)
    run = lambda *options: (
        monkeypatch.setattr(sys, "argv", ["blind.py", "--out", str(tmp_path), *options]),
        recipe.blind.main(),
    )
    run("--data", str(data), "--old", "old", "--new", "new")
    key = json.loads((tmp_path / "key.json").read_text())["new"]
    assert 20 < key.count("A") < 60
    sheet = np.asarray(Image.open(tmp_path / "sheet-1.png"))
    middle = recipe.sheet.GAP + recipe.sheet.CELL // 2
    left, right = sheet[40 + middle, middle], sheet[40 + middle, middle + recipe.sheet.STEP]
    assert (left if key[0] == "A" else right).tolist() == [255, 0, 0]
    capsys.readouterr()
    run("--better", key)
    assert "better in 100.0% of 80" in capsys.readouterr().out
    run("--better", "=" * 40 + key[40:].translate(str.maketrans("AB", "BA")))
    assert "better in 25.0% of 80" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="80 letters"):
        run("--better", "AB")
