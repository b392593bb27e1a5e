"""Judges a trained `emoji`: are its images of the requested name and style, or from memory?

    pip install -e '.[eval]' resvg-py
    python recipes/emoji/data.py --out emoji-data
    python recipes/emoji/judge.py --data emoji-data --model runs/emoji --out runs/judged \\
        --record benchmarks/records/emoji-judged.json --images docs/images

needs `npm` (or `--others`, a `node_modules` folder that has the packages of `names.OTHERS`). Images
and results are kept in `--out`, so that an interrupted run can be resumed. `--sheet` makes the
sheet of ten names and stops. With `--model real` or `--model rough` real images are used in place
of generated ones, unchanged or roughened: the results of a perfect model, and of a slightly uneven
one.

- *Names*: a classifier among the 100 names of `choose.py`, trained on their 500 real images and
  distorted copies, checked on 300 images of three icon sets that it was not trained on.
- *Styles*: a classifier checked on all images of the 100 names and of 300 other concepts, trained
  on those of the rest, so that it has seen none of the judged names.
- *FD-EffNet*: 5,000 images generated for the pairs of 5,000 training images, against the training
  set, and against the rest of it; the floor is that of these 5,000 training images themselves
  against the rest.
- *Memory*: the nearest training image of each generated one, compared with that of real held-out
  images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from classifiers import Names, distort, roughen
from drawn import FIRST_SEED, Model, Real, Source, draw, pairs_to_draw, to_images, to_pictures
from measure import confusion, frechet, memory, share, top
from names import OTHERS
from others import other_pictures
from real import Pictures
from rendering import install
from sheet import save_nearest, save_sheet
from styles import Styles

from flowturbo import __version__
from flowturbo.files import check_writable, write_json

COPIES, OTHER_CONCEPTS = 3, 300
LOOKS = {"noto": [0], "fluent, flat, 3d": [1, 2, 4], "fx": [3]}  # those three share designs


def train_names(real: Pictures, others: Path | None) -> tuple[Names, dict[str, Any]]:
    """The classifier of names, and how it does on pictures that it was not trained on."""
    place = {c: i for i, c in enumerate(real.names)}
    rows = torch.isin(real.concept, torch.tensor(real.names)).nonzero()[:, 0]
    pictures, generator = to_pictures(real.images[rows]), torch.Generator().manual_seed(0)
    copies = torch.cat([distort(pictures, generator) for _ in range(COPIES)])
    features = torch.cat([real.features[rows], real.see("distorted", to_images(copies))])
    labels = torch.tensor([place[c] for c in real.concept[rows].tolist()]).repeat(COPIES + 1)
    styles, true = real.style[rows].repeat(COPIES + 1), torch.arange(len(labels)) < len(rows)
    names = Names(features, labels)

    with tempfile.TemporaryDirectory() as folder:
        modules = others or install(Path(folder), OTHERS)
        images, sets, places = other_pictures(modules, real.about["concepts"], real.names)
    other, right = real.see("others", images), torch.tensor(places)
    checked = {"all": top(names, other, right)}
    for name in dict.fromkeys(sets):
        of = torch.tensor([s == name for s in sets])
        checked[name] = top(names, other[of], right[of])
    apart = {}
    for look, which in LOOKS.items():
        left = torch.isin(styles, torch.tensor(which))
        without = Names(features[~left], labels[~left])
        apart[look] = top(without, features[left & true], labels[left & true])
    return names, {
        "names": [real.about["concepts"][c]["name"] for c in real.names],
        "trained on": f"{len(rows)} real pictures and {COPIES} distorted copies of each",
        "checked on other sets": checked,
        "trained without a look, checked on it": apart,
    }


def train_styles(real: Pictures, out: Path) -> tuple[Styles, dict[str, Any]]:
    """The classifier of styles, and how it does on concepts that it was not trained on."""
    rest = sorted(set(range(len(real.about["concepts"]))) - set(real.names))
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))
    others = [rest[i] for i in order[:OTHER_CONCEPTS].tolist()]
    check = torch.isin(real.concept, torch.tensor([*real.names, *others]))
    pictures = to_pictures(real.images)
    styles = Styles(pictures[~check], real.style[~check], out)
    said, right = styles(pictures[check]), real.style[check]
    named = torch.isin(real.concept[check], torch.tensor(real.names))
    rough = roughen(pictures[check], torch.Generator().manual_seed(1))
    return styles, {
        "trained on": f"{int((~check).sum())} real pictures of other concepts",
        "checked": share(said == right),
        "checked, the 100 names alone": share((said == right)[named]),
        "checked, roughened": share(styles(rough) == right),
        "confusion": confusion(right, said, len(real.about["styles"])),
    }


def judge(real: Pictures, source: Source, out: Path, others: Path | None) -> dict[str, Any]:
    """All that is measured of what ``source`` draws."""
    conditions = {
        "first seeds": FIRST_SEED,
        "packages": {p: v["version"] for p, v in real.about["packages"].items()} | OTHERS,
        "torch": torch.__version__,
        "flowturbo": __version__,
    }
    made: dict[str, Any] = {"conditions": source.conditions | conditions}
    names, made["classifier of names"] = train_names(real, others)
    styles, made["classifier of styles"] = train_styles(real, out)
    todo = pairs_to_draw(real.about, real.names, real.trained)
    drawn = {name: draw(source, name, pairs, out) for name, pairs in todo.items()}
    seen = {n: real.see(n, drawn[n]) for n in ("seen", "held out", "total")}
    for name in ("seen", "held out"):
        right = torch.tensor([real.names.index(c) for c, _ in todo[name]])
        asked, said = torch.tensor([s for _, s in todo[name]]), styles(to_pictures(drawn[name]))
        made[name] = {
            "pictures": len(right),
            "pairs": len(set(todo[name])),
            "name": top(names, seen[name], right),
            "style": share(said == asked),
            "confusion of styles": confusion(asked, said, len(real.about["styles"])),
        }
    made["FD-EffNet"] = frechet(seen["total"], real.features[~real.held])
    groups = {n: (drawn[n], seen[n], todo[n]) for n in ("seen", "held out")}
    groups["real, held out"] = real.part(real.held)
    made["memory"] = memory(groups, real.part(~real.held), "real, held out")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that data.py made")
    parser.add_argument("--model", required=True, help="what flowturbo.load takes; real; rough")
    parser.add_argument("--out", type=Path, required=True, help="keeps what is drawn")
    parser.add_argument("--plan", default="AB2:12@1.6", help="notation or name of a plan")
    parser.add_argument("--guidance", type=float, help="else the model's own")
    parser.add_argument("--device", default="cpu", help="to draw on")
    parser.add_argument("--bf16", action="store_true", help="draw in bfloat16")
    parser.add_argument("--others", type=Path, help="a node_modules that has the other sets")
    parser.add_argument("--record", type=Path, default=Path("emoji-judged.json"))
    parser.add_argument("--images", type=Path, default=Path(), help="where emoji*.png go")
    parser.add_argument("--sheet", action="store_true", help="draw the sheet of names alone")
    options = parser.parse_args()
    real = Pictures(options.data, options.out)
    if options.model in ("real", "rough"):
        source: Source = Real(real.images, real.pairs, options.model == "rough")
    else:
        dtype = torch.bfloat16 if options.bf16 else torch.float32
        source = Model(
            options.model, real.about, options.plan, options.guidance, options.device, dtype
        )
    save_sheet(options.images / "emoji.png", real, source, options.out)
    if options.sheet:
        return
    check_writable(options.record)
    made = judge(real, source, options.out, options.others)
    save_nearest(options.images / "emoji-nearest.png", real, source, options.out)
    write_json(options.record, made)
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
