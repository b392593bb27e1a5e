"""Makes the avatars data set: drawn people, and pairs of them that differ in one attribute.

    pip install -e . resvg-py
    python recipes/avatars/data.py --out avatars-data

needs ``npm`` and ``node``, and writes

- ``avatars.npz``: ``images`` (N, 64, 64, 3) uint8 on white, ``style`` (N,) and ``words`` (N, 3),
  indices into the styles and the words of each attribute;
- ``pairs.npz``: ``before`` and ``after`` (P, 64, 64, 3), ``edit`` (P,), ``style`` (P,),
  ``words`` (P, 2, 3), of people who are not in ``avatars.npz``;
- ``avatars.json``: ``styles``, ``attributes`` with their words, ``edits``, ``packages`` and
  ``counts``.

See README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from people import EDITS, LICENCES, PACKAGES, STYLES, WORDS, Person, count, draw, edited

from flowturbo.files import atomic_write, write_json

sys.path.append(str(Path(__file__).parents[1] / "emoji"))
from rendering import averaged, install, render

__all__ = ["load", "load_pairs", "people", "picked"]

SIZE = 64  # as kept; smaller images are averages
TRAINED, PAIRS = 5000, 32  # for each style, for each edit and style
SCRIPT = """
import { createAvatar } from '@dicebear/core';
import { createInterface } from 'node:readline';
for await (const line of createInterface({ input: process.stdin })) {
  const [style, options] = JSON.parse(line);
  console.log(JSON.stringify(createAvatar(await import(style), options).toString()));
}
"""


def load(folder: str | Path, size: int = 32) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Images (N, size, size, 3) uint8, style (N,), words (N, 3), and ``avatars.json``."""
    with np.load(Path(folder) / "avatars.npz") as file:
        images, style, words = file["images"], file["style"], file["words"]
    return averaged(images, size), style, words, _about(folder)


def load_pairs(folder: str | Path, size: int = 32) -> dict[str, Any]:
    """The arrays of ``pairs.npz``, images averaged, and ``mask`` (P, size, size) bool, the pixels
    that an edit changes.
    """
    _about(folder)
    with np.load(Path(folder) / "pairs.npz") as file:
        found = dict(file)
    found |= {name: averaged(found[name], size) for name in ("before", "after")}
    return found | {"mask": (found["before"] != found["after"]).any(-1)}


def _about(folder: str | Path) -> dict[str, Any]:
    """``avatars.json``; refused unless its styles and words are those of `people`."""
    path = Path(folder) / "avatars.json"
    about = json.loads(path.read_text("utf-8"))
    if (about["styles"], about["attributes"]) != (list(STYLES), _lists(WORDS)):
        raise ValueError(f"{path}: other styles or words than those of people.py; make it again")
    return about


def _lists(words: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {attribute: list(known) for attribute, known in words.items()}


def picked(pairs: int, trained: int, seed: int = 0) -> tuple[list[tuple[Person, Person]], Any]:
    """``pairs`` for each edit and style, and ``trained`` others of each style, nobody twice.

    Raises:
        ValueError: if a style has fewer people than twice as many.
    """
    wanted, most = trained + 2 * pairs * len(EDITS), min(map(count, STYLES)) // 2
    if wanted > most:
        raise ValueError(
            f"trained={trained}, pairs={pairs}: {wanted} people of each style, at most {most}; "
            "ask for fewer"
        )
    rng = random.Random(seed)
    held, seen = [], set()
    for edit in EDITS:
        for style in STYLES:
            for _ in range(pairs):
                while not seen.isdisjoint(pair := edited(edit, style, rng)):
                    pass
                held.append(pair)
                seen.update(pair)
    chosen = []
    for style in STYLES:
        for _ in range(trained):
            while (person := draw(style, rng)) in seen:
                pass
            chosen.append(person)
            seen.add(person)
    return held, chosen


def people(modules: Path, chosen: Sequence[Person]) -> Any:
    """The people drawn, (N, 64, 64, 3) uint8; with the packages in ``modules``."""
    lines = [json.dumps([STYLES[p.style], p.options()]) for p in chosen]
    drawn = subprocess.run(
        ["node", "--input-type=module", "--eval", SCRIPT],
        cwd=modules.parent, input="\n".join(lines), stdout=subprocess.PIPE, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return np.stack([render(json.loads(svg), SIZE) for svg in drawn])


def make(modules: Path, out: Path, pairs: int, trained: int) -> dict[str, Any]:
    """Draws all of it into ``out``; returns what stands in ``avatars.json``."""
    held, chosen = picked(pairs, trained)
    before, after = zip(*held, strict=True)
    styles, edits = list(STYLES), list(EDITS)
    place = lambda persons: np.array([styles.index(p.style) for p in persons], np.int8)
    words = lambda persons: np.array([p.words for p in persons], np.int8)
    about = {
        "styles": styles,
        "attributes": _lists(WORDS),
        "edits": {edit: attribute for edit, (attribute, _, _) in EDITS.items()},
        "packages": {p: {"version": v, "licence": LICENCES[p]} for p, v in PACKAGES.items()},
        "counts": {"images": len(chosen), "pairs": len(held)},
    }
    arrays = {
        "pairs.npz": {
            "before": people(modules, before),
            "after": people(modules, after),
            "edit": np.repeat(np.arange(len(edits), dtype=np.int8), pairs * len(styles)),
            "style": place(before),
            "words": np.stack([words(before), words(after)], 1),
        },
        "avatars.npz": {
            "images": people(modules, chosen), "style": place(chosen), "words": words(chosen),
        },
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for name, found in arrays.items():
        with atomic_write(out / name) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **found)
    write_json(out / "avatars.json", about)
    return about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--images", type=int, default=TRAINED, help="of each style, to train on")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of each edit and style")
    parser.add_argument("--modules", type=Path, help="a node_modules that has the packages already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        modules = options.modules or install(Path(folder), PACKAGES)
        about = make(modules.resolve(), options.out, options.pairs, options.images)
    print(json.dumps(about["counts"]))


if __name__ == "__main__":
    main()
