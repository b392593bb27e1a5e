"""What a model is conditioned on: one of some classes, or text.

The entry "condition" of a card has the kind and the data for it:

- ``{"kind": "class", "labels": [...]}``: a condition is the index (B,) of a label; the null
  condition is the index after the last;
- ``{"kind": "text", "tokenizer": {...}}``: token ids (B, L), with "styles", and with "groups" or
  "prompts" that name what it can generate; the null condition is all zeros. Where the network
  embeds the style apart from the words, its number comes before the ids: (B, 1 + L).
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from itertools import chain
from typing import TypeAlias
from unicodedata import normalize

import torch
from torch import Tensor

from flowturbo.models.prompts import check_words, excerpt, split_style, styled
from flowturbo.models.sit_config import SiTConfig
from flowturbo.models.tokenizer import Tokenizer, short
from flowturbo.types import JsonObject

__all__ = [
    "ClassCondition",
    "Conditioning",
    "TextCondition",
    "conditioning_of",
    "misfits",
    "random_prompts",
]


class ClassCondition:
    """Conditions that are indices of labels; that of "" is the null condition.

    Args:
        entry: the entry "condition" of a card; missing labels refuse all but "".
        model: name of the model, for messages.
    """

    kind = "class"
    styles: list[str] = []  # noqa: RUF012 - classes have none
    groups: dict[str, list[str]] = {}  # noqa: RUF012
    tokenizer = None

    def __init__(self, entry: JsonObject, model: str = "unnamed") -> None:
        self.entry, self.model = entry, model

    @classmethod
    def of(cls, labels: Sequence[str]) -> ClassCondition:
        """The condition with these labels."""
        return cls({"kind": cls.kind, "labels": list(labels)})

    @property
    def names(self) -> list[str]:
        """The labels."""
        return list(self.entry.get("labels") or [])

    @property
    def network_options(self) -> JsonObject:
        """The number of classes."""
        return {"classes": len(self.names)}

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Indices (B,) of labels, each given by its name or, where no label has that name, its
        index.

        Raises:
            ValueError: for an unknown label; names the nearest.
        """
        return torch.tensor([self._index(p) for p in prompts], dtype=torch.long)

    def check_rows(self, cond: Tensor | None, images: int) -> None:
        """Refuse anything but one index of a label for each image."""
        classes = len(self.names)
        if cond is None or cond.ndim != 1 or cond.is_floating_point() or cond.is_complex():
            raise ValueError(f"cond: must be the indices ({images},) of classes")
        if cond.min() < 0 or cond.max() >= classes:
            raise ValueError(f"cond: from {cond.min()} to {cond.max()}, of {classes} classes")

    def describe(self, cond: Tensor) -> str:
        """Text for a message, after the number of images: ``", 2 classes: cat, dog"``."""
        labels = self.names
        text = f", {len(labels)} class{'es' * (len(labels) != 1)}: {excerpt(labels)}"
        empty = len(labels) - len(cond.unique())
        return text + f" ({empty} of them without images)" * (empty > 0)

    def covers(self, data: Conditioning) -> bool:
        """Whether the labels of ``data`` are the first here."""
        theirs = [*map(str, data.names)]
        return data.kind == self.kind and [*map(str, self.names)][: len(theirs)] == theirs

    def _index(self, label: str) -> int:
        plain = lambda name: normalize("NFC", str(name).strip())  # one spelling of each letter
        names, text = [plain(n) for n in self.names], plain(label)
        if text == "":
            return len(names)
        if text in names:
            return names.index(text)
        if text.isdecimal() and len(text) < 10 and int(text) < len(names):
            return int(text)
        if not names:
            raise ValueError(
                f"label {short(text)}: the card of model {self.model!r} lists none; list them "
                'under "labels" of its "condition"'
            )
        near = get_close_matches(text, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {excerpt(names)}"
        raise ValueError(
            f"label {short(text)}: model {self.model!r} has {len(names)} labels; {hint}"
        )


class TextCondition:
    """Conditions that are token ids of prompts; that of "" is the null condition.

    Args:
        entry: the entry "condition" of a card.
        model: name of the model, for messages.
        style_column: whether the number of the style comes before the ids.
    """

    kind = "text"

    def __init__(
        self, entry: JsonObject, model: str = "unnamed", *, style_column: bool = False
    ) -> None:
        self.entry, self.model, self.style_column = entry, model, style_column

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TextCondition:
        """The condition with this tokenizer."""
        return cls({"kind": cls.kind, "tokenizer": tokenizer.to_json()})

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Encodes prompts."""
        return Tokenizer.from_json(self.entry["tokenizer"])

    @property
    def names(self) -> list[str]:
        """Names to use in prompts: listed, or in groups; may be empty."""
        listed: list[str] = self.entry.get("prompts") or [*chain(*self.groups.values())]
        return list(listed)

    @property
    def styles(self) -> list[str]:
        """The styles that a prompt may ask for; may be empty."""
        return list(self.entry.get("styles", []))

    @property
    def groups(self) -> dict[str, list[str]]:
        """The names in groups; may be empty."""
        return dict(self.entry.get("groups", {}))

    @property
    def network_options(self) -> JsonObject:
        """The number of token ids, padding included, and how many are in a prompt."""
        tokenizer = self.entry["tokenizer"]
        return {"vocabulary": len(tokenizer["vocabulary"]) + 1, "text_length": tokenizer["length"]}

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, L), or (B, 1 + L) with the style before them.

        Raises:
            ValueError: for a prompt of unknown words, naming the nearest, or one that is too long.
        """
        apart = self.style_column
        parts = [split_style(p, self.styles) if apart else (p, 0) for p in prompts]
        texts = [text for text, _ in parts]
        check_words(texts, self.tokenizer, self.names, self.styles)
        ids = self.tokenizer.encode(texts)
        styles = torch.tensor([style for _, style in parts], dtype=torch.long)
        return torch.cat([styles[:, None], ids], dim=1) if apart else ids

    def check_rows(self, cond: Tensor | None, images: int) -> None:
        """Nothing: token ids come from the tokenizer."""

    def describe(self, cond: Tensor) -> str:
        """Text for a message, after the number of images: ``" with captions"``."""
        return " with captions"

    def covers(self, data: Conditioning) -> bool:
        """Whether ``data`` have the same vocabulary and length."""
        if not isinstance(data, TextCondition):
            return False
        mine, theirs = self.entry["tokenizer"], data.entry["tokenizer"]
        return all(mine[key] == theirs[key] for key in ("vocabulary", "length"))


Conditioning: TypeAlias = ClassCondition | TextCondition


def conditioning_of(
    entry: JsonObject | None, model: str = "unnamed", *, style_column: bool = False
) -> Conditioning | None:
    """The conditioning of the entry "condition" of a card; None if there is none.

    Args:
        entry: the entry "condition" of a card.
        model: name of the model, for messages.
        style_column: see `TextCondition`.
    """
    kind = (entry or {}).get("kind")
    if entry and kind == ClassCondition.kind:
        return ClassCondition(entry, model)
    if entry and kind == TextCondition.kind:
        return TextCondition(entry, model, style_column=style_column)
    return None


def misfits(about: Conditioning, config: SiTConfig) -> dict[str, int]:
    """The options of a network that do not fit a conditioning, with the values that it needs.

    A vocabulary may have room to spare.
    """
    wanted = about.network_options
    has = {name: getattr(config, name) for name in wanted}
    unequal = {k: n for k, n in wanted.items() if has[k] != n}
    return {k: n for k, n in unequal.items() if k != "vocabulary" or has[k] < n}


def random_prompts(about: Conditioning, n: int, generator: torch.Generator) -> list[str]:
    """Names in styles, ``n`` of them drawn evenly with replacement."""
    names, styles = about.names, about.styles or [""]
    which = torch.randint(len(names), (n,), generator=generator).tolist()
    how = torch.randint(len(styles), (n,), generator=generator).tolist()
    return [styled(names[i], styles[s]) for i, s in zip(which, how, strict=True)]
