"""Editing, measured on images that the models have drawn themselves.

    python benchmarks/editing.py --out benchmarks/records/editing.json

For each bundled model the *round trip*: an image inverted with its own prompt, unguided, and
sampled again, by each solver at as many evaluations both ways, and by the exact pair. On `digits`
*edits* to another digit, by each method and several ``keep``: the distance to the source (root mean
square, in states from -1 to 1), and how many a classifier reads as what was asked for. *Inpainting*
of the right half: the step in grey levels across the edge of the mask, over the source's own step.

    python benchmarks/editing.py --table benchmarks/records/editing.json

prints what a record says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ratios import table
from trial import versions

import flowturbo as ft
from flowturbo.files import write_json
from flowturbo.images import to_pil
from flowturbo.stats import summary
from flowturbo.tuning.reference import error

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from digit_reader import load_reader  # noqa: E402

SOURCE = "AB2:16@1.6"  # plan that draws the images
FIRST = 700_000_000  # their seeds
TRIPS = ("E8", "H4", "H1P6", "AB2:8", "AB2:8@1.6", "UNIPC2:8@1.6", "DPM2:8@1.6")
KEEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def drawn(model: ft.Model, n: int) -> tuple[torch.Tensor, Any, list[str]]:
    """States of ``n`` images, as 8 bits keep them, their conditions and their labels."""
    names = [model.names[i % len(model.names)] for i in range(n)]
    if model.styles:
        names = [model.styled(name, model.styles[i % len(model.styles)])
                 for i, name in enumerate(names)]  # fmt: skip
    cond = model.condition(names)
    x0 = ft.noise.draw(range(FIRST, FIRST + n), model.shape)
    scale = model.defaults["guidance"]
    x1 = torch.cat([
        ft.sample(SOURCE, model, x0[i : i + 64], cond[i : i + 64], guidance=scale)
        for i in range(0, n, 64)
    ])  # fmt: skip
    return model.encode((model.decode(x1) * 255).round() / 255), cond, names


def round_trips(model: ft.Model, n: int) -> dict[str, Any]:
    x, cond, _ = drawn(model, n)
    found = {}
    for text in TRIPS:
        there, back = ft.Plan.parse(text, direction="backward"), ft.Plan.parse(text)
        ends = [
            ft.sample(back, model, ft.sample(there, model, x[i : i + 64], cond[i : i + 64]),
                      cond[i : i + 64])
            for i in range(0, n, 64)
        ]  # fmt: skip
        found[text] = {
            "evaluations": [len(there), len(back)],
            **summary(error(torch.cat(ends), x).numpy()),
        }
        print(f"{model.name}, {text}: {found[text]['rmse']:.4f}", flush=True)
    return found


def edits(n: int) -> dict[str, Any]:
    """Digits to other digits."""
    model, reader = ft.load("digits"), load_reader()
    x, _, names = drawn(model, n)
    targets = [str((int(name) + 1 + i % 9) % 10) for i, name in enumerate(names)]
    sources = to_pil(model.decode(x))
    found: dict[str, Any] = {}
    for method in ("inversion", "flowedit", "sdedit"):
        for keep in KEEPS:
            made = ft.edit(
                model, sources, targets, names, method=method, keep=keep, seed=FIRST, size="model"
            )
            states = model.encode(torch.stack([
                torch.from_numpy(np.asarray(i))[None] / 255 for i in made
            ]))  # fmt: skip
            read = reader(states).argmax(1).tolist()
            right = np.array([str(r) == t for r, t in zip(read, targets, strict=True)], float)
            found[f"{method}, {keep:g}"] = {
                "passes": made.passes,
                "read_as_target": float(right.mean()),
                **summary(error(states, x).numpy()),
            }
            entry = found[f"{method}, {keep:g}"]
            print(f"{method}, keep {keep}: {entry['rmse']:.3f}, read {right.mean():.3f}")
    return found


def seams(model: ft.Model, n: int) -> dict[str, Any]:
    """The right half inpainted by the image's own prompt."""
    x, _, names = drawn(model, n)
    sources, width = to_pil(model.decode(x)), model.shape[2]
    mask = np.zeros(model.shape[1:])
    mask[:, width // 2 :] = 1
    found = {}
    for quality in ("standard", "high"):
        made = ft.inpaint(model, sources, mask, names, seed=FIRST, quality=quality, size="model")
        step = lambda images: np.mean([
            np.abs(np.asarray(i, float)[:, width // 2] - np.asarray(i, float)[:, width // 2 - 1])
            for i in images
        ])  # fmt: skip
        found[quality] = {"passes": made.passes, "edge_step": float(step(made) / step(sources))}
        print(f"{model.name}, {quality}: edge step {found[quality]['edge_step']:.3f}")
    return found


def show(record: dict[str, Any]) -> None:
    for name, trips in record["round_trip"].items():
        rows = [[text, f"{e['rmse']:.4f}", f"{e['median']:.4f}"] for text, e in trips.items()]
        print(f"\n{name}, round trip\n\n{table(['plan', 'RMSE', 'median'], rows)}")
    rows = [
        [name, f"{e['passes']}", f"{e['rmse']:.3f}", f"{100 * e['read_as_target']:.1f} %"]
        for name, e in record["edits"].items()
    ]
    print(f"\ndigits, edits\n\n{table(['method, keep', 'passes', 'RMSE', 'read as asked'], rows)}")
    for name, qualities in record["inpainting"].items():
        for quality, e in qualities.items():
            print(f"{name}, inpainting, {quality}: {e['passes']} passes, edge {e['edge_step']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256, help="of each model")
    parser.add_argument("--out", default="benchmarks/records/editing.json")
    parser.add_argument("--table", metavar="RECORD", help="print a record, and stop")
    options = parser.parse_args()
    if options.table:
        show(json.loads(Path(options.table).read_text("utf-8")))
        return
    models = [ft.load(name) for name in ("digits", "emoji")]
    record = {
        "conditions": {
            "images": options.images, "seeds": f"from {FIRST}", "drawn by": SOURCE,
            "weights": {m.name: m.fingerprint for m in models}, "versions": versions(),
        },
        "round_trip": {m.name: round_trips(m, options.images) for m in models},
        "edits": edits(options.images),
        "inpainting": {m.name: seams(m, options.images) for m in models},
    }  # fmt: skip
    write_json(Path(options.out), record)
    show(record)


if __name__ == "__main__":
    main()
