"""Errors of tuned plans with and without conditional evaluations, at equal passes of the network.

    python benchmarks/passes.py --model digits --passes 8 10 12 16 20 --guidance 1.5 2 4 \\
        --out benchmarks/records/passes-digits.json

measures on 1,000 noise samples that nothing else uses, at each scale and number of passes: the plan
of `flowturbo.tune` by evaluations, each of two passes, the one by passes, and the best scheduler of
diffusers, chosen on the noise samples themselves. It resumes where it was stopped.

    python benchmarks/passes.py --table benchmarks/records/passes-*.json

prints the ratios, their geometric mean and the largest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from method import Fits, best, check_alike, keep
from schedulers import schedulers
from trial import Trial

import flowturbo as ft


def cell(trial: Trial, fits: Fits, passes: int) -> dict[str, Any]:
    """Everything at so many passes."""
    guidance = trial.conditions["guidance"]
    found = {}
    for name, budget in (("evaluations", {"nfe": passes // 2}), ("passes", {"passes": passes})):
        plan = fits.named(f"{name}-{passes}", **budget)
        found[name] = trial.entry(plan, passes=plan.passes(guidance))
        print(f"{guidance:g}, {passes}: {name}: {found[name]['rmse']}", flush=True)
    tried = schedulers(passes // 2)
    label, _ = best(trial, tried)
    found["scheduler"] = trial.entry(tried[label], chosen=label)
    print(f"{guidance:g}, {passes}: {label}: {found['scheduler']['rmse']}", flush=True)
    return found


def measure(options: argparse.Namespace) -> None:
    model, name = ft.load(options.model, device=options.device), Path(options.model).name
    out = Path(options.out or f"benchmarks/records/passes-{name}.json")
    record = json.loads(out.read_text()) if out.is_file() else {}
    for guidance in options.guidance:
        folder = Path(options.folder or f"runs/passes/{name}") / f"{guidance:g}"
        trial = Trial(model, guidance, options.noise_samples, options.reference, folder / "trial")
        here = record.setdefault(f"{guidance:g}", {"conditions": trial.conditions, "cells": {}})
        check_alike(out, here["conditions"], trial)
        here["reference"] = trial.reference_error()
        given = {"trajectories": options.trajectories, "search": not options.no_search}
        fits = Fits(folder, model, guidance, given)
        for passes in options.passes:
            here["cells"][str(passes)] = cell(trial, fits, passes)
            keep(out, record)
    print(f"-> {out}")


def table(paths: list[str]) -> None:
    """The errors by passes over those by evaluations, and over the best scheduler's."""
    print("model    guidance passes  by passes  by evaluations  scheduler")
    ratios: dict[str, list[float]] = {"evaluations": [], "scheduler": []}
    for path in paths:
        for guidance, part in json.loads(Path(path).read_text()).items():
            for passes, found in part["cells"].items():
                errors = {name: entry["rmse"] for name, entry in found.items()}
                for name, values in ratios.items():
                    values.append(errors["passes"] / errors[name])
                print(
                    f"{part['conditions']['model']:8} {guidance:>8} {passes:>6}  "
                    f"{errors['passes']:9.4f}  {errors['evaluations']:14.4f}  "
                    f"{errors['scheduler']:9.4f}"
                )
    for name, values in ratios.items():
        mean = float(np.exp(np.mean(np.log(values))))
        print(f"by passes / {name}: geometric mean {mean:.3f}, largest {max(values):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", help="a bundled name or a folder")
    add("--passes", type=int, nargs="+", default=[8, 10, 12, 16, 20], help="of the network")
    add("--guidance", type=float, nargs="+", default=[1.5, 2.0, 4.0])
    add("--device", default="cpu", help="where to compute")
    add("--noise-samples", type=int, default=1000, help="to test on")
    add("--reference", default="AB4RK:105@0.5", help="plan of the reference solution")
    add("--trajectories", type=int, default=96, help="to fit on")
    add("--no-search", action="store_true", help="fit weights at given times only")
    add("--folder", help="for fits and reference solutions, runs/passes/MODEL by default")
    add("--out", help="the record")
    add("--table", nargs="+", metavar="RECORD", help="print the ratios in records, and stop")
    options = parser.parse_args()
    if options.table:
        table(options.table)
    elif options.model:
        measure(options)
    else:
        parser.error("--model or --table is needed")


if __name__ == "__main__":
    main()
