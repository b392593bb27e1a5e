"""The refiner and the fitted plans that come with a bundled model.

    python recipes/plans.py --model digits --run runs/plans-digits

trains a refiner from the model alone, fits the plans `fast`, `balanced` and `best` with it, of
`emoji` one more, and makes `balanced` the model's default. It goes on where it was interrupted; at
the end the files are copied to the model's folder.

What is bundled was made on an H100 so, 8192 trajectories for `digits`:

    python recipes/plans.py --model emoji --run runs/plans-emoji --device cuda --drawn 10240 \\
        --minutes 1.9 --batch 256 --trajectories 128 --guidance 2

and the plans of `digits` with ``--preserve-contrast``, but for this: the refiners were not
compiled, are those of iteration 4000, of 5179 and 5410 (their cards tell), without the second
phase, `balanced`, `light` and `best` of `emoji` were fitted without one, `light` with
``--preserve-contrast``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch

import flowturbo as ft
from flowturbo.files import atomic_write
from flowturbo.models.checkpoint import CARD
from flowturbo.models.zoo import find
from flowturbo.progress import Progress
from flowturbo.refiner.checkpoint import REFINER_CARD, REFINER_WEIGHTS

PLANS = {"balanced": 6, "fast": 4, "best": 10}  # evaluations of the model
OTHERS = {"emoji": {"balanced": 10, "light": 6, "fast": 4, "best": 12}}
GUIDANCE = (1.0, 4.0)  # that the refiner serves
STEPS = 24  # evaluations of the model on its trajectories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a bundled name, or a folder")
    parser.add_argument("--run", required=True, help="keeps what is computed")
    parser.add_argument("--refiner-only", action="store_true", help="fit no plans, copy nothing")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training the refiner")
    parser.add_argument("--batch", type=int, default=64, help="velocities a step of it")
    parser.add_argument("--drawn", type=int, default=4096, help="trajectories of the refiner")
    parser.add_argument("--trajectories", type=int, default=64, help="to fit on")
    parser.add_argument("--guidance", type=float, help="to fit at; by default the model's own")
    parser.add_argument(
        "--preserve-contrast", action="store_true", help="keep the contrast of pictures"
    )
    parser.add_argument("--device", default="cpu", help="where to compute")
    options = parser.parse_args()
    model, run = ft.load(options.model, device=options.device), Path(options.run)
    home, last = find(options.model), [-1]

    def tell(progress: Progress) -> None:
        share = 20 * progress.done // (progress.total or 1)
        if share != last[0] or progress.done == progress.total:
            last[0] = share
            print(progress, flush=True)

    start = time.perf_counter()
    refiner = ft.train_refiner(
        model, guidance=GUIDANCE, trajectories=options.drawn, steps=STEPS, batch=options.batch,
        minutes=options.minutes, folder=run / "refiner", plan="AB2:FFRFRFRFRF",
        bf16=True, compile=True, report=tell,
    )  # fmt: skip
    torch._dynamo.reset()
    print(f"refiner: {time.perf_counter() - start:.0f} s", flush=True)
    if options.refiner_only:
        return
    for name, nfe in OTHERS.get(model.name, PLANS).items():
        start = time.perf_counter()
        plan = ft.tune(
            model, nfe=nfe, refiner=refiner, guidance=options.guidance,
            trajectories=options.trajectories, preserve_contrast=options.preserve_contrast,
            cache_dir=run / "fit", report=lambda progress: print(progress, flush=True),
        )  # fmt: skip
        (run / "plans").mkdir(exist_ok=True)
        plan.save(run / "plans" / f"{name}.json")
        seconds = f"{time.perf_counter() - start:.0f} s"
        print(name, repr(plan), json.dumps(plan.info["error"]), seconds, flush=True)
    for file in (REFINER_CARD, REFINER_WEIGHTS):
        shutil.copy(run / "refiner" / file, home / file)
    shutil.copytree(run / "plans", home / "plans", dirs_exist_ok=True)
    card = json.loads((home / CARD).read_text("utf-8"))
    card["defaults"]["plan"] = "balanced"
    with atomic_write(home / CARD) as path:
        path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
