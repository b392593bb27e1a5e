"""Prompts to token ids: words, and pieces of words, from a vocabulary on the model's card.

Nothing is downloaded: the vocabulary is learned from the captions, and the vectors of its entries
with the model. A word that is not in it is split into the longest pieces that are; "##s" is a piece
that continues a word. Id 0 is padding, and a row of padding is the unconditional condition.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile

import torch
from torch import Tensor

from flowturbo.files import printable
from flowturbo.types import JsonObject, ReadOnlyJson

__all__ = [
    "MAX_CHARACTERS",
    "MAX_TOKENS",
    "Tokenizer",
    "build_vocabulary",
    "nearest",
    "short",
    "words",
]

MAX_CHARACTERS = 1000  # of a prompt, and of an entry of a vocabulary
MAX_TOKENS = 2**16  # of a prompt
_WORD = re.compile(r"[^\W_]+")
_EMOJI = re.compile("[\u2600-\u27bf\U0001f000-\U0001f3fa\U0001f400-\U0001faff]+")  # but skin tones


def words(text: str) -> list[str]:
    """The words of a text: letters and digits in any script, lower case, accents kept apart."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def build_vocabulary(captions: Iterable[str], size: int, least: int = 2) -> list[str]:
    """A vocabulary of at most ``size`` entries, most frequent words first, then pieces.

    Words seen fewer than ``least`` times are left to the pieces, unless there is room to spare.
    Pieces are the beginnings (3 to 5 letters) and endings ("##", 1 to 5 letters) that most
    different words share.
    """
    counts = Counter(w for c in captions for w in words(c))
    kept = [w for w, n in counts.most_common() if n >= least or len(counts) <= size // 2]
    kept = kept[: size * 3 // 4]
    pieces: Counter[str] = Counter()
    for w in counts:
        pieces.update(w[:n] for n in range(3, min(6, len(w))))
        pieces.update("##" + w[-n:] for n in range(1, min(6, len(w) - 2)))
    known = set(kept)
    common = [p for p, n in pieces.most_common() if n >= 5 and p not in known]
    return kept + common[: size - len(kept)]


def nearest(wanted: Sequence[str], names: Sequence[str], vocabulary: Sequence[str] = ()) -> str:
    """A hint for unknown words: the names, else the words, spelled like them; else a few."""
    known: dict[str, list[str]] = {}
    for name in [*sorted(names, key=len), *vocabulary]:
        for w in words(name):
            if name != w or w not in known:
                known.setdefault(w, []).append(name)
    like: list[str] = []
    for wrong in [w[:40] for w in wanted if len(w) > 2][:8]:
        found = get_close_matches(wrong, known, cutoff=0.7)
        like += sorted(found, key=lambda w: sorted(w) != sorted(wrong))  # swapped letters first
    near = dict.fromkeys(name for w in like for name in known[w][:2])
    if near:
        return f"closest known: {', '.join([*near][:6])}"
    some = names or vocabulary
    return f"known are such as {', '.join(some[:: len(some) // 6 + 1])}"


def short(text: str) -> str:
    """A text quoted for a message: printable, at most 60 characters of it."""
    return f"'{printable(text if len(text) <= 60 else text[:57] + '...')}'"


def _check_length(text: str, prompt: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"prompt of {len(text)} characters, {short(prompt[:20])}...: at most "
            f"{MAX_CHARACTERS}; shorten it"
        )


class Tokenizer:
    """Encodes prompts with a fixed vocabulary.

    Args:
        vocabulary: words and then, from the first "##" on, pieces; entry ``i`` has id ``i + 1``.
        length: tokens in a prompt, 1 to `MAX_TOKENS`.
        aliases: texts that stand for others before words are looked up, such as an emoji for its
            name.
    """

    def __init__(
        self, vocabulary: Sequence[str], length: int = 16, aliases: Mapping[str, str] | None = None
    ) -> None:
        if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= MAX_TOKENS:
            raise ValueError(f"length={length!r}: must be a whole number, 1 to {MAX_TOKENS}")
        self.vocabulary = list(vocabulary)
        self.length = length
        self.aliases = dict(aliases or {})
        self.whole = list(takewhile(lambda w: not w.startswith("##"), self.vocabulary))
        self._words = set(self.whole)
        self._ids = {w: i + 1 for i, w in enumerate(self.vocabulary)}
        found = sorted(self.aliases, key=len, reverse=True)
        self._alias = re.compile("|".join(map(re.escape, found))) if found else None

    def __len__(self) -> int:
        """The number of ids, padding included."""
        return len(self.vocabulary) + 1

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, length), int64; an empty prompt is a row of 0.

        Raises:
            ValueError: if a prompt has no known word (names the closest), more than
                `MAX_CHARACTERS` characters, or more tokens than ``length``.
        """
        rows = torch.zeros(len(prompts), self.length, dtype=torch.long)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = self._encode(prompt)
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return rows

    def ids(self, prompt: str) -> list[int]:
        """The ids of a prompt's words and pieces, however many; none if no word of it is known.

        Raises:
            ValueError: if it has more than `MAX_CHARACTERS` characters.
        """
        return [i for w in words(self._text(prompt)) for i in self._split(w)]

    def sort(self, prompt: str) -> tuple[list[str], list[str]]:
        """The words of a prompt that are in the vocabulary, and the words and emoji that are not.

        Words with an ending ("tigers") and two words in one ("redapple") are known too. Unknown
        words are left out of the encoding, or encoded by pieces if these cover most of the word.

        Raises:
            ValueError: if it has more than `MAX_CHARACTERS` characters.
        """
        text = self._text(prompt)
        known = [w for w in words(text) if self._knows(w)]
        return known, [w for w in words(text) if w not in known] + _EMOJI.findall(text)

    def to_json(self) -> JsonObject:
        """What ``from_json`` takes, for the model's card."""
        return {"vocabulary": self.vocabulary, "length": self.length, "aliases": self.aliases}

    @classmethod
    def from_json(cls, values: ReadOnlyJson) -> Tokenizer:
        """The tokenizer on a card.

        Raises:
            ValueError: if ``values`` is not what ``to_json`` makes; names the entry.
        """
        from flowturbo.models.card import TokenizerEntry
        from flowturbo.schema import check

        check(values, TokenizerEntry, "tokenizer")
        return cls(values["vocabulary"], values["length"], values.get("aliases"))

    def _encode(self, prompt: str) -> list[int]:
        ids = self.ids(prompt)
        if not ids and prompt.strip():
            near = nearest(words(self._text(prompt)), self.whole)
            raise ValueError(f"prompt {short(prompt)}: no word of it is known; {near}")
        if len(ids) > self.length:
            raise ValueError(
                f"prompt {short(prompt)}: {len(ids)} tokens, the model reads {self.length}; "
                "shorten it"
            )
        return ids

    def _text(self, prompt: str) -> str:
        """The prompt with its aliases replaced by words."""
        _check_length(prompt, prompt)
        text = prompt.replace("\ufe0f", "")  # a presentation selector changes no meaning
        if self._alias:
            text = self._alias.sub(lambda m: f" {self.aliases[m[0]]} ", text)
            _check_length(text, prompt)
        return text

    def _knows(self, word: str) -> bool:
        if word in self._words:
            return True
        parts = [self.vocabulary[i - 1] for i in self._split(word)]
        if len(parts) != 2 or parts[0] + parts[1].removeprefix("##") != word:
            return False
        first, second = parts
        return first in self._words and (len(first) > 3 or second == "##s" or second in self._words)

    def _split(self, word: str) -> list[int]:
        """The ids of a word; those of its longest pieces if they cover most of it; else none."""
        if word in self._ids:
            return [self._ids[word]]
        ids: list[int] = []
        covered = at = 0
        while at < len(word):
            for end in range(len(word), at, -1):
                piece = word[at:end]
                inner = self._ids.get("##" + piece) if at else None
                whole = self._ids.get(piece) if end - at >= 3 else None
                if found := inner or whole:
                    ids.append(found)
                    covered += end - at if end - at >= 3 else 0
                    at = end
                    break
            else:
                at += 1
        return ids if covered * 2 > len(word) else []
