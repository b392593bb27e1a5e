"""Prompts as people write them: with a style, or with words that the model does not know.

A caption ends with its style: ``"tiger, noto style"``. If a word is unknown, the nearest names that
the model knows are suggested.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from difflib import get_close_matches

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.files import printable
from flowturbo.models.tokenizer import Tokenizer, nearest, short, words

__all__ = [
    "as_prompt",
    "as_prompts",
    "check_words",
    "excerpt",
    "in_style",
    "requested_style",
    "split_style",
    "styled",
]


def styled(prompt: str, style: str = "") -> str:
    """A prompt in a style, as in captions: ``"tiger, noto style"``; without one, as it is."""
    return ", ".join(p for p in (prompt, f"{style} style" if style else "") if p.strip())


def requested_style(prompt: str, styles: Sequence[str]) -> str | None:
    """The style that a prompt itself asks for, if any."""
    text = f" {' '.join(words(prompt))} "
    return next((s for s in styles if f" {s} style " in text), None)


def split_style(prompt: str, styles: Sequence[str]) -> tuple[str, int]:
    """A prompt without the style that it asks for, and that style's number from 1; 0 for none."""
    found = requested_style(prompt, styles)
    if found is None:
        return prompt, 0
    ending = re.compile(rf"[\s,]*\b{re.escape(found)}\s+style\b", re.IGNORECASE)
    return ending.sub("", prompt), styles.index(found) + 1


def in_style(prompt: str, style: str, styles: Sequence[str], model: str) -> str:
    """A prompt in a style: ``"red apple"`` in ``"noto"`` is ``"red apple, noto style"``.

    Raises:
        ValueError: if ``model`` has no such style, or the prompt asks for another itself.
    """
    for name, value in (("prompt", prompt), ("style", style)):
        if not isinstance(value, str):
            raise ValueError(f"{name}={shown(value)}: must be a text")
    if not styles:
        raise ValueError(f"style {short(style)}: model {model!r} has no styles; leave it out")
    if style not in styles:
        near = get_close_matches(style, styles, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"style {short(style)}: not a style of model {model!r}; {hint}"
            f"styles: {', '.join(styles)}"
        )
    found = requested_style(prompt, styles)
    if found not in (None, style):
        raise ValueError(
            f"style {style!r}: prompt {short(prompt)} asks for {found} itself; leave one out"
        )
    return prompt if found else styled(prompt, style)


def check_words(
    prompts: Sequence[str], tokenizer: Tokenizer, names: Sequence[str], styles: Sequence[str]
) -> None:
    """Warn of unknown words, in one line for all prompts.

    Raises:
        ValueError: if a prompt has no known word other than its style; names the closest known.
    """
    missed: dict[str, None] = {}
    ending = re.compile(rf"[\s,]|\b({'|'.join(map(re.escape, ['style', *styles]))})\b")
    for prompt in dict.fromkeys(prompts):
        known, unknown = tokenizer.sort(prompt)
        if not set(known) - {"style", *styles} and ending.sub("", prompt.lower()):
            near = nearest(unknown, names, tokenizer.whole)
            raise ValueError(f"prompt {short(prompt)}: no word of it is known; {near}")
        missed.update(dict.fromkeys(unknown))
    if missed:
        listed = ", ".join(map(short, [*missed][:8]))
        near = nearest([*missed], names, tokenizer.whole)
        checks.warn(f"prompt words not known: {listed}; {near}")


def as_prompts(prompts: object) -> list[str]:
    """Prompts, or labels and their indices, as texts.

    Raises:
        ValueError: if it is not a list, or contains anything else.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts={shown(prompts)}: pass a list of them, [{shown(prompts)}]")
    try:
        listed = None if isinstance(prompts, (bytes, Mapping, Set)) else list(prompts)  # type: ignore[call-overload]
    except (TypeError, RuntimeError):  # of nested tensors
        listed = None
    if listed is None:
        raise ValueError(f"prompts={shown(prompts)}: must be a list of labels or prompts")
    return [as_prompt(f"prompts[{i}]", prompt) for i, prompt in enumerate(listed)]


def as_prompt(name: str, prompt: object) -> str:
    """A prompt, or a label or its index, as a text; ``name`` is that of the argument."""
    if isinstance(prompt, str):
        return prompt
    try:
        return str(checks.whole(name, prompt))
    except ValueError:
        raise ValueError(
            f"{name}={shown(prompt)}: must be a text, or a whole number of a label"
        ) from None


def excerpt(names: Sequence[str], most: int = 12) -> str:
    """The first of some names, and their total number, for a message."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more
