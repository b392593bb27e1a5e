"""People to draw: their attributes, words for these, and the options of DiceBear that draw them.

An attribute has a few words, and a word has one look in each style. A caption and the other
features of a person (`Person.rest`) therefore determine the image, and the true result of an edit
that changes one word is known.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = [
    "EDITS", "LICENCES", "PACKAGES", "STYLES", "WORDS", "Person", "caption", "count", "draw",
    "edited", "sentence",
]  # fmt: skip

PACKAGES = {
    "@dicebear/core": "9.4.3",
    "@dicebear/pixel-art": "9.4.3",
    "@dicebear/open-peeps": "9.4.3",
    "@dicebear/lorelei": "9.4.3",
}
LICENCES = {
    "@dicebear/core": "MIT",
    "@dicebear/pixel-art": "CC0-1.0 (design), MIT (code)",
    "@dicebear/open-peeps": "CC0-1.0 (design), MIT (code)",
    "@dicebear/lorelei": "CC0-1.0 (design), MIT (code)",
}
STYLES = {
    "pixel": "@dicebear/pixel-art",
    "peeps": "@dicebear/open-peeps",
    "lorelei": "@dicebear/lorelei",
}
WORDS = {
    "hair": (
        "short hair", "long hair", "a bob", "a bun", "curly hair", "a mohawk", "a bald head",
    ),
    "glasses": ("no glasses", "round glasses", "square glasses", "sunglasses"),
    "mouth": ("a smile", "a frown", "an open mouth"),
}  # fmt: skip
NO_GLASSES = WORDS["glasses"][0]
# For each style and attribute: the option of DiceBear, and its value for each of the words.
LOOKS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "pixel": {
        "hair": (
            "hair",
            ("short17", "long13", "long04", "long05", "long15", "short21", "short18"),
        ),
        "glasses": ("glasses", ("", "light07", "light02", "dark06")),
        "mouth": ("mouth", ("happy09", "sad01", "happy01")),
    },
    "peeps": {
        "hair": (
            "head",
            ("short3", "long", "bangs2", "grayBun", "dreads2", "mohawk", "noHair3"),
        ),
        "glasses": ("accessories", ("", "glasses5", "glasses3", "sunglasses")),
        "mouth": ("face", ("smile", "veryAngry", "explaining")),
    },
    "lorelei": {
        "hair": (
            "hair",
            ("variant01", "variant35", "variant13", "variant14", "variant05", "variant27",
             "variant25"),
        ),
        "glasses": ("glasses", ("", "variant01", "variant04", "variant02")),
        "mouth": ("mouth", ("happy05", "sad07", "sad01")),
    },
}  # fmt: skip


def _variants(*numbers: int) -> tuple[str, ...]:
    return tuple(f"variant{n:02}" for n in numbers)


SKIN = (  # of Pixel Art, then of Open Peeps
    "ffdbac", "f5cfa0", "eac393", "e0b687", "cb9e6e", "b68655", "a26d3d", "8d5524",
    "ffdbb4", "edb98a", "d08b5b", "ae5d29", "694d3d",
)  # fmt: skip
CLOTHES = (
    "5bc0de", "428bca", "03396c", "88d8b0", "44c585", "00b159", "ff6f69", "d11141", "ae0001",
    "ffeead", "ffd969", "ffc425",
)  # fmt: skip
# What no caption names, drawn at random: options of DiceBear and their values.
REST: dict[str, dict[str, tuple[str, ...]]] = {
    "pixel": {
        "skinColor": SKIN,
        "clothingColor": CLOTHES,
        "hairColor": ("cab188", "603a14", "a78961", "611c17", "28150a", "009bbd", "bd1700"),
        "clothing": _variants(1, 3, 12, 13, 17),
        "eyes": _variants(1, 4, 6, 7, 8),
        "eyesColor": ("76778b", "5b7c8b", "588387", "876658"),
    },
    "peeps": {"skinColor": SKIN, "clothingColor": CLOTHES},
    "lorelei": {
        "eyes": _variants(4, 7, 9, 13, 16, 18, 20, 21),
        "eyebrows": _variants(1, 3, 4, 8, 10, 13),
        "head": _variants(1, 2, 3, 4),
        "nose": _variants(1, 2, 3, 4),
    },
}
# The same for all of a style. Lorelei and Open Peeps are moved and enlarged, so that the face fills
# the image.
COMMON: dict[str, dict[str, Any]] = {
    "pixel": {
        "accessoriesProbability": 0, "beardProbability": 0, "hatProbability": 0,
        "glassesColor": ["191919"], "mouthColor": ["de0f0d"],
    },
    "peeps": {
        "facialHairProbability": 0, "maskProbability": 0, "headContrastColor": ["000000"],
        "scale": 125, "translateX": -4,
    },
    "lorelei": {
        "beardProbability": 0, "earringsProbability": 0, "frecklesProbability": 0,
        "hairAccessoriesProbability": 0, "scale": 140, "translateY": 8,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """Somebody in one style.

    Attributes:
        style: of `STYLES`.
        words: indices in `WORDS`, in the order of the attributes.
        rest: values of the options in `REST`.
    """

    style: str
    words: tuple[int, ...]
    rest: tuple[str, ...]

    def named(self) -> dict[str, str]:
        """The word of each attribute."""
        return {a: words[i] for (a, words), i in zip(WORDS.items(), self.words, strict=True)}

    def changed(self, attribute: str, word: str) -> Person:
        """The same person with another ``word`` for an attribute."""
        place = list(WORDS).index(attribute)
        words = list(self.words)
        words[place] = WORDS[attribute].index(word)
        return replace(self, words=tuple(words))

    def options(self) -> dict[str, Any]:
        """What DiceBear draws them from, with nothing left to its chance."""
        found: dict[str, Any] = {"seed": "", **COMMON[self.style]}
        found |= {k: [v] for k, v in zip(REST[self.style], self.rest, strict=True)}
        for (option, looks), i in zip(LOOKS[self.style].values(), self.words, strict=True):
            found[option] = [looks[i]]
        glasses = LOOKS[self.style]["glasses"][0]
        found[f"{glasses}Probability"] = 100 if self.named()["glasses"] != NO_GLASSES else 0
        return found


def draw(style: str, rng: random.Random) -> Person:
    """Anybody."""
    words = tuple(rng.randrange(len(words)) for words in WORDS.values())
    return Person(style, words, tuple(rng.choice(values) for values in REST[style].values()))


def count(style: str) -> int:
    """How many different people a style has."""
    return math.prod(map(len, (*WORDS.values(), *REST[style].values())))


def sentence(words: Mapping[str, str]) -> str:
    """The full caption: ``"a person with short hair, round glasses and a smile"``."""
    return f"a person with {words['hair']}, {words['glasses']} and {words['mouth']}"


def caption(person: Person, rng: random.Random) -> str:
    """A random caption: the full one, or its words in any order, some perhaps left out."""
    words = person.named()
    if rng.random() < 0.5:
        return sentence(words)
    return ", ".join(rng.sample(list(words.values()), rng.choice((1, 2, 3, 3))))


# What is changed, and from which words to which. What lenses hide cannot be known, so sunglasses
# are put on and not taken off.
EDITS = {
    "glasses on": ("glasses", WORDS["glasses"][:1], WORDS["glasses"][1:]),
    "glasses off": ("glasses", WORDS["glasses"][1:3], WORDS["glasses"][:1]),
    "hair": ("hair", WORDS["hair"], WORDS["hair"]),
    "mouth": ("mouth", WORDS["mouth"], WORDS["mouth"]),
}


def edited(edit: str, style: str, rng: random.Random) -> tuple[Person, Person]:
    """Somebody before and after one of `EDITS`."""
    attribute, before, after = EDITS[edit]
    first = draw(style, rng).changed(attribute, rng.choice(before))
    others = [word for word in after if word != first.named()[attribute]]
    return first, first.changed(attribute, rng.choice(others))
