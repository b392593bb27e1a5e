"""The recipe of avatars and the benchmark of true edits, on people made up here; with DiceBear
where a ``node_modules`` with it is named by FLOWTURBO_AVATARS.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import flowturbo as ft

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("people", "data", "train", "reader", "true_edits")
SHARED = ("rendering", "classifiers", "ratios", "trial", "figures", "results")
DICEBEAR = os.environ.get("FLOWTURBO_AVATARS")


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    before = list(sys.path)
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.path[:0] = [str(ROOT / "recipes" / "avatars"), str(ROOT / "benchmarks")]
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    sys.path[:] = before
    for name in (*MODULES, *SHARED):
        sys.modules.pop(name, None)


def drawing(modules: Path, chosen: Any) -> Any:
    """Stand-ins: a bar for each attribute, as long as the number of its word, on what is not
    named.
    """
    images = np.full((len(chosen), 64, 64, 3), 255, np.uint8)
    for image, person in zip(images, chosen, strict=True):
        image[:8] = random.Random("".join(person.rest)).randrange(256)
        for row, word in enumerate(person.words):
            image[16 * (row + 1) : 16 * (row + 1) + 8, : 8 * (word + 1)] = 60 * row
    return images


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("avatars")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe.data, "people", drawing)
        recipe.data.make(Path(), out, pairs=2, trained=200)
    return out


def test_pairs_differ_in_one_word_and_nobody_comes_twice(recipe):
    held, chosen = recipe.data.picked(pairs=4, trained=50)
    everyone = [person for pair in held for person in pair] + chosen
    assert len(everyone) == len(set(everyone)) == 4 * 4 * 3 * 2 + 3 * 50
    for i, (before, after) in enumerate(held):
        edit = list(recipe.people.EDITS)[i // 12]
        attribute, words, targets = recipe.people.EDITS[edit]
        assert before.named()[attribute] in words
        assert after.named()[attribute] in targets
        assert before != after
        assert after.changed(attribute, before.named()[attribute]) == before
    assert recipe.data.picked(pairs=4, trained=50) == (held, chosen)
    with pytest.raises(ValueError, match=r"trained=4000, pairs=999: .* ask for fewer"):
        recipe.data.picked(pairs=999, trained=4000)


def test_options_leave_nothing_to_chance(recipe):
    people = recipe.people
    for style in people.STYLES:
        person = people.draw(style, random.Random(0)).changed("glasses", "sunglasses")
        options = person.options()
        assert all(len(v) == 1 for v in options.values() if isinstance(v, list))
        name = people.LOOKS[style]["glasses"][0]
        assert options[f"{name}Probability"] == 100
        bare = person.changed("glasses", "no glasses").options()
        assert bare[f"{name}Probability"] == 0
        looks = [people.LOOKS[style][attribute][1] for attribute in people.WORDS]
        assert [len(set(of)) for of in looks] == [len(w) for w in people.WORDS.values()]


def test_captions_name_the_words(recipe):
    people = recipe.people
    person = people.Person("peeps", (3, 1, 0), ())
    full = "a person with a bun, round glasses and a smile"
    assert people.sentence(person.named()) == full
    rng = random.Random(0)
    captions = [people.caption(person, rng) for _ in range(100)]
    assert full in captions
    assert {part for c in captions if c != full for part in c.split(", ")} == {
        "a bun", "round glasses", "a smile",
    }  # fmt: skip


def test_masks_hold_what_changed_and_sizes_are_averages(recipe, folder):
    pairs = recipe.data.load_pairs(folder)
    assert pairs["mask"].shape == (24, 32, 32)
    assert pairs["mask"].any((1, 2)).all()
    same = ~pairs["mask"][..., None]
    assert (pairs["before"] * same == pairs["after"] * same).all()
    for edit, attribute in enumerate(["glasses", "glasses", "hair", "mouth"]):
        rows = np.flatnonzero(pairs["mask"][pairs["edit"] == edit].any((0, 2)))
        at = 8 * (list(recipe.people.WORDS).index(attribute) + 1)
        assert at <= rows.min() <= rows.max() < at + 4
    images, _, _, _ = recipe.data.load(folder, 64)
    halves = recipe.data.load(folder, 32)[0]
    assert np.abs(images.reshape(-1, 32, 2, 32, 2, 3).mean((2, 4)) - halves).max() <= 0.5


def test_data_of_other_words_are_refused(recipe, folder, monkeypatch):
    monkeypatch.setitem(recipe.people.WORDS, "mouth", ("a smile", "a frown", "a yawn"))
    for read in (recipe.data.load, recipe.data.load_pairs):
        with pytest.raises(
            ValueError, match=r"avatars\.json: other styles or words .* make it again"
        ):
            read(folder)


def shrink(recipe: Any, patch: pytest.MonkeyPatch) -> None:
    how = dict(steps=3, batch=4, save_every=1, preview_every=0, compile=False)
    patch.setattr(recipe.train, "TRAINING", replace(recipe.train.TRAINING, **how))
    small = recipe.train.ARCHITECTURE | dict(width=16, depth=1, heads=2, patch=16)
    patch.setattr(recipe.train, "ARCHITECTURE", small)


@pytest.fixture(scope="module")
def trained(recipe, folder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model trained for three steps, and a reader."""
    out, reader = (
        tmp_path_factory.mktemp("run"),
        tmp_path_factory.mktemp("reader") / "r.safetensors",
    )
    with pytest.MonkeyPatch.context() as patch:
        shrink(recipe, patch)
        for module, more in (
            (recipe.train, ("--out", str(out))),
            (recipe.reader, ("--out", str(reader), "--epochs", "6", "--batch", "50")),
        ):
            patch.setattr(sys, "argv", ["x", "--data", str(folder), *more])
            module.main()
    return out, reader


def test_the_recipe_trains_a_model_of_words_and_styles(recipe, folder, trained):
    model = ft.load(trained[0])
    assert model.styles == ["pixel", "peeps", "lorelei"]
    assert "a bald head" in model.names
    assert model.card["data"]["images"] == 600
    data = recipe.train.AvatarData(folder)
    x, cond = data.batch(5, torch.Generator().manual_seed(0))
    assert x.shape == (5, 3, 32, 32)
    assert x.min() >= -1
    assert cond.shape == data.examples(5).shape == (5, 17)
    assert (data.tokenizer.encode(["sunglasses and a bun"]) > 0).sum() == 4


@pytest.mark.parametrize("batches", [1, 2])
def test_training_goes_on_where_it_was_interrupted(
    recipe, folder, trained, tmp_path, monkeypatch, batches
):
    shrink(recipe, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(folder), "--out", str(tmp_path)])
    draw, left = recipe.train.AvatarData.batch, list(range(batches))

    def interrupted(data: Any, n: int, generator: torch.Generator) -> Any:
        if not left:
            raise RuntimeError("killed")
        left.pop()
        return draw(data, n, generator)

    with monkeypatch.context() as patch:
        patch.setattr(recipe.train.AvatarData, "batch", interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            recipe.train.main()
    recipe.train.main()
    model = "model.safetensors"
    assert (tmp_path / model).read_bytes() == (trained[0] / model).read_bytes()


def test_the_reader_reads_plain_bars(recipe, folder, trained):
    reader = recipe.reader.load_reader(trained[1])
    pairs = recipe.data.load_pairs(folder)
    x, true = recipe.reader.to_input(pairs["before"]), torch.from_numpy(pairs["words"][:, 0])
    found = recipe.reader.accuracy(reader, x, true)
    assert list(found) == ["hair", "glasses", "mouth"]
    assert min(found.values()) > 0.5  # by chance 0.14, 0.25 and 0.33


class Fixed:
    """A reader whose answer is given."""

    def __init__(self, words: torch.Tensor) -> None:
        self.words = words

    def read(self, x: torch.Tensor) -> torch.Tensor:
        return self.words


def test_errors_are_of_the_mask_and_of_the_rest(recipe, folder, trained):
    true_edits = recipe.true_edits
    pairs = true_edits.Pairs(ft.load(trained[0]), folder, 1)
    assert len(pairs) == 12
    assert pairs.prompts[0].endswith(", pixel style")
    done = true_edits.judged(pairs, Fixed(pairs.words[:, 1]), pairs.after)
    assert not done["error"].any()
    assert not done["background"].any()
    assert done["success"].all()
    inside = pairs.mask[:, None].float()
    off = pairs.after + 0.5 * inside - 0.25 * (1 - inside)
    missed = true_edits.judged(pairs, Fixed(pairs.words[:, 0]), off)
    assert missed["error"] == pytest.approx(np.full(12, 0.5), abs=1e-6)
    assert missed["background"] == pytest.approx(np.full(12, 0.25), abs=1e-6)
    assert not missed["success"].any()
    still = true_edits.judged(pairs, Fixed(pairs.words[:, 0]), pairs.before)
    assert (still["error"] > 0.01).all()
    assert not still["background"].any()


def test_equal_success_takes_the_best_rival_that_succeeds_as_often(recipe):
    found = lambda error, success: {
        "error": np.full(4, error), "background": np.full(4, 2 * error),
        "success": np.arange(4) < success,
    }  # fmt: skip
    rival = {"0": found(0.8, 4), "0.1": found(0.4, 3), "0.2": found(0.1, 1)}
    equal = recipe.true_edits.at_equal_success(found(0.2, 2), rival)
    assert equal["keep"] == "0.1"
    assert equal["error"] == pytest.approx(0.5)
    assert equal["background_95"] == pytest.approx([0.5, 0.5])
    assert recipe.true_edits.at_equal_success(found(0.2, 4), {"0.2": rival["0.2"]}) is None


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_the_benchmark_measures_tables_and_draws(
    recipe, folder, trained, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    model, reader = map(str, trained)
    out, figure = tmp_path / "record.json", tmp_path / "curves.png"
    monkeypatch.setattr(recipe.true_edits, "KEEPS", (0.0, 0.5))
    common = ["--data", str(folder), "--model", model, "--reader", reader, "--pairs", "1"]
    monkeypatch.setattr(
        sys, "argv",
        ["x", *common, "--evaluations", "4", "--out", str(out), "--figure", str(figure)],
    )  # fmt: skip
    recipe.true_edits.main()
    record = json.loads(out.read_text())
    assert figure.stat().st_size > 10_000
    assert record["conditions"]["plans"]["inversion"] == "AB2:2@1.6"
    assert {method: cost["evaluations"] for method, cost in record["cost"].items()} == {
        "inversion": 4, "flowedit": 4, "sdedit": 4,
    }  # fmt: skip
    assert list(record["edits"]) == ["glasses", "glasses on", "glasses off", "hair", "mouth"]
    glasses = record["edits"]["glasses"]
    assert glasses["pairs"] == 6
    assert glasses["controls"]["truth"]["error"]["rmse"] == 0
    for dials in glasses["methods"].values():
        assert list(dials) == ["0", "0.5"]
    sdedit = glasses["methods"]["sdedit"]
    best = min(sdedit.values(), key=lambda at: at["error"]["rmse"])
    if best["success"] == max(at["success"] for at in sdedit.values()):
        assert best["equal_success"]["error"] == 1
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["x", "--table", str(out)])
    recipe.true_edits.main()
    assert "| inversion, 0.5 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["x", *common, "--evaluations", "5"])
    with pytest.raises(SystemExit):
        recipe.true_edits.main()
    assert "--evaluations 5: must be even" in capsys.readouterr().err


@pytest.mark.skipif(not DICEBEAR, reason="FLOWTURBO_AVATARS names no node_modules with DiceBear")
def test_dicebear_draws_the_same_bytes_again(recipe, tmp_path):
    pytest.importorskip("resvg_py")
    for name in ("a", "b"):
        recipe.data.make(Path(DICEBEAR).resolve(), tmp_path / name, pairs=1, trained=2)
    for name in ("avatars.npz", "pairs.npz", "avatars.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    mask = recipe.data.load_pairs(tmp_path / "a")["mask"]
    assert mask.any((1, 2)).all()
    assert not mask.all((1, 2)).any()
