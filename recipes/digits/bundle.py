"""Puts a trained `digits` into the package, with measurements of its images on its card.

    python recipes/digits/bundle.py --run runs/digits

generates 1,000 digits, 100 of each, with a converged plan, classifies them with the reader of
`reader.py` and writes the share that is read as requested. The card has the notation, seeds and
guidance of the measurement.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

import flowturbo as ft
from flowturbo.models.checkpoint import CARD, read_card, save_folder

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from digit_reader import load_reader  # noqa: E402

PLAN, GUIDANCE, DIGITS = "AB4RK:40@1.6", 2.0, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="runs/digits", help="the folder that train.py left")
    parser.add_argument("--out", default=ROOT / "src/flowturbo/models/bundled/digits")
    options = parser.parse_args()
    model, read, right = ft.load(options.run), load_reader(), 0
    for first in range(0, DIGITS, 100):
        cond = model.condition([i % 10 for i in range(first, first + 100)])
        x0 = ft.noise.draw(range(first, first + 100), model.shape)
        x1 = ft.sample(ft.Plan.parse(PLAN), model, x0, cond, guidance=GUIDANCE)
        right += int((read(x1).argmax(1) == cond).sum())
        print(f"{first + 100} drawn, {right} read as asked for", flush=True)
    measured = {
        "read_as_asked_for": right / DIGITS,
        "digits": DIGITS,
        "seeds": f"0-{DIGITS - 1}",
        "plan": PLAN,
        "guidance": GUIDANCE,
        "dtype": "float32",
        "device": "cpu",
        "torch": torch.__version__,
    }
    card = read_card(Path(options.run)) | {"measured": measured}
    save_folder(options.out, model.network, card)
    print(json.dumps(measured, indent=1), f"-> {options.out}/{CARD}")


if __name__ == "__main__":
    main()
