"""Errors of tuned plans with and without conditional evaluations, at equal numbers of passes.

    python benchmarks/passes.py --model digits --passes 8 10 12 16 20 --guidance 1.5 2 4 \\
        --out benchmarks/records/passes-digits.json

measures on 1,000 noise samples that nothing else uses, at each scale and number of passes: the plan
of `flowturbo.tune` by evaluations, each of two passes, and the one by passes, both also with the
refiner of ``--refiner``; the best scheduler of diffusers; and the best classical solver that reuses
the last difference of the branches after a gate. The last two are chosen on the noise samples
themselves, in their favour. An interrupted run is resumed, and entries of the record are kept.

    python benchmarks/passes.py --table benchmarks/records/passes-*.json

prints the errors and their ratios, as on the results page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from method import Fits, best, check_alike, keep
from passes_page import section
from schedulers import SHIFTS, schedulers
from trial import Trial

import flowturbo as ft
from flowturbo.tuning.conditional import counts_of

GATED = ("AB2", "AB3", "AB4", "UNIPC2", "UNIPC3", "DPM2")


def gated(passes: int) -> dict[str, ft.Plan]:
    """Classical solvers that reuse the last difference of the branches from some step on.

    At least half of the steps have both branches, as in `flowturbo.tune`.
    """
    counts = [(full, c) for full, c in counts_of(passes) if c]
    names = [f"{solver}:{'F' * full}{'C' * c}" for full, c in counts for solver in GATED]
    return {f"{name}@{s:g}": ft.Plan.parse(name, shift=s) for name in names for s in SHIFTS}


def cell(
    trial: Trial, fits: Fits, passes: int, refiner: Any, found: dict[str, Any]
) -> dict[str, Any]:
    """Everything at so many passes that is not in ``found``."""
    guidance = trial.conditions["guidance"]

    def add(name: str, plan: ft.Plan, refiner: Any = None, **about: Any) -> None:
        about |= {"passes": plan.passes(guidance), "table": json.loads(plan.to_json())}
        found[name] = trial.entry(plan, refiner, **about)
        print(f"{guidance:g}, {passes}: {name}: {plan.name}, {found[name]['rmse']}", flush=True)

    for name, budget in (("evaluations", {"nfe": passes // 2}), ("passes", {"passes": passes})):
        if name not in found:
            add(name, fits.named(f"{name}-{passes}", **budget))
        if refiner is not None and f"{name}, refiner" not in found:
            fitted = fits.named(f"{name}-{passes}-refiner", refiner=refiner, **budget)
            add(f"{name}, refiner", fitted, refiner)
    for name, tried in (("scheduler", schedulers(passes // 2)), ("gated reuse", gated(passes))):
        if name not in found:
            label, _ = best(trial, tried)
            add(name, tried[label], chosen=label)
    return found


def measure(options: argparse.Namespace) -> None:
    model, name = ft.load(options.model, device=options.device), Path(options.model).name
    refiner = ft.load_refiner(options.refiner, model) if options.refiner else None
    out = Path(options.out or f"benchmarks/records/passes-{name}.json")
    record = json.loads(out.read_text()) if out.is_file() else {}
    for guidance in options.guidance:
        folder = Path(options.folder or f"runs/passes/{name}") / f"{guidance:g}"
        trial = Trial(model, guidance, options.noise_samples, options.reference, folder / "trial")
        here = record.setdefault(f"{guidance:g}", {"conditions": trial.conditions, "cells": {}})
        check_alike(out, here["conditions"], trial)
        whose = getattr(refiner, "fingerprint", None)
        fitted = {"trajectories": options.trajectories, "search": not options.no_search}
        if here.setdefault("fitted", {**fitted, "refiner": whose}) != {**fitted, "refiner": whose}:
            raise SystemExit(f"{out} has plans fitted as {here['fitted']}: give another --out")
        here["reference"] = trial.reference_error()
        fits = Fits(folder, model, guidance, fitted)
        for passes in options.passes:
            known = {} if options.again else here["cells"].get(str(passes), {})
            here["cells"][str(passes)] = cell(trial, fits, passes, refiner, known)
            keep(out, record)
    print(f"-> {out}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", help="a bundled name or a folder")
    add("--passes", type=int, nargs="+", default=[8, 10, 12, 16, 20], help="even, at least 6")
    add("--guidance", type=float, nargs="+", default=[1.5, 2.0, 4.0])
    add("--device", default="cpu", help="where to compute")
    add("--noise-samples", type=int, default=1000, help="to test on")
    add("--reference", default="AB4RK:105@0.5", help="plan of the reference solution")
    add("--trajectories", type=int, default=96, help="to fit on")
    add("--no-search", action="store_true", help="fit weights at given times only")
    add("--folder", help="for fits and reference solutions, runs/passes/MODEL by default")
    add("--refiner", help="folder or bundled name of a refiner, for plans with it too")
    add("--again", action="store_true", help="measure again what is in the record")
    add("--out", help="the record")
    add("--table", nargs="+", metavar="RECORD", help="print the ratios in records, and stop")
    options = parser.parse_args()
    if any(n < 6 or n % 2 for n in options.passes):
        parser.error(f"--passes {options.passes}: must be even, to compare with, and at least 6")
    if options.table:
        print(section(json.loads(Path(path).read_text()) for path in options.table))
    elif options.model:
        measure(options)
    else:
        parser.error("--model or --table is needed")


if __name__ == "__main__":
    main()
