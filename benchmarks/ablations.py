"""The paper's ablations on a model of this library, and what tuned plans depend on.

    python benchmarks/ablations.py --model digits --refiner runs/refiner --data mnist.npz

measures the plans of the paper's tables (components, order, interleaving, number of refiners, range
of ``dt``, architecture; text to image where the model does that) with refiners trained on
``--data`` by the paper's recipe: one for most tables, five more for the ranges of ``dt`` and the
architectures. Then the weights of plans fitted to few and many trajectories, and with short and
long histories; and tuned plans at guidance scales they were not fitted at. ``--num-images``
adds FD-EffNet to the paper's tables.

It resumes an interrupted run, shares a folder with `results.py` and writes one record, from which
`make_results` makes the page.
"""

from __future__ import annotations

from typing import Any

from bench import OWN, Bench, Scale, parser
from paper import ABLATIONS, NARROW, TRAINED, Ablation

import flowturbo as ft
from flowturbo.path import shifted
from flowturbo.tuning.journal import Journal
from flowturbo.tuning.weights import fit_weights

KIND = "flowturbo ablations 1"
TABLES = (*(a.key for a in ABLATIONS), "trajectories", "history", "transfer")
COUNTS = (4, 8, 16, 32, 64, 128, 256)  # trajectories to fit on
DRAWS = 4  # of them, at the most
USUAL = 64  # trajectories, where the history is what changes
HISTORIES = (1, 2, 3, 4, 5, 6)
SHIFT = 1.6
SCALES = (1.0, 2.0, 4.0)


def refiner(bench: Bench, name: str) -> Any:
    if name == OWN:
        return bench.own
    changes = TRAINED.get(name, {})
    if name == NARROW:
        width = bench.model.network.config.width
        changes = {"depth": 4, "width": width // 2}
    return bench.refiner(name, **changes)


def ablation(bench: Bench, what: Ablation, guidance: float) -> None:
    """A table of the paper: an entry for each row whose refiner there is."""
    part, trial = bench.part("tables", guidance), bench.trial(guidance)
    rows = part.setdefault("rows", {})
    for row in what.rows:
        plan = ft.Plan.parse(row.plan)
        by = refiner(bench, row.refiner) if plan.nfe["refiner"] else None
        if plan.nfe["refiner"] and by is None:
            continue
        before = rows.get(row.title, {}).get("frechet")
        rows[row.title] = trial.entry(plan, by)
        if bench.options.num_images:
            before = bench.evaluated(plan, by, guidance, before)
        if before:
            rows[row.title]["frechet"] = before
        print(f"{what.key}: {row.title}: {rows[row.title]['rmse']}", flush=True)
        bench.keep()


def fitting(bench: Bench, what: str, guidance: float, nfe: int) -> None:
    """Weights on one grid: entries by number of trajectories, each of several draws, or history."""
    part, trial = bench.part("fitting", guidance), bench.trial(guidance)
    home = bench.home(guidance) / "fitting"
    count = max(bench.options.counts)
    whose = {"model": bench.model.fingerprint, "guidance": guidance, "trajectories": count}
    journal = Journal(home, whose)
    fits = bench.fits(guidance)
    some = lambda rows: (*fits.starts(rows.stop - rows.start, seed=rows.start + 1), guidance)
    solved = journal.reference(bench.model, some, count)

    def entry(rows: slice, history: int) -> dict[str, Any]:
        make = lambda: fit_weights(
            bench.model, solved.rows(rows.start, rows.stop), shifted(nfe, SHIFT), history=history
        )[0]
        key = f"{nfe} {SHIFT} {rows.start} {rows.stop} {history}"
        return trial.entry(journal.plan(key, make))

    if what == "trajectories":
        found: dict[str, Any] = {
            str(n): [entry(slice(i * n, (i + 1) * n), 4) for i in range(min(DRAWS, count // n))]
            for n in bench.options.counts
        }
    else:
        usual = slice(0, min(USUAL, count))
        found = {str(h): entry(usual, h) for h in HISTORIES if h <= nfe}
    part.setdefault(what, {})[str(nfe)] = found


def transfer(bench: Bench, scales: list[float], nfe: int) -> None:
    """Plans fitted at one scale, and over the range of all, at every scale."""
    fitted: dict[str, Scale] = {f"{g:g}": g for g in scales}
    fitted["range"] = (min(scales), max(scales))
    for guidance in scales:
        part, trial = bench.part("transfer", guidance), bench.trial(guidance)
        part.setdefault("plans", {})[str(nfe)] = {
            name: trial.entry(bench.fits(scale).plan(nfe)) for name, scale in fitted.items()
        }
        bench.keep()


def main() -> None:
    made = parser(__doc__)
    add = made.add_argument
    add("--tables", nargs="+", choices=TABLES, default=TABLES, metavar="TABLE",
        help=f"of {', '.join(TABLES)}")  # fmt: skip
    add("--guidance", type=float, default=2.0, help="the scale of all tables but transfer")
    add("--scales", type=float, nargs="+", default=SCALES, help="of guidance, to transfer between")
    add("--nfe", type=int, nargs="+", default=[6], help="evaluations of fitted plans")
    add("--counts", type=int, nargs="+", default=COUNTS, help="of trajectories to fit on")
    bench = Bench(options := made.parse_args(), KIND)
    for what in ABLATIONS:
        if what.key in options.tables and (bench.record["text"] or not what.text):
            ablation(bench, what, options.guidance)
    for nfe in options.nfe:
        for name in ("trajectories", "history"):
            if name in options.tables:
                fitting(bench, name, options.guidance, nfe)
                bench.keep()
        if "transfer" in options.tables:
            transfer(bench, options.scales, nfe)
    print(f"-> {bench.out}")


if __name__ == "__main__":
    main()
