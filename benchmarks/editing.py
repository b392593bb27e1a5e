"""Editing, measured on images that the models have generated themselves.

    python benchmarks/editing.py --out benchmarks/records/editing.json

For each bundled model the *round trip*: an image inverted with its own prompt, unguided, and
sampled again, by each solver with equally many evaluations in both directions. *Edits* to another
name, by each method and several values of ``keep``: the distance to the source (root mean square,
in states from -1 to 1) and, on `digits`, the share that a classifier recognises as requested.
*Inpainting* of the right half: the step in grey levels across the edge of the mask, relative to the
source's own step.

    flowturbo tune --model digits --nfe 8 --direction "round trip" -o digits.json
    python benchmarks/editing.py --parts round_trip --inverse digits.json --inverse emoji.json

measures only one part, with plans that `ft.tune` has fitted to the round trip; an existing record
keeps its other parts, if its conditions are the same.

    python benchmarks/editing.py --table benchmarks/records/editing.json

prints the tables of a record.
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
PARTS = ("round_trip", "edits", "inpainting")
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


def round_trips(model: ft.Model, n: int, inverses: list[ft.Plan]) -> dict[str, Any]:
    x, cond, _ = drawn(model, n)
    found: dict[str, Any] = {}
    pairs = {text: (ft.Plan.parse(text, direction="backward"), ft.Plan.parse(text))
             for text in TRIPS}  # fmt: skip
    for plan in inverses:
        if plan.info["fingerprint"] == model.fingerprint:
            pairs[plan.name] = (plan, ft.Plan.parse(plan.info["inverts"]))
    for text, (there, back) in pairs.items():
        ends = [
            ft.sample(back, model, ft.sample(there, model, x[i : i + 64], cond[i : i + 64]),
                      cond[i : i + 64])
            for i in range(0, n, 64)
        ]  # fmt: skip
        found[text] = {
            "evaluations": [len(there), len(back)],
            **summary(error(torch.cat(ends), x).numpy()),
            **{k: there.info[k] for k in ("trajectories", "seed") if k in there.info},
        }
        print(f"{model.name}, {text}: {found[text]['rmse']:.4f}", flush=True)
    return found


def edits(model: ft.Model, n: int) -> dict[str, Any]:
    """Digits to other digits, and emoji to others of the same style."""
    x, _, names = drawn(model, n)
    reader = load_reader() if model.name == "digits" else None
    targets = [model.names[(i + 1 + i % 9) % len(model.names)] for i in range(n)]
    if model.styles:
        targets = [model.styled(target, model.styles[i % len(model.styles)])
                   for i, target in enumerate(targets)]  # fmt: skip
    sources = to_pil(model.decode(x))
    found: dict[str, Any] = {}
    for method in ("inversion", "flowedit", "sdedit"):
        for keep in KEEPS:
            made = ft.edit(
                model, sources, targets, names, method=method, keep=keep, seed=FIRST, size="model"
            )
            array = np.stack([np.atleast_3d(np.asarray(i)) for i in made])
            states = model.encode(torch.from_numpy(array).permute(0, 3, 1, 2) / 255)
            entry: dict[str, Any] = {"passes": made.passes}
            if reader is not None:
                read = reader(states).argmax(1).tolist()
                entry["read_as_target"] = float(np.mean([
                    str(r) == t for r, t in zip(read, targets, strict=True)
                ]))  # fmt: skip
            found[f"{method}, {keep:g}"] = entry | summary(error(states, x).numpy())
            print(
                f"{model.name}, {method}, keep {keep}: {found[f'{method}, {keep:g}']['rmse']:.3f}"
            )
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
    for name, made in record["edits"].items():
        rows = [
            [how, f"{e['passes']}", f"{e['rmse']:.3f}",
             f"{100 * e['read_as_target']:.1f} %" if "read_as_target" in e else ""]
            for how, e in made.items()
        ]  # fmt: skip
        columns = ["method, keep", "passes", "RMSE", "read as asked"]
        print(f"\n{name}, edits\n\n{table(columns, rows)}")
    for name, qualities in record["inpainting"].items():
        for quality, e in qualities.items():
            print(f"{name}, inpainting, {quality}: {e['passes']} passes, edge {e['edge_step']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256, help="of each model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="to measure")
    parser.add_argument(
        "--inverse", action="append", default=[], metavar="FILE",
        help="a plan of ft.tune(direction='round trip'), until 0; of each model, repeatable",
    )  # fmt: skip
    parser.add_argument("--out", default="benchmarks/records/editing.json")
    parser.add_argument("--table", metavar="RECORD", help="print a record, and stop")
    options = parser.parse_args()
    if options.table:
        show(json.loads(Path(options.table).read_text("utf-8")))
        return
    models, n, out = [ft.load(name) for name in ("digits", "emoji")], options.images, options.out
    record: dict[str, Any] = {
        "conditions": {
            "images": n, "seeds": f"from {FIRST}", "drawn by": SOURCE,
            "weights": {m.name: m.fingerprint for m in models}, "versions": versions(),
        }
    }  # fmt: skip
    if len(options.parts) < len(PARTS):
        kept = json.loads(Path(out).read_text("utf-8"))
        if kept["conditions"] != record["conditions"]:
            parser.error(f"{out} was measured under other conditions: {kept['conditions']}")
        record = kept
    inverses = [ft.Plan.load(file) for file in options.inverse]
    if "round_trip" in options.parts:
        record["round_trip"] = {m.name: round_trips(m, n, inverses) for m in models}
    if "edits" in options.parts:
        record["edits"] = {m.name: edits(m, n) for m in models}
    if "inpainting" in options.parts:
        record["inpainting"] = {m.name: seams(m, n) for m in models}
    write_json(Path(out), record)
    show(record)


if __name__ == "__main__":
    main()
