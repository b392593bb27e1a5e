"""The main table: errors of classical solvers, the paper's plans and tuned plans.

    python benchmarks/results.py --model digits --refiner runs/refiner --data mnist.npz

measures, at guidance 1, 2 and 4 and 4 to 12 evaluations of the model, on 256 noise samples that
nothing else uses: Euler, Heun, Adams-Bashforth, DPM-Solver++ and UniPC, each at its best shift
and grid, chosen on the test noise samples in its favour; the paper's plans on the paper's uniform
grid, without and with the paper's refiner, which is trained on ``--data``; and tuned plans, without
and with our refiner.

    python benchmarks/results.py --model digits --refiner runs/refiner --real-images mnist.npz \\
        --num-images 5000 --nfe 6 --guidance 2

adds FD-EffNet of 5,000 images of some of these plans and of the reference solution, and

    python benchmarks/results.py --model digits --refiner runs/refiner --image-grid \\
        --nfe 6 --guidance 2

adds a grid of images of the same noise samples. All resume after an interruption and write one
record, from which `make_results` makes the page.
"""

from __future__ import annotations

from typing import Any

import torch
from bench import Bench, parser
from method import adams, best
from ratios import FITTED, KEPT, KEPT_REFINED, REFINED
from schedulers import schedulers
from trial import Trial

import flowturbo as ft
from flowturbo.images import image_grid, save_png, to_pil

KIND = "flowturbo results 1"
GUIDANCE, NFE = (1.0, 2.0, 4.0), (4, 5, 6, 8, 10, 12)
PAPER, PAPER_REFINED = "H1P(n-2)", "the paper's, its refiner"
UNIPC = ("UniPC-2", "UniPC-3")
SCHEDULERS = {
    "Euler": "FlowMatchEuler",
    "Heun": "FlowMatchHeun",
    "DPM-Solver++ 2M": "DPM-Solver++ 2M",
    **{name: name for name in UNIPC},
}
ROWS = (*SCHEDULERS, "AB2", "AB4", PAPER, PAPER_REFINED)  # all that are not fitted
FITS = {False: (FITTED, REFINED), True: (KEPT, KEPT_REFINED)}  # by whether contrast is kept
COLUMNS = 8  # of the grid of images
Family = tuple[dict[str, ft.Plan], Any]


def families(bench: Bench, nfe: int) -> dict[str, Family]:
    """Plans by label, and their refiner, of everything that is not fitted."""
    tried = schedulers(nfe)
    found: dict[str, Family] = {
        name: ({k: p for k, p in tried.items() if k.startswith(f"{whose}, ")}, None)
        for name, whose in SCHEDULERS.items()
    }
    found |= {name: (plans, None) for name, plans in adams(nfe).items()}
    plain = f"H1P{nfe - 2}"
    found[PAPER] = ({plain: ft.Plan.parse(plain)}, None)
    refiner = bench.refiner()
    if refiner is not None:
        texts = [f"H{h}P{nfe - 2 * h}R{r}" for h in (1, 2) for r in (1, 2, 3) if nfe > 2 * h]
        found[PAPER_REFINED] = ({t: ft.Plan.parse(t) for t in texts}, refiner)
    return found


def fitted(
    bench: Bench, guidance: float, nfe: int, *, contrast: bool = False
) -> dict[str, tuple[ft.Plan, Any]]:
    """Plans of `flowturbo.tune`, without and with our refiner."""
    fits, (plain, refined) = bench.fits(guidance, contrast=contrast), FITS[contrast]
    found = {plain: (fits.plan(nfe), None)} if bench.asked(plain) else {}
    if bench.own is not None and bench.asked(refined):
        found[refined] = (fits.plan(nfe, bench.own, "-refiner"), bench.own)
    return found


def cell(bench: Bench, trial: Trial, guidance: float, nfe: int) -> dict[str, Any]:
    """Every row that was asked for, at ``nfe`` evaluations of the model."""
    found, tried = {}, {}
    for name, (plans, refiner) in families(bench, nfe).items():
        if bench.asked(name):
            label, tried[name] = best(trial, plans, refiner)
            found[name] = trial.entry(plans[label], refiner, chosen=label)
    for name, (plan, refiner) in fitted(bench, guidance, nfe).items():
        found[name] = trial.entry(plan, refiner, info=dict(plan.info))
    for name, entry in found.items():
        print(f"guidance {guidance:g}, {nfe}: {name}: {entry['rmse']}", flush=True)
    return {"plans": found, "tried": tried}


def added(cells: dict[str, Any], nfe: int, trial: Trial, made: dict[str, Any]) -> None:
    """Put rows into the cell of a record, each with where it was measured."""
    into = cells.setdefault(str(nfe), {"plans": {}, "tried": {}})
    for entry in made["plans"].values():
        entry["device"] = trial.conditions["device"]
    for key, rows in made.items():
        into[key] |= rows


def plans_of(bench: Bench, guidance: float, nfe: int) -> dict[str, tuple[ft.Plan, Any]]:
    """Every method's plan in the main table and its refiner, as the record says it was chosen."""
    try:
        entries = bench.record["guidance"][f"{guidance:g}"]["cells"][str(nfe)]["plans"]
    except KeyError:
        raise SystemExit(
            f"{bench.out}: holds no guidance {guidance:g} at {nfe} evaluations; measure the main "
            "table first, without --num-images and --image-grid"
        ) from None
    every = families(bench, nfe)
    found = {
        name: (every[name][0][entry["chosen"]], every[name][1])
        for name, entry in entries.items()
        if name in every
    }
    for contrast in FITS:
        found |= fitted(bench, guidance, nfe, contrast=contrast)
    return found


def distances(bench: Bench, guidance: float, nfe: int) -> None:
    """FD-EffNet of the paper's plans, the better UniPC and the tuned plans."""
    plans = plans_of(bench, guidance, nfe)
    entries = bench.record["guidance"][f"{guidance:g}"]["cells"][str(nfe)]["plans"]
    unipc = min(UNIPC, key=lambda name: entries[name]["rmse"])
    here = bench.record.setdefault("frechet", {}).setdefault(f"{guidance:g}", {})
    here = here.setdefault(str(nfe), {})
    for name in (KEPT_REFINED, KEPT, REFINED, FITTED, PAPER, PAPER_REFINED, unipc):
        if name in plans and bench.asked(name):
            here[name] = bench.evaluated(*plans[name], guidance, here.get(name))
            print(f"{name}: {here[name]['frechet']}", flush=True)
            bench.keep()


def draw_grid(bench: Bench, guidance: float, nfe: int) -> None:
    """A grid of images: a row for each method, of the same noise samples."""
    model = bench.model
    rows = {"reference solution": (ft.Plan.parse(bench.options.reference), None)}
    rows |= {k: v for k, v in plans_of(bench, guidance, nfe).items() if bench.asked(k)}
    names = model.names[:: max(1, len(model.names) // COLUMNS)][:COLUMNS]
    styles = model.styles
    prompts = [model.styled(n, styles[i % len(styles)]) if styles else n
               for i, n in enumerate(names)]  # fmt: skip
    cond, x0 = model.condition(prompts), ft.noise.draw(range(len(prompts)), model.shape)
    ends = [
        ft.sample(plan, model, x0, cond, guidance=guidance, refiner=refiner)
        for plan, refiner in rows.values()
    ]
    path = bench.out.with_name(f"{bench.out.stem}-g{guidance:g}-{nfe}.png")
    images = to_pil(model.decode(torch.cat(ends)))
    save_png(image_grid(images, len(prompts)), path, {})
    bench.record.setdefault("image_grids", {})[path.name] = {
        "guidance": guidance, "nfe": nfe, "rows": list(rows), "prompts": prompts,
        "seeds": [0, len(prompts) - 1],
    }  # fmt: skip


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--nfe", type=int, nargs="+", default=NFE, help="evaluations of the model")
    made.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE, help="scales")
    made.add_argument("--rows", nargs="+", metavar="ROW",
        help="only these, into the record, on another machine too: "
        f"{', '.join(map(repr, (*ROWS, *FITS[False])))}; of images also "
        f"{', '.join(map(repr, FITS[True]))}")  # fmt: skip
    made.add_argument("--image-grid", action="store_true", help="draw a grid of images, instead")
    bench = Bench(options := made.parse_args(), KIND)
    generated = options.num_images or options.image_grid
    known = (*ROWS, *FITS[False], *(FITS[True] if generated else ()))
    if unknown := [name for name in options.rows or () if name not in known]:
        made.error(f"--rows {unknown[0]!r}: must be of {', '.join(map(repr, known))}")
    for guidance in options.guidance:
        for nfe in options.nfe:
            if generated:
                (distances if options.num_images else draw_grid)(bench, guidance, nfe)
            else:
                part = bench.part("guidance", guidance, anywhere=bool(options.rows))
                cells = part.setdefault("cells", {})
                trial = bench.trial(guidance)
                rows = cell(bench, trial, guidance, nfe)
                if options.rows:
                    added(cells, nfe, trial, rows)
                else:
                    cells[str(nfe)] = rows
            bench.keep()
    print(f"-> {bench.out}")


if __name__ == "__main__":
    main()
