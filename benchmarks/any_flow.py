"""Plans for flows of other data than images: clips of moving digits, and point clouds.

    python recipes/moving-digits/train.py --out runs/moving-digits
    python recipes/shapes/train.py --out runs/shapes
    python benchmarks/any_flow.py --clips runs/moving-digits --shapes runs/shapes

fits a plan to each at ``--passes`` of the network with guidance, and measures it on noise samples
that nothing else uses, together with Euler and the best diffusers scheduler at the same number of
passes, chosen in its favour on the test noise samples. Writes ``benchmarks/records/any-flow.json``,
and draws the first of the samples: `docs/images/moving-digits.gif` and `docs/images/shapes.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from method import best
from PIL import Image, ImageDraw, ImageFont
from schedulers import schedulers
from torch import Tensor
from trial import Trial

import flowturbo as ft
from flowturbo.files import atomic_write, write_json
from flowturbo.guidance import guided

matplotlib.use("Agg")
ROOT = Path(__file__).resolve().parents[1]
GUIDANCE, REFERENCE = 2.0, "AB4RK:105@0.5"
SHOWN, SCALE = 8, 3
INK = "#222222"


def clips(folder: Path) -> Any:
    """The field that ``recipes/moving-digits/train.py`` trained."""
    sys.path.insert(0, str(ROOT / "recipes" / "moving-digits"))
    from clips import Video

    return Video(ft.load(folder)).eval()


def shapes(folder: Path) -> Any:
    """The field that ``recipes/shapes/train.py`` trained."""
    sys.path.insert(0, str(ROOT / "recipes" / "shapes"))
    from safetensors.torch import load_file
    from shapes import Cloud

    field = Cloud()
    field.load_state_dict(load_file(folder / "model.safetensors"))
    return field.eval()


def measured(
    field: Any, options: argparse.Namespace, folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor], Any]:
    """The entry of a record, the first samples of each method, and their conditions."""
    trial = Trial(field, GUIDANCE, options.noise_samples, REFERENCE, folder / "trial")
    ours = ft.tune(
        field, passes=options.passes, guidance=GUIDANCE, trajectories=options.trajectories,
        search=not options.no_search, cache_dir=folder / "fit", report=partial(print, flush=True),
    )  # fmt: skip
    evaluations = options.passes // 2
    tried = schedulers(evaluations)
    label, _ = best(trial, tried)
    plans = {"Euler": ft.Plan.euler(evaluations), "best scheduler": tried[label], "tuned": ours}
    entries = {}
    for name, plan in plans.items():
        about = {"chosen": label} if name == "best scheduler" else {}
        entries[name] = trial.entry(plan, passes=plan.passes(GUIDANCE), **about)
        del entries[name]["errors"]
        print(f"{name}: {plan.name}, {entries[name]['rmse']}", flush=True)
    x, cond = trial.x0[:SHOWN], trial.cond[:SHOWN]
    drawn = {"reference": trial.exact[:SHOWN]}
    for name, plan in reversed(plans.items()):
        drawn[name] = ft.sample(plan.with_info({}), guided(field, GUIDANCE), x, cond)
    made = {"conditions": trial.conditions, "reference": trial.reference_error(), "plans": entries}
    made["fitted"] = {"trajectories": options.trajectories, "table": json.loads(ours.to_json())}
    return made, drawn, cond


def draw_clips(drawn: dict[str, Tensor], path: Path) -> None:
    """Rows of clips, one method each, as a GIF."""
    frames, side, left, gap = next(iter(drawn.values())).shape[2], 32 * SCALE, 130, 6
    font, pictures = ImageFont.load_default(15), []
    for f in range(frames):
        size = (left + SHOWN * (side + gap), len(drawn) * (side + gap))
        page = Image.new("L", size, 255)
        for row, (name, x) in enumerate(drawn.items()):
            y = row * (side + gap)
            ImageDraw.Draw(page).text((left - 10, y + side / 2), name, INK, font, "rm")
            for i in range(SHOWN):
                grey = ((x[i, 0, f].clamp(-1, 1) + 1) * 127.5).byte().numpy()
                one = Image.fromarray(grey).resize((side, side), Image.Resampling.NEAREST)
                page.paste(one, (left + i * (side + gap), y))
        pictures.append(page)
    with atomic_write(path) as temporary:
        pictures[0].save(
            temporary, "GIF", save_all=True, append_images=pictures[1:], duration=140, loop=0
        )


def draw_shapes(drawn: dict[str, Tensor], labels: list[str], path: Path) -> None:
    """Rows of point clouds, one method each."""
    from matplotlib import pyplot as plt

    columns = min(SHOWN, 6)
    figure = plt.figure(figsize=(2 * columns + 1, 2 * len(drawn)))
    for row, (name, x) in enumerate(drawn.items()):
        for i in range(columns):
            at = row * columns + i + 1
            axes = figure.add_subplot(len(drawn), columns, at, projection="3d")
            axes.scatter(*x[i].T.numpy(), s=3, c=x[i, :, 2].numpy(), cmap="viridis")
            axes.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), box_aspect=(1, 1, 1))
            axes.set_axis_off()
            if not row:
                axes.set_title(labels[i], fontsize=11)
            if not i:
                axes.text2D(-0.12, 0.5, name, transform=axes.transAxes, ha="right", fontsize=11)
    figure.subplots_adjust(0.1, 0, 1, 0.95, 0, 0)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--clips", type=Path, help="the folder that recipes/moving-digits/train.py made")
    add("--shapes", type=Path, help="the folder that recipes/shapes/train.py made")
    add("--passes", type=int, default=12, help="of the network, even")
    add("--noise-samples", type=int, default=256, help="to test on")
    add("--trajectories", type=int, default=64, help="to fit on")
    add("--no-search", action="store_true", help="fit weights at given times only")
    add("--folder", type=Path, default=Path("runs/any-flow"), help="keeps what is computed")
    add("--images", type=Path, default=ROOT / "docs" / "images")
    add("--out", "-o", type=Path, default=ROOT / "benchmarks" / "records" / "any-flow.json")
    options = parser.parse_args()
    if not (options.clips or options.shapes):
        parser.error("--clips or --shapes is needed")
    record = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for name, load in (("clips", clips), ("shapes", shapes)):
        if (run := getattr(options, name)) is None:
            continue
        field = load(run)
        record[name], drawn, cond = measured(field, options, options.folder / name)
        if name == "clips":
            draw_clips(drawn, options.images / "moving-digits.gif")
        else:
            from shapes import LABELS

            draw_shapes(drawn, [LABELS[int(c)] for c in cond], options.images / "shapes.png")
        write_json(options.out, record)
    print(f"-> {options.out}")


if __name__ == "__main__":
    main()
