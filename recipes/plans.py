"""The refiner and the fitted plans that come with a bundled model.

    python recipes/plans.py --model digits --run runs/plans-digits

trains a refiner from the model alone, fits plans with it for several numbers of passes, and makes
`balanced` the default of the model. An interrupted run is resumed; at the end the files are copied
to the model's folder. Half of the trajectories that plans of `emoji` are fitted to are of the names
in ``emoji/common.txt``, which people are likely to try first, and the rest are of any name.
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

PASSES = {"fast": 8, "balanced": 12, "best": 20}  # of the network, an image
OTHERS = {"emoji": {"fast": 8, "light": 12, "balanced": 16, "best": 24}}
COMMON = Path(__file__).parent / "emoji" / "common.txt"
FIRST = 2_000_000_000  # seed of the noise that plans are fitted to
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
    parser.add_argument("--trajectories", type=int, default=192, help="to fit, choose and test on")
    parser.add_argument("--only", nargs="+", help="fit only the plans of these names")
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
    noise, cond = initial(model, options.trajectories)
    for name, passes in OTHERS.get(model.name, PASSES).items():
        if options.only and name not in options.only:
            continue
        start = time.perf_counter()
        plan = ft.tune(
            model, passes=passes, refiner=refiner, guidance=options.guidance, noise=noise,
            cond=cond, preserve_contrast=options.preserve_contrast, cache_dir=run / "fit",
            report=lambda progress: print(progress, flush=True),
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


def initial(model: ft.Model, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``n`` initial states, and their conditions; of text models every other is a common name."""
    noise = ft.noise.draw(range(FIRST, FIRST + n), model.shape, device=model.device)
    cond = model.random_condition(n, torch.Generator().manual_seed(0))
    if model.conditioning.kind == "text":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
        cond[::2] = common(model, n)[order][::2]
    return noise, cond


def common(model: ft.Model, n: int) -> torch.Tensor:
    """Conditions (n, ...) of the names in `COMMON`: every name in every style, in turn."""
    names, styles = COMMON.read_text("utf-8").split("\n")[:-1], model.styles
    pairs = [(names[i % len(names)], styles[i // len(names) % len(styles)]) for i in range(n)]
    return model.condition([model.styled(name, style) for name, style in pairs])


if __name__ == "__main__":
    main()
