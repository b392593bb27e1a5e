"""The notation of plans: ``H1P5R3``, ``[H1P1R1]x2``, ``AB2:8``, ``UNIPC2:8``, ``RK4:2@1.6``."""

from __future__ import annotations

import re

from flowturbo.checks import shown
from flowturbo.plan.checks import LIMIT
from flowturbo.plan.solvers import SOLVERS
from flowturbo.plan.solvers.flowturbo import BLOCKS

__all__ = ["parse"]


def _named(counts: str) -> str:
    return ", ".join(s.name for s in SOLVERS.values() if s.counts == counts)


_LETTERS = "".join(BLOCKS)
ALLOWED = (
    f"allowed: blocks of {', '.join(BLOCKS)}, such as H1P5R3 or [H1P1R1]x2; "
    f"{_named('evaluations')} with evaluations, such as AB2:8, or AB2:FFCR with full, "
    f"conditional and refiner ones; {_named('steps')} with steps, such as RK4:2; all with an "
    "optional shift, as @1.6"
)
_SOLVER = re.compile(rf"({'|'.join(map(re.escape, SOLVERS))}):([0-9]+|F[FCR]*)")
_TOKEN = re.compile(rf"([{_LETTERS}])([0-9]+)|(\[)|\]X([0-9]+)")
LONGEST = 2000  # characters


def parse(text: str) -> tuple[str, str | int, float | None, str]:
    """``text`` as (solver, count, shift, pattern); blocks as ("H1P5R3", "HPPPPPRRR", shift, "").

    Raises:
        ValueError: one line that shows the text, where it goes wrong, and what is allowed.
    """
    if not isinstance(text, str):
        raise ValueError(f"plan {shown(text)}: must be a string; {ALLOWED}")
    if len(text) > LONGEST:
        raise ValueError(f"plan of {len(text)} characters, {text[:20]!r}...: at most {LONGEST}")
    whole = "".join(text.split())  # as shown in messages
    body, at, suffix = (whole.upper() if whole.isascii() else whole).partition("@")
    shift = None
    if at:
        try:
            shift = float(suffix)
        except ValueError:
            raise _wrong(whole, len(body) + 1, "a number for the shift") from None
    if ":" not in body:
        return body.replace("X", "x"), _expand(whole, body), shift, ""
    match = _SOLVER.fullmatch(body)
    if match is None:
        head = body.partition(":")[0]
        if _SOLVER.fullmatch(f"{head}:1"):
            raise _wrong(whole, len(head) + 1, "a whole number, or F, C and R from an F on,")
        raise _wrong(whole, 0, "a known solver")
    name, count = match.groups()
    if not count.isdigit():
        solver = SOLVERS[name]
        if solver.evaluations != 1 or solver.extra:
            raise _wrong(whole, match.start(2), "a whole number")
        if len(count) > LIMIT:
            raise _wrong(whole, match.start(2), f"at most {LIMIT} evaluations in all")
        return name, len(count), shift, count
    return name, _count(whole, match.start(2), count), shift, ""


def _expand(whole: str, body: str) -> str:
    """The letters of the blocks of ``body``, repeats written out."""
    levels = [""]  # the letters so far, outermost bracket first
    opened: list[int] = []
    at = 0
    while at < len(body):
        match = _TOKEN.match(body, at)
        if match is None:
            raise _wrong(whole, at, "a block with its count, '[' or ']x' with its count")
        letter, count, bracket, repeats = match.groups()
        if bracket:
            opened.append(at)
            levels.append("")
        else:
            if repeats is not None and not opened:
                raise _wrong(whole, at, "no ']' without its '['")
            part = letter or levels.pop()
            if not part:
                raise _wrong(whole, at, "blocks inside the brackets")
            if repeats is not None:
                opened.pop()
            n = _count(whole, match.end() - len(count or repeats), count or repeats)
            if n * len(part) + len(levels[-1]) > LIMIT:
                raise _wrong(whole, at, f"at most {LIMIT} evaluations in all")
            levels[-1] += part * n
        at = match.end()
    if opened:
        raise _wrong(whole, opened[-1], "']x' with its count for every '['")
    if not levels[0]:
        raise _wrong(whole, 0, "at least one block")
    if levels[0][0] == "R":
        raise _wrong(whole, body.index("R"), "a block before the first R (it refines a velocity)")
    if sum(BLOCKS[letter].cost for letter in levels[0]) > LIMIT:
        raise _wrong(whole, 0, f"at most {LIMIT} evaluations in all")
    return levels[0]


def _count(whole: str, at: int, digits: str) -> int:
    if len(digits) > 9 or not 1 <= int(digits) <= LIMIT:
        raise _wrong(whole, at, f"a count from 1 to {LIMIT}")
    return int(digits)


def _wrong(whole: str, at: int, expected: str) -> ValueError:
    shown = whole if len(whole) <= 60 else whole[:57] + "..."
    rest = whole[at:][:20] or "the end"
    return ValueError(
        f"plan {shown!r}: expected {expected} at {rest!r} (character {at + 1}); {ALLOWED}"
    )
