"""Images of the same things in icon sets that nothing was trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from concepts import bare, read_codes, read_icons, squash
from names import OTHERS
from rendering import render

__all__ = ["other_pictures"]


def other_pictures(
    modules: Path, concepts: Sequence[dict[str, Any]], wanted: Sequence[int]
) -> tuple[Any, list[str], list[int]]:
    """Images (N, 64, 64, 3) uint8, the set of each, and its place in ``wanted``.

    Args:
        modules: a ``node_modules`` with the packages of `names.OTHERS`.
        concepts: of the data set.
        wanted: indices of concepts.
    """
    by_emoji = {bare(concepts[c]["emoji"]): i for i, c in enumerate(wanted)}
    by_name = {squash(n): i for i, c in enumerate(wanted) for n in concepts[c]["others"]}
    by_name |= {squash(concepts[c]["name"]): i for i, c in enumerate(wanted)}
    images, sets, places = [], [], []
    for package in OTHERS:
        read = lambda name, p=package: json.loads((modules / p / name).read_text("utf-8"))
        codes = read_codes(read("chars.json"))  # empty in emojione: joined by name
        found: dict[int, str] = {}
        for icon, svg in read_icons(read("icons.json"), Counter()):
            place = by_emoji.get(codes.get(icon, "")) if codes else by_name.get(squash(icon))
            if place is not None:
                found.setdefault(place, svg)
        for place, svg in sorted(found.items()):
            images.append(render(svg, 64))
            sets.append(package.rpartition("/")[2])
            places.append(place)
    return np.stack(images), sets, places
