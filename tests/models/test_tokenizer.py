"""The tokenizer: words, pieces, and prompts of every kind."""

from __future__ import annotations

import json

import pytest

from flowturbo.models.tokenizer import MAX_CHARACTERS, Tokenizer, build_vocabulary, words

CAPTIONS = ["red apple, noto style", "green apple, flat style", "tiger face", "the red tiger"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    vocabulary = ["red", "apple", "tiger", "noto", "style", "the", "fire", "##s", "##light"]
    return Tokenizer(vocabulary, length=6, aliases={"\U0001f34e": "red apple"})


def decode(tokenizer: Tokenizer, prompt: str) -> list[str]:
    ids = tokenizer.encode([prompt])[0].tolist()
    return [tokenizer.vocabulary[i - 1] for i in ids if i]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("red apple, noto style", ["red", "apple", "noto", "style"]),
        ("  RED\tapple\x00\x07", ["red", "apple"]),
        ("tigers", ["tiger", "##s"]),
        ("redapple", ["red", "apple"]),
        ("firelight", ["fire", "##light"]),
        ("\U0001f34e", ["red", "apple"]),
        ("\U0001f34e\ufe0f style", ["red", "apple", "style"]),
        ("red zzqx apple", ["red", "apple"]),
        ("\uff52\uff45\uff44", ["red"]),  # full-width letters
        ("", []),
        (" \n ", []),
    ],
)
def test_encode(tokenizer, prompt, pieces):
    assert decode(tokenizer, prompt) == pieces


def test_rows_are_padded_and_do_not_depend_on_each_other(tokenizer):
    rows = tokenizer.encode(["tiger", "", "red apple"])
    assert rows.shape == (3, 6)
    assert rows.tolist()[1] == [0] * 6
    assert rows[2].equal(tokenizer.encode(["red apple"])[0])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("aple", "closest known: apple"),
        ("яблоко", "no word of it is known"),
        ("\U0001f9ff", "no word of it is known"),
        ("!!!", "no word of it is known"),
        ("x" * (MAX_CHARACTERS + 1), f"at most {MAX_CHARACTERS}"),
        ("red " * 7, "7 tokens, the model reads 6"),
    ],
)
def test_refused_in_one_line(tokenizer, prompt, message):
    with pytest.raises(ValueError, match=message) as e:
        tokenizer.encode([prompt])
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300


def test_unknown_words_are_told(tokenizer):
    told = tokenizer.sort("a red zzqx apple \U0001f9ff of tigers and redapple: firefly")
    assert told[0] == ["red", "apple", "tigers", "redapple"]
    assert told[1] == ["a", "zzqx", "of", "and", "firefly", "\U0001f9ff"]


def test_guesses_from_pieces_are_not_known():
    tokenizer = Tokenizer(["tiger", "cat", "##s", "##gre", "tig"], length=6)
    assert decode(tokenizer, "tigre") == ["tig"]
    assert tokenizer.sort("tigre tig cats")[1] == ["tigre", "tig"]


def test_json_round_trip(tokenizer):
    again = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    prompts = ["tigers", "\U0001f34e"]
    assert again.encode(prompts).equal(tokenizer.encode(prompts))


def test_vocabulary_has_frequent_words_first_and_shared_pieces():
    assert build_vocabulary(CAPTIONS, 100)[:3] == ["red", "apple", "style"]
    many = [f"word{i}ing common" for i in range(10)] * 2
    vocabulary = build_vocabulary(many, 12, least=3)
    assert vocabulary[0] == "common"
    assert "##ing" in vocabulary
    assert len(vocabulary) <= 12
    assert words("It's A-1!") == ["it", "s", "a", "1"]
