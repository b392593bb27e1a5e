"""A blind comparison of two models: pairs of images of the same prompt, in random order.

    python recipes/emoji/blind.py --data emoji-data --old OLD --new runs/emoji --out runs/blind

generates images of 80 prompts that both models know, names of ``judged.txt`` in the styles of both,
and writes sheets of 20 pairs, A and B, at one size. A judge notes which image of each pair is the
better one of its name, in order, and

    python recipes/emoji/blind.py --out runs/blind --better ABBA...

counts how often that was the new model's (= counts as half). Do not look at the key before.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choose import judged
from data import canonical, load
from measure import share
from PIL import Image
from sheet import GAP, STEP, page, paste, save, write

import flowturbo as ft
from flowturbo.files import write_json

PROMPTS, A_SHEET, COLUMNS, SEED = 80, 20, 5, 5000
PLAN = "AB2:12@1.6"
SIDE = 64


def compare(options: argparse.Namespace) -> None:
    about, rng = load(options.data)[-1], random.Random(SEED)
    old, new = ft.load(options.old), ft.load(options.new)
    styles = [s for s in new.styles if s in old.styles]
    names = [about["concepts"][i] for i in judged(about["concepts"])]
    cells = [(concept, style) for concept in names for style in styles]
    chosen = rng.sample(cells, PROMPTS)
    prompts = [canonical(concept, style) for concept, style in chosen]
    drawn = [ft.generate(model, prompts, plan=PLAN, seed=SEED) for model in (old, new)]
    swapped = [rng.random() < 0.5 for _ in prompts]
    options.out.mkdir(parents=True, exist_ok=True)
    for first in range(0, PROMPTS, A_SHEET):
        rows = -(-A_SHEET // COLUMNS)
        image, pen = page(2 * COLUMNS, rows, STEP + 44)
        for k in range(A_SHEET):
            row, column = divmod(k, COLUMNS)
            pair = [pictures[first + k] for pictures in drawn]
            x, y = GAP + 2 * column * STEP, 40 + row * (STEP + 44)
            write(pen, (x + STEP, y - 26), f"{first + k + 1}. {prompts[first + k]}", "mm", 13)
            for side, picture in enumerate(pair[::-1] if swapped[first + k] else pair):
                same = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                paste(image, pen, (x + side * STEP, y), np.asarray(same.convert("RGB")))
        save(image, options.out / f"sheet-{first // A_SHEET + 1}.png")
    key = ["A" if s else "B" for s in swapped]  # where the new picture is
    write_json(options.out / "key.json", {"new": "".join(key), "prompts": prompts})
    print(f"-> {options.out}/sheet-*.png")


def count(options: argparse.Namespace) -> None:
    key: dict[str, Any] = json.loads((options.out / "key.json").read_text("utf-8"))
    answers = options.better.upper()
    if len(answers) != len(key["new"]) or set(answers) - set("AB="):
        raise SystemExit(f"--better: must be {len(key['new'])} letters, each A, B or =")
    points = [0.5 if a == "=" else float(a == k) for a, k in zip(answers, key["new"], strict=True)]
    decided = [p for p in points if p != 0.5]
    print(f"the new one is better in {sum(points) / len(points):.1%} of {len(points)}")
    print(json.dumps({"of those decided": share(torch.tensor(decided))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="the folder that data.py made")
    parser.add_argument("--old", help="a model")
    parser.add_argument("--new", help="the other")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--better", help="A, B or = for each pair, in order")
    options = parser.parse_args()
    count(options) if options.better else compare(options)


if __name__ == "__main__":
    main()
