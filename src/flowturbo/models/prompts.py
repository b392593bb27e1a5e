"""Prompts as people write them: with a style, with words that the model does not know.

A caption ends with its style, ``"tiger, noto style"``; what a model draws is on its card, as names
in groups, and is what it suggests where a word is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from flowturbo.checks import warn
from flowturbo.models.tokenizer import Tokenizer, nearest, short, words

__all__ = ["check_words", "names_of", "said_style", "split_style", "styled"]


def styled(prompt: str, style: str = "") -> str:
    """A prompt in a style as captions say it: ``"tiger, noto style"``; in none, as it is."""
    return ", ".join(p for p in (prompt, f"{style} style" if style else "") if p.strip())


def said_style(prompt: str, styles: Sequence[str]) -> str | None:
    """The style that a prompt asks for itself, if any."""
    text = f" {' '.join(words(prompt))} "
    return next((s for s in styles if f" {s} style " in text), None)


def split_style(prompt: str, styles: Sequence[str]) -> tuple[str, int]:
    """A prompt without the style that it asks for, and that style's number from 1; 0 for none."""
    said = said_style(prompt, styles)
    if said is None:
        return prompt, 0
    ending = re.compile(rf"[\s,]*\b{re.escape(said)}\s+style\b", re.IGNORECASE)
    return ending.sub("", prompt), styles.index(said) + 1


def names_of(condition: Mapping[str, Any]) -> list[str]:
    """What a model draws, of the "condition" on its card: labels, prompts, or names in groups."""
    grouped = chain.from_iterable(condition.get("groups", {}).values())
    return [*(condition.get("labels") or condition.get("prompts") or grouped)]


def check_words(
    prompts: Sequence[str], tokenizer: Tokenizer, names: Sequence[str], styles: Sequence[str]
) -> None:
    """Warn of unknown words, in one line for all prompts.

    Raises:
        ValueError: if a prompt has no known word but its style; names the closest known.
    """
    missed: dict[str, None] = {}
    said = "|".join(map(re.escape, ["style", *styles]))
    ending = re.compile(rf"[\s,]|\b({said})\b")
    for prompt in dict.fromkeys(prompts):
        known, unknown = tokenizer.sort(prompt)
        if not set(known) - {"style", *styles} and ending.sub("", prompt.lower()):
            near = nearest(unknown, names, tokenizer.whole)
            raise ValueError(f"prompt {short(prompt)}: no word of it is known; {near}")
        missed.update(dict.fromkeys(unknown))
    if missed:
        listed = ", ".join(map(short, [*missed][:8]))
        near = nearest([*missed], names, tokenizer.whole)
        warn(f"prompt words not known: {listed}; {near}")
