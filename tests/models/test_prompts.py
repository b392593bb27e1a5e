"""Prompts of every kind: styles, unknown words, what is no text at all."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import flowturbo as ft
from flowturbo.files import printable
from flowturbo.models.prompts import styled
from flowturbo.models.tokenizer import MAX_CHARACTERS, nearest


@pytest.fixture(scope="module")
def model(text_model) -> ft.Model:
    return ft.load(text_model)


def read(model: ft.Model, prompt: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = model.condition([prompt])[0].tolist()
    return " ".join(model.conditioning.tokenizer.vocabulary[i - 1] for i in ids if i)


@pytest.mark.parametrize(
    ("prompt", "style", "made"),
    [
        ("red apple", "noto", "red apple, noto style"),
        ("red apple", "", "red apple"),
        ("", "fx", "fx style"),
        (" ", "fx", "fx style"),
        ("", "", ""),
    ],
)
def test_a_style_ends_the_prompt(prompt, style, made):
    assert styled(prompt, style) == made


def test_styles_in_python(model):
    prompts = ["red apple", "tiger"]
    said = ft.generate(model, [f"{p}, fx style" for p in prompts])
    plain = ft.generate(model, prompts)
    for a, b, c in zip(ft.generate(model, prompts, style="fx"), said, plain, strict=True):
        assert a.tobytes() == b.tobytes() != c.tobytes()
    assert model.styled("Red apple, FX style!", "fx") == "Red apple, FX style!"
    assert model.styled("flat shoe", "fx") == "flat shoe, fx style"


@pytest.mark.parametrize(
    ("prompt", "style", "message"),
    [
        ("tiger", "nto", "did you mean noto?.* styles: noto, fluent, flat, fx"),
        ("tiger", "", "styles: noto, fluent, flat, fx"),
        ("tiger", "\x1b[1m\udcff", r"'\\x1b\[1m\\udcff': not a style"),
        ("tiger, fx style", "noto", "asks for fx itself; leave one out"),
    ],
)
def test_styles_refused(model, prompt, style, message):
    with pytest.raises(ValueError, match=message):
        ft.generate(model, [prompt], style=style)


def test_a_model_without_styles_says_so(digits):
    with pytest.raises(ValueError, match="model 'digits' has no styles"):
        ft.generate(digits, [7], style="noto")


def test_random_conditions_are_names_of_all_groups_in_all_styles(model):
    drawn = {tuple(c.tolist()) for c in model.random_condition(600, torch.Generator())}
    every = [styled(n, s) for n in model.names for s in model.styles]
    assert len(every) == 9 * 4
    assert drawn == {tuple(c.tolist()) for c in model.condition(every)}


@pytest.mark.parametrize(
    ("prompt", "is_read_as"),
    [
        ("\U0001f34e", "red apple"),
        ("\U0001f34e\ufe0f, fx style", "red apple fx style"),
        ("tigers", "tiger ##s"),
        ("red\x00apple\n\t\x07", "red apple"),
        ("red \x1b apple", "red apple"),
        ("red \udcff apple", "red apple"),
        ("\u200fred apple\u202e", "red apple"),
        ("FX style", "fx style"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_read_without_a_word(model, prompt, is_read_as):
    assert read(model, prompt) == is_read_as


REFUSED = {
    "aple": "closest known: .*red apple, green apple",
    "tigre": "closest known: tiger, tiger face",
    "octopusses": "closest known: octopus",
    "pupy": "closest known: puppy",
    "an aple, noto style": "no word of it is known.*red apple",
    "flat shue": "closest known: flat shoe",
    "\U0001f9ff": "no word of it is known; known are such as tiger,",
    "\U0001f9ff, fx style": "no word of it is known",
    "苹果": "'苹果': no word of it is known; known are such as tiger,",
    "تفاحة": "no word of it is known",
    "яблоко": "no word of it is known",
    "りんご": "no word of it is known",
    "!!!": "no word of it is known",
    "\x00\x1b[2J": r"'\\x00\\x1b\[2J'",
    "\udcff": r"'\\udcff'",
    "\u202e": r"'\\u202e'",
    "x" * 10_000: f"of 10000 characters, 'x.*at most {MAX_CHARACTERS}",
    "\x1b" * 10_000: r"of 10000 characters, '\\x1b",
    "red apple " * 5: "10 tokens, the model reads 8",
}


@pytest.mark.parametrize("prompt", REFUSED, ids=lambda p: ascii(p[:20]))
@pytest.mark.parametrize("negative", [False, True])
def test_refused_in_one_printable_line(model, prompt, negative):
    with pytest.raises(ValueError, match=REFUSED[prompt]) as e:
        ft.generate(model, ["tiger"] if negative else [prompt], negative=prompt)
    assert str(e.value) == printable(str(e.value))
    assert len(str(e.value)) < 300


def test_unknown_words_are_told_once_with_the_nearest_names(model):
    prompts = ["red zzqx aple", "a tigre \U0001f9ff", "red zzqx aple", "tiger"]
    with pytest.warns(UserWarning, match="not known") as told:
        model.condition(prompts)
    assert [str(w.message) for w in told] == [
        "prompt words not known: 'zzqx', 'aple', 'tigre', '\U0001f9ff'; closest known: "
        "maple leaf, red apple, green apple, tiger, tiger face"
    ]


def test_long_numbers_are_no_labels(digits):
    with pytest.raises(ValueError, match="has 10 labels") as e:
        digits.condition(["1" * 10_000])
    assert len(str(e.value)) < 200
    assert digits.condition(["\u0667"]).tolist() == [7]


def test_nothing_to_suggest():
    assert nearest(["aple"], []) == "known are such as "


def test_printable_keeps_scripts_and_joined_emoji():
    kept = "Grün 苹果 تفاحة می\u200cروم \U0001f469\u200d\U0001f692 \u2764\ufe0f"
    assert printable(kept) == kept
    assert printable("\x00\n\x1b[1m\x85\u2028\u202e\udcff") == (
        r"\x00\n\x1b[1m\x85\u2028\u202e\udcff"
    )


@pytest.mark.parametrize("wrong", [{"groups": ["Food"]}, {"groups": {"a": "b"}}, {"styles": "fx"}])
def test_cards_with_other_entries_are_refused(text_model, tmp_path, wrong):
    card = json.loads((text_model / "card.json").read_text())
    card["condition"] |= wrong
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "model.safetensors").write_bytes((text_model / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="restore the file"):
        ft.load(tmp_path)
