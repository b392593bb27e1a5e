"""Class and text conditions: their networks, data and cards."""

from __future__ import annotations

import pytest
import torch

from flowturbo.models.conditioning import (
    ClassCondition,
    TextCondition,
    conditioning_of,
    misfits,
    random_prompts,
)
from flowturbo.models.sit import SiTConfig
from flowturbo.models.tokenizer import Tokenizer

CLASSES = ClassCondition.of(["cat", "dog"])
TEXT = TextCondition.of(Tokenizer(["cat", "red"], length=4))


def test_the_entry_of_a_card_makes_the_conditioning():
    for made in (CLASSES, TEXT):
        again = conditioning_of(made.entry)
        assert type(again) is type(made)
        assert again.entry == made.entry
    assert conditioning_of(None) is conditioning_of({}) is None


def test_the_empty_prompt_is_the_null_condition():
    assert CLASSES.encode(["dog", "0", ""]).tolist() == [1, 0, 2]
    assert TEXT.encode(["red cat", ""]).tolist() == [[2, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("about", "options", "wrong"),
    [
        (CLASSES, dict(classes=2), {}),
        (CLASSES, dict(classes=3), {"classes": 2}),
        (TEXT, dict(vocabulary=3, text_length=4), {}),
        (TEXT, dict(vocabulary=9, text_length=4), {}),
        (TEXT, dict(vocabulary=2, text_length=5), {"vocabulary": 3, "text_length": 4}),
    ],
)
def test_a_network_must_fit(about, options, wrong):
    assert misfits(about, SiTConfig(size=4, **options)) == wrong


def test_a_model_covers_data_of_its_first_labels_or_of_its_tokenizer():
    assert ClassCondition.of(["cat", "dog", "fox"]).covers(CLASSES)
    assert not ClassCondition.of(["dog", "cat"]).covers(CLASSES)
    assert TEXT.covers(TextCondition.of(Tokenizer(["cat", "red"], length=4)))
    assert not TEXT.covers(TextCondition.of(Tokenizer(["cat", "red"], length=5)))
    assert not TEXT.covers(CLASSES)
    assert not CLASSES.covers(TEXT)


def test_random_prompts_are_names_in_styles():
    entry = {**TEXT.entry, "groups": {"a": ["cat"], "b": ["red"]}, "styles": ["fx"]}
    made = random_prompts(TextCondition(entry), 50, torch.Generator().manual_seed(0))
    assert set(made) == {"cat, fx style", "red, fx style"}
