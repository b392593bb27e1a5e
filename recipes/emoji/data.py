"""Makes the emoji data set: images of five open icon sets, matched by what they show.

    pip install flowturbo resvg-py
    python recipes/emoji/data.py --out emoji-data

needs ``npm`` and writes ``emoji64.npz`` (``images`` (N, 64, 64, 3) uint8 on white, ``concept`` (N,)
and ``style`` (N,): indices) and ``emoji.json`` (``concepts``, ``styles``, ``held`` pairs of indices
never to be trained on, ``packages``, ``counts``). See README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from concepts import Concept, join, plain, read_table
from names import BROKEN, HELD_NAMES, LICENCES, PACKAGES, STYLES
from rendering import averaged, install, render

from flowturbo.models.prompts import styled

__all__ = ["aliases", "canonical", "caption", "hold_out", "load", "weights"]

# The same designs in three renderings: held out together, and one look when counting looks.
ALIKE = {"flat": "fluent", "3d": "fluent"}
LONGEST = 16  # words in a caption


def canonical(concept: Concept, style: str = "") -> str:
    """The caption that says it plainly: ``"tiger, noto style"``."""
    return styled(concept["name"], style)


def caption(concept: Concept, style: str, rng: random.Random) -> str:
    """A random caption: the name or another name, or with keywords or the kind of thing, or these
    alone; the style at the end, but for one in five, so that a prompt may leave it out. At most
    `LONGEST` words.
    """
    name = concept["name"]
    said = style if rng.random() < 0.8 else ""
    keywords = list(concept["keywords"])
    kind = plain(concept["subgroup"] or concept["group"])
    some = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
    form = rng.random()
    if form < 0.1 and concept["others"]:
        parts = [rng.choice(concept["others"])]
    elif form < 0.5:
        parts = [name]
    elif form < 0.75:
        parts = [name, *some]
    elif form < 0.9 or len(keywords) < 2:
        parts = [name, kind]
    else:
        parts = [kind, *rng.sample(keywords, min(len(keywords), rng.randint(2, 4)))]
    parts = [p for p in parts if p]
    made = styled(", ".join(parts), said)
    while len(parts) > 1 and len(re.findall("[a-z0-9]+", made)) > LONGEST:
        parts.pop()
        made = styled(", ".join(parts), said)
    return made


def aliases(concepts: Iterable[Concept]) -> dict[str, str]:
    """Emoji to name, for the tokenizer."""
    return {c["emoji"]: c["name"] for c in concepts if c["emoji"]}


def weights(concepts: Sequence[Concept], concept: Sequence[int], style: Sequence[int]) -> Any:
    """How often to draw each picture: (N,) float64 that sum to 1.

    A concept weighs ``sqrt(looks / f)``, shared evenly by its pictures: ``looks`` is the number of
    different-looking styles among them (1 to 3) and ``f`` the number of concepts here in its
    family. So four pictures of a tiger come up not four times but 1.7 times as often as the only
    picture of an orca, and the 27 clocks together as often as five other things. What is
    no Unicode emoji (mostly folders, notes and floppy disks of one set) counts half. Drawn evenly,
    people would be 20 % of all pictures and signs 14 %; drawn so, they are 14 % and 7 %.
    """
    styles = list(STYLES)
    looks: dict[int, set[str]] = {}
    for c, s in zip(concept, style, strict=True):
        looks.setdefault(int(c), set()).add(ALIKE.get(styles[s], styles[s]))
    families = Counter(concepts[c]["family"] for c in looks)
    pictures = Counter(int(c) for c in concept)
    raw = np.empty(len(concept))
    for i, c in enumerate(map(int, concept)):
        share = 1.0 if concepts[c]["subgroup"] else 0.5
        raw[i] = share * math.sqrt(len(looks[c]) / families[concepts[c]["family"]]) / pictures[c]
    return raw / raw.sum()


def hold_out(
    pairs: Iterable[tuple[str, str]], share: float = 0.05, seed: int = 0
) -> set[tuple[str, str]]:
    """(name, style) pairs never to be trained on: those of `names.HELD_NAMES`, and others at random
    up to ``share`` of all.

    Every name held out stays in a style that looks different, and loses one look at most.
    """
    looks: dict[str, dict[str, list[str]]] = {}
    for name, style in sorted(pairs):
        looks.setdefault(name, {}).setdefault(ALIKE.get(style, style), []).append(style)
    target = share * sum(len(styles) for x in looks.values() for styles in x.values())
    held = {(n, s) for n, styles in HELD_NAMES.items() if len(looks.get(n, ())) > 1 for s in styles}
    others = [n for n in looks if len(looks[n]) > 1 and n not in HELD_NAMES]
    rng = random.Random(seed)
    rng.shuffle(others)
    for name in others:
        if len(held) >= target:
            break
        held |= {(name, s) for s in looks[name][rng.choice(list(looks[name]))]}
    return held


def load(folder: str | Path, size: int = 64) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Images (N, size, size, 3) uint8, concept (N,), style (N,), and ``emoji.json``.

    Sizes below 64 are averages over squares of pixels; larger ones are read as they were made.
    """
    with np.load(Path(folder) / f"emoji{max(size, 64)}.npz") as file:
        images, concept, style = file["images"], file["concept"], file["style"]
    about = json.loads((Path(folder) / "emoji.json").read_text("utf-8"))
    return averaged(images, size), concept, style, about


def make(icons: Path, out: Path, size: int) -> dict[str, Any]:
    """Renders all of it into ``out``; returns what stands in ``emoji.json``."""
    table = read_table(Path(__file__).with_name("fxemoji.txt"))
    concepts, pictures, left_out = join(icons, table)
    images: dict[tuple[str, str], Any] = {}
    seen: dict[tuple[str, bytes], str] = {}
    for (name, style), (icon, svg) in pictures.items():
        if (style, icon) in BROKEN:
            left_out["broken"] += 1
            continue
        image = render(svg, size)
        if (image < 250).any(axis=2).mean() < 0.005:
            left_out["blank"] += 1
        elif seen.setdefault((style, image.tobytes()), name) != name:
            left_out["same picture as another concept of the style"] += 1
        else:
            images[name, style] = image
    used = {name for name, _ in images}
    concepts = [c for c in concepts if c["name"] in used]
    place = {c["name"]: i for i, c in enumerate(concepts)}
    styles = list(STYLES)
    order = sorted(images, key=lambda p: (place[p[0]], styles.index(p[1])))
    held = sorted((place[n], styles.index(s)) for n, s in hold_out(order))
    per_style = Counter(s for _, s in order)
    about = {
        "concepts": concepts,
        "styles": styles,
        "held": held,
        "held_names": {n: list(s) for n, s in HELD_NAMES.items()},
        "packages": {p: {"version": v, "licence": LICENCES[p]} for p, v in PACKAGES.items()},
        "counts": {
            "pictures": len(order),
            "concepts": len(concepts),
            "held": len(held),
            "styles": {s: per_style[s] for s in styles},
            "left out": dict(left_out),
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / f"emoji{size}.npz",
        images=np.stack([images[p] for p in order]),
        concept=np.array([place[n] for n, _ in order], np.int16),
        style=np.array([styles.index(s) for _, s in order], np.int8),
    )
    text = json.dumps(about, ensure_ascii=False, indent=1)
    (out / "emoji.json").write_text(text + "\n", "utf-8")
    return about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--icons", type=Path, help="a node_modules that has the packages already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        about = make(args.icons or install(Path(folder), PACKAGES), args.out, args.size)
    print(json.dumps(about["counts"], indent=1))


if __name__ == "__main__":
    main()
