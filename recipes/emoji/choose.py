"""The 100 names that a classifier distinguishes in generated images, chosen by rule.

    python recipes/emoji/choose.py --data emoji-data

writes ``judged.txt``. It was run before any image was generated. The rule: first those of
`names.HELD_NAMES`; then, repeatedly, among the concepts that are Unicode emoji, are drawn in all
five styles and are of a family not chosen yet, the one least similar to those already chosen. The
similarity of two concepts is the greatest cosine between the centred EfficientNet-Lite0 features of
any two of their images. Until 60 are chosen, only concepts with a pair held out of training are
considered, so that many such pairs are judged.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from data import load
from names import HELD_NAMES
from torch import Tensor

from flowturbo.evaluate.features import EffNetFeatures

__all__ = ["FILE", "choose", "judged"]

FILE = Path(__file__).with_name("judged.txt")
NAMES, WITH_HELD, STYLES = 100, 60, 5


def judged(concepts: Sequence[dict[str, Any]]) -> list[int]:
    """The indices of the names in ``judged.txt``."""
    place = {c["name"]: i for i, c in enumerate(concepts)}
    return [place[name] for name in FILE.read_text("utf-8").splitlines()]


def choose(features: Tensor, concept: Sequence[int], about: dict[str, Any]) -> list[str]:
    """Names, in the order chosen; features (N, D) and concepts (N,) of the real pictures."""
    concepts, held = about["concepts"], {c for c, _ in about["held"]}
    drawn = Counter(map(int, concept))
    able = [i for i, c in enumerate(concepts) if drawn[i] == STYLES and c["subgroup"]]
    unit = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    of = torch.as_tensor([int(c) for c in concept])
    stacked = torch.stack([unit[of == i] for i in able])
    alike = torch.einsum("asd,btd->abst", stacked, stacked).amax((2, 3))
    name = [concepts[i]["name"] for i in able]
    family = [concepts[i]["family"] for i in able]
    chosen = [name.index(n) for n in HELD_NAMES]
    while len(chosen) < NAMES:
        taken = {family[a] for a in chosen}
        pool = [
            a
            for a, i in enumerate(able)
            if family[a] not in taken and (len(chosen) >= WITH_HELD or i in held)
        ]
        chosen.append(min(pool, key=lambda a: (float(alike[a, chosen].max()), name[a])))
    return [name[a] for a in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that data.py made")
    images, concept, _, about = load(parser.parse_args().data)
    features = EffNetFeatures()(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    FILE.write_text("\n".join(choose(features, concept, about)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
