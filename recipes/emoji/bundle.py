"""Puts a trained `emoji` into the package, with what `judge.py` measured on its card.

    python recipes/emoji/bundle.py --run runs/emoji --record benchmarks/records/emoji-judged.json

Plans and the refiner of the previous weights are removed: `recipes/plans.py` makes new ones.
"""

import argparse
import json
import shutil
from pathlib import Path

import flowturbo as ft
from flowturbo.models.checkpoint import read_card, save_folder
from flowturbo.refiner.checkpoint import REFINER_CARD, REFINER_WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("seen", "held out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="runs/emoji", help="the folder that train.py left")
    parser.add_argument("--record", type=Path, required=True, help="what judge.py wrote of it")
    parser.add_argument("--out", type=Path, default=ROOT / "src/flowturbo/models/bundled/emoji")
    options = parser.parse_args()
    model, found = ft.load(options.run), json.loads(options.record.read_text("utf-8"))
    judged = found["conditions"]
    if judged["fingerprint"] != model.fingerprint:
        raise SystemExit(f"{options.record} is of {judged['fingerprint']}, not {model.fingerprint}")
    distance = found["FD-EffNet"]
    measured = {
        "name_in_top_5_of_100": {p: found[p]["name"]["top 5"]["share"] for p in PARTS},
        "style_as_asked_for": {p: found[p]["style"]["share"] for p in PARTS},
        "fd_effnet": distance["against the rest"],
        "fd_effnet_floor": distance["floor: the same real pictures against the rest"],
        **{k: judged[k] for k in ("plan", "guidance", "dtype", "device", "torch")},
        "record": "benchmarks/records/emoji-judged.json",
    }
    save_folder(options.out, model.network, read_card(Path(options.run)) | {"measured": measured})
    for name in (REFINER_CARD, REFINER_WEIGHTS):
        (options.out / name).unlink(missing_ok=True)
    shutil.rmtree(options.out / "plans", ignore_errors=True)
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
