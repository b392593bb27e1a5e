"""The emoji data set's words, joins, weights and hold-out, on icon sets made up here."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flowturbo as ft
from flowturbo.models.sit import SiT, SiTConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "emoji"
TABLE = {"dog": "dog face", "dogside": "dog", "foxgrin": "grinning fox"}
SKIN = "-1f3fb"


@pytest.fixture(scope="module")
def recipe() -> Any:
    sys.path.insert(0, str(RECIPE))
    try:
        return load(RECIPE / "data.py", "emoji_data")
    finally:
        sys.path.remove(str(RECIPE))


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node_modules of five sets that name a few emoji differently."""
    root = tmp_path_factory.mktemp("node_modules")
    about = {
        "\U0001f34e": ("red apple", "Food & Drink", "food-fruit", ["fruit", "orchard", ":D"]),
        "\U0001f415": ("dog", "Animals & Nature", "animal-mammal", ["pet", "bark"]),
        "\U0001f436": ("dog face", "Animals & Nature", "animal-mammal", ["pet"]),
        "\U0001f44b": ("waving hand", "People & Body", "hand-fingers-open", []),
        "\u2764\ufe0f": ("red heart", "Smileys & Emotion", "heart", ["love"]),
        "\U0001f45e": ("man\u2019s shoe", "Objects", "clothing", []),
        "\U0001f1eb\U0001f1f7": ("flag: France", "Flags", "country-flag", []),
    }
    write = {
        "unicode-emoji-json/data-by-emoji.json": {
            e: {"name": n, "group": g} for e, (n, g, _, _) in about.items()
        },
        "emojilib/dist/emoji-en-US.json": {e: ["slug", *k] for e, (_, _, _, k) in about.items()},
        "emoji.json/emoji.json": [
            {"char": e.replace("\ufe0f", ""), "subgroup": s} for e, (_, _, s, _) in about.items()
        ],
    }
    hands = {"1f44b": "waving-hand", "1f44b" + SKIN: "waving-hand-light", "1f45e": "mans-shoe"}
    sets = {
        "noto": {"1f34e": "apple", "1f436": "dog-face", "2764": "red-heart", "1f1e6": "letter-a"},
        "fluent-emoji": {"1f34e": "red-apple", "1f436": "dog-face", **hands},
        "fluent-emoji-flat": {"1f34e": "red-apple", "1f436": "dog-face", **hands},
        "fxemoji": dict(enumerate(["redapple", "dog", "dogside", "foxgrin", "openlock"])),
    }
    for name, codes in sets.items():
        drawn: dict[str, Any] = {n: {"body": "<path/>"} for n in codes.values()}
        if name == "noto":
            drawn["old-apple"] = {"body": "", "hidden": True}
        write[f"@iconify-json/{name}/icons.json"] = {
            "icons": drawn,
            "width": 16,
            "height": 20,
            "aliases": {"scarlet-heart": {"parent": "red-heart"}} if name == "noto" else {},
        }
        write[f"@iconify-json/{name}/metadata.json"] = {"categories": {"People": ["foxgrin"]}}
        known = codes if name in ("noto", "fluent-emoji-flat") else {}
        write[f"@iconify-json/{name}/chars.json"] = known
    for path, content in write.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(json.dumps(content), "utf-8")
    files = root / "@lobehub" / "fluent-emoji-3d" / "assets"
    files.mkdir(parents=True)
    flag = "1f3f4-e0067_e0062_e0065_e006e_e0067"
    for code in ("1f34e", "2764-fe0f", "1f44b" + SKIN, flag):
        Image.new("RGBA", (8, 8)).save(files / f"{code}.webp")
    return root


@pytest.fixture(scope="module")
def joined(recipe: Any, icons: Path) -> Any:
    return recipe.join(icons, TABLE)


def test_names_are_plain_words(recipe):
    assert recipe.plain("Japanese \u201chere\u201d button") == "japanese here button"
    assert recipe.plain("man\u2019s shoe") == "man's shoe"
    assert recipe.plain("keycap: #") == "keycap number sign"
    assert recipe.plain("pi\u00f1ata") == "pinata"


def test_pictures_of_one_thing_join_across_styles(joined):
    concepts, pictures, _ = joined
    assert [c["name"] for c in concepts] == sorted(c["name"] for c in concepts)
    for style, icon in [
        ("noto", "apple"),
        ("fluent", "red-apple"),
        ("fx", "redapple"),
        ("3d", "1f34e"),
    ]:
        assert pictures["red apple", style][0] == icon
    assert pictures["dog face", "fx"][0] == "dog"
    assert pictures["dog", "fx"][0] == "dogside"
    assert pictures["man's shoe", "flat"][0] == "mans-shoe"


def test_words_of_a_concept(joined):
    by_name = {c["name"]: c for c in joined[0]}
    apple = by_name["red apple"]
    assert apple["keywords"] == ["fruit", "orchard"]
    assert apple["others"] == ["apple"]
    assert (apple["group"], apple["subgroup"]) == ("Food & Drink", "food-fruit")
    assert by_name["red heart"]["emoji"] == "\u2764"
    assert by_name["red heart"]["others"] == ["scarlet heart"]
    assert by_name["grinning fox"]["emoji"] == ""
    assert by_name["open lock"]["emoji"] == "\U0001f513"  # named by its Unicode character


def test_tones_flags_and_withdrawn_icons_are_left_out(joined):
    _, pictures, left_out = joined
    assert left_out == {"skin tone": 3, "flag": 2, "withdrawn by its set": 1}
    assert {s for n, s in pictures if n == "waving hand"} == {"fluent", "flat"}


def test_icons_stand_in_the_middle_of_a_square(joined):
    assert 'viewBox="-2.0 0.0 20 20"' in joined[1]["red apple", "noto"][1]


def test_families_gather_variants(recipe):
    family = sys.modules[recipe.join.__module__].family
    runners = ["man running", "woman running facing right", "person running"]
    assert {family(n, "person-activity") for n in runners} == {"running"}
    assert {family(n, "time") for n in ["one o'clock", "two thirty", "alarm clock"]} == {"clock"}
    assert family("full moon", "sky & weather") == "moon"
    assert family("red apple", "food-fruit") == "red apple"


def test_captions_say_the_concept_and_depend_on_the_generator_alone(recipe, joined):
    apple = next(c for c in joined[0] if c["name"] == "red apple")
    drawn = [recipe.caption(apple, "noto", random.Random(i)) for i in range(300)]
    assert drawn == [recipe.caption(apple, "noto", random.Random(i)) for i in range(300)]
    assert {"red apple", "red apple, noto style", "apple, noto style"} <= set(drawn)
    words = {"red", "apple", "fruit", "orchard", "food", "noto", "style"}
    assert set(" ".join(drawn).replace(",", "").split()) == words
    assert 200 < sum(c.endswith("noto style") for c in drawn) < 280
    assert recipe.canonical(apple, "fx") == "red apple, fx style"
    assert recipe.canonical(apple) == "red apple"


def test_captions_are_short(recipe):
    concept = {
        "name": "one two three four five six",
        "others": [],
        "keywords": ["seven eight nine ten eleven", "twelve thirteen fourteen", "x y z"],
        "group": "",
        "subgroup": "",
    }
    for i in range(100):
        assert len(recipe.caption(concept, "noto", random.Random(i)).split()) <= 16


def test_weights_balance_looks_and_families(recipe):
    about = [
        ("tiger", "tiger"),
        ("lamp", "lamp"),
        ("one o'clock", "clock"),
        ("two thirty", "clock"),
    ]
    concepts = [{"name": n, "family": f, "subgroup": "any"} for n, f in about]
    w = recipe.weights(concepts, np.array([0] * 5 + [1, 2, 3]), np.array([0, 1, 2, 3, 4, 0, 0, 0]))
    assert w.sum() == pytest.approx(1)
    assert w[:5].sum() / w[5] == pytest.approx(3**0.5)  # three looks, five pictures
    assert np.ptp(w[:5]) == 0
    assert (w[6] + w[7]) / w[5] == pytest.approx(2**0.5)


def test_hold_out_leaves_another_look_and_keeps_near_copies_together(recipe):
    names = [f"thing {i}" for i in range(400)]
    pairs = [(n, s) for n in [*names, *recipe.HELD_NAMES] for s in recipe.STYLES]
    pairs += [("one look", "fluent"), ("one look", "3d")]
    held = recipe.hold_out(pairs)
    assert held == recipe.hold_out(reversed(pairs))
    assert held != recipe.hold_out(pairs, seed=1)
    assert 0.05 * len(pairs) <= len(held) <= 0.05 * len(pairs) + 2
    looks = {n: {s for m, s in held if m == n} for n, _ in held}
    assert all(x in ({"noto"}, {"fluent", "flat", "3d"}, {"fx"}) for x in looks.values())
    assert "one look" not in looks
    assert {n: set(s) for n, s in recipe.HELD_NAMES.items()}.items() <= looks.items()


def test_held_names_cover_every_style(recipe):
    assert len(recipe.HELD_NAMES) == 12
    cells = [s for styles in recipe.HELD_NAMES.values() for s in styles]
    assert len(cells) >= 12
    assert set(cells) == set(recipe.STYLES)
    assert {p: recipe.PACKAGES[p] for p in recipe.STYLES.values()}.keys() <= recipe.LICENCES.keys()


def test_load_averages_pixels(recipe, tmp_path):
    images = np.zeros((1, 64, 64, 3), np.uint8)
    images[0, ::2] = 100
    arrays = {"images": images, "concept": np.zeros(1, np.int16), "style": np.zeros(1, np.int8)}
    np.savez(tmp_path / "emoji64.npz", **arrays)
    (tmp_path / "emoji.json").write_text("{}")
    assert (recipe.load(tmp_path, 32)[0] == 50).all()
    assert (recipe.load(tmp_path)[0] == images).all()
    with pytest.raises(ValueError, match="size=48"):
        recipe.load(tmp_path, 48)


def test_table_has_no_double_entries():
    icons = [x.partition(": ")[0] for x in (RECIPE / "fxemoji.txt").read_text("utf-8").split("\n")]
    assert len(icons) > 300
    assert len(icons) == len(set(icons))


def test_the_card_lists_names_by_group(tmp_path, monkeypatch):
    about = [("red apple", "Food & Drink"), ("folder", ""), ("dog", "Animals & Nature"),
             ("pizza", "Food & Drink")]  # fmt: skip
    concepts = [
        {"name": n, "emoji": "", "others": [], "keywords": [], "group": g, "subgroup": "",
         "family": n}
        for n, g in about
    ]  # fmt: skip
    (tmp_path / "emoji.json").write_text(
        json.dumps({"concepts": concepts, "styles": ["noto", "fx"], "held": [[3, 0]]})
    )
    np.savez(
        tmp_path / "emoji64.npz",
        images=np.zeros((4, 64, 64, 3), np.uint8),
        concept=np.arange(4),
        style=np.array([0, 1, 0, 0]),
    )
    monkeypatch.syspath_prepend(str(RECIPE))
    names = ("data", "names", "concepts", "augment", "autoencoder")
    before = {n: sys.modules.pop(n, None) for n in names}
    try:
        data = load(RECIPE / "train.py", "emoji_train").EmojiData(tmp_path)
    finally:
        for n in names:
            sys.modules.pop(n, None)
            if before[n]:
                sys.modules[n] = before[n]
    assert len(data) == 3
    assert list(data.condition["groups"].items()) == [
        ("Animals & Nature", ["dog"]),
        ("Food & Drink", ["red apple", "pizza"]),
        ("Other", ["folder"]),
    ]
    config = SiTConfig(
        size=2, channels=1, patch=1, width=4, depth=1, heads=1,
        vocabulary=len(data.tokenizer), styles=2,
    )  # fmt: skip
    model = ft.Model(SiT(config), {"condition": data.condition})
    assert model.names == ["dog", "red apple", "pizza", "folder"]
    found = model.condition(["pizza, fx style", "FX style pizza", "pizza", "red apple"])
    assert found[:, 0].tolist() == [2, 2, 0, 0]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0, 1:], found[2, 1:])
    assert data.cond.shape[::2] == (3, 17)
    assert (data.cond[:, :, 0] == torch.from_numpy(data.style)[:, None] + 1).all()
