"""Errors of tuned plans, classical solvers and schedulers of diffusers.

    python benchmarks/method.py --model digits --nfe 4 5 6 8 10 --refiner runs/refiner \\
        --out benchmarks/records/method-digits.json

measures on 256 noise samples that nothing else uses; plans that are not in ``--plans`` are fitted
first. An interrupted run is resumed. Schedulers run at every shift on two grids, and the best is
reported: chosen on the test noise samples themselves, in its favour, by successive halving.

    python benchmarks/method.py --model digits --nfe 5 6 --refiner runs/refiner --split \\
        --out benchmarks/records/method-digits.json

adds the gain of each part of the method, and

    python benchmarks/method.py --table benchmarks/records/method-*.json

compares with the targets, as the page that `make_results` makes does.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ratios import report
from schedulers import SHIFTS, schedulers
from trial import Trial

import flowturbo as ft
from flowturbo.files import atomic_write
from flowturbo.path import shifted
from flowturbo.tuning.reference import Reference, solve
from flowturbo.tuning.weights import fit_weights

PAPER = "H1P10"  # the paper's plan of 12 evaluations, whatever the others take
HALVING = ((8, 8), (32, 45))  # (noise samples, divisor): one in so many plans stays, at least two


def rms(errors: Any) -> float:
    return float(np.sqrt((errors**2).mean()))


def best(
    trial: Trial, plans: dict[str, ft.Plan], refiner: Any = None
) -> tuple[str, list[list[Any]]]:
    """The label of the best plan, and [label, noise samples, error] of every plan."""
    left, seen = list(plans), {}
    for rows, share in (*HALVING, (trial.noise_samples, len(plans))):
        rows = min(rows, trial.noise_samples)
        for label in left:
            error = rms(trial.errors(plans[label], rows, refiner))
            seen[label] = [label, rows, float(f"{error:.5g}")]
        left.sort(key=lambda label: seen[label][2])
        left = left[: max(2, -(-len(plans) // share))]
    return left[0], list(seen.values())


def adams(nfe: int) -> dict[str, dict[str, ft.Plan]]:
    """Adams-Bashforth 2 and 4 at every shift."""
    return {f"AB{n}": {f"{s:g}": ft.Plan.parse(f"AB{n}:{nfe}@{s}") for s in SHIFTS} for n in (2, 4)}


def cell(trial: Trial, nfe: int, fitted: dict[str, tuple[ft.Plan, Any]]) -> dict[str, Any]:
    """Everything at ``nfe`` evaluations of the model."""
    plans = {"H1P(n-2)": ft.Plan.parse(f"H1P{nfe - 2}"), "Euler": ft.Plan.euler(nfe)}
    if nfe % 2 == 0:
        plans["Heun"] = ft.Plan.heun(nfe // 2)
    found = {label: trial.entry(plan) for label, plan in plans.items()}
    fields = {**adams(nfe), "scheduler": schedulers(nfe)}
    tried = {}
    for name, field in fields.items():
        label, tried[name] = best(trial, field)
        found[name] = trial.entry(field[label], chosen=label)
        print(f"{nfe}: best {name}: {label}, {found[name]['rmse']}", flush=True)
    for label, (plan, refiner) in fitted.items():
        found[label] = trial.entry(plan, refiner, info=dict(plan.info))
        print(f"{nfe}: {label}: {found[label]['rmse']}", flush=True)
    return {"plans": found, "tried": tried}


class Fits:
    """Fitted plans: those in a folder, and those that `flowturbo.tune` makes into it."""

    def __init__(self, folder: Path, model: Any, guidance: float, options: dict[str, Any]) -> None:
        self.folder, self.model, self.guidance, self.options = folder, model, guidance, options

    def plan(self, nfe: int, refiner: Any = None, suffix: str = "") -> ft.Plan:
        return self.named(f"{nfe}{suffix}", nfe=nfe, refiner=refiner)

    def named(self, name: str, **budget: Any) -> ft.Plan:
        path = self.folder / f"{name}.json"
        if not path.is_file():
            print(f"fitting {path}", flush=True)
            ft.tune(
                self.model,
                guidance=self.guidance,
                cache_dir=self.folder / "search",
                report=partial(print, flush=True),
                **budget,
                **self.options,
            ).save(path)
        return ft.Plan.load(path)

    def starts(self, n: int, seed: int) -> tuple[torch.Tensor, Any]:
        """Noises of ``n`` trajectories to fit on, and their conditions."""
        first, cond = 1_000_000_000 * (seed + 1), None
        shape, device = self.model.shape, self.model.device
        noise = ft.noise.draw(range(first, first + n), shape, device=device)
        if hasattr(self.model, "random_condition"):
            cond = self.model.random_condition(n, torch.Generator().manual_seed(seed))
        return noise, cond

    def solved(self, n: int, seed: int) -> Reference:
        """``n`` trajectories to fit on."""
        return solve(self.model, *self.starts(n, seed), guidance=self.guidance)

    def at_given_times(self, trial: Trial, nfe: int, shift: float, seed: int = 0) -> ft.Plan:
        """Weights alone, on the grid of ``shift``, from as many trajectories as `tune` fits on."""

        def make() -> ft.Plan:
            solved = self.solved(self.options.get("trajectories", 64), seed)
            return fit_weights(self.model, solved, shifted(nfe, shift))[0]

        return trial.journal.plan(f"weights {nfe} {shift} {seed}", make)


def check_alike(out: Path, found: dict[str, Any], trial: Trial, anywhere: bool = False) -> None:
    """Stop before measurements under two conditions get into one record.

    ``anywhere`` lets the machine differ; what is added then says where it was measured.
    """
    machine = ("threads", "device", "versions") if anywhere else ("threads",)
    if {**found, **dict.fromkeys(machine)} != {**trial.conditions, **dict.fromkeys(machine)}:
        raise SystemExit(f"{out} was measured under {found}: give another --out")


def split(trial: Trial, fits: Fits, nfe: int, shift: float, refiners: Any) -> dict[str, Any]:
    """What each part of the method gains at ``nfe`` evaluations; ``shift`` is the best of AB2."""
    steps: dict[str, tuple[ft.Plan, Any]] = {
        "the paper's H1P(n-2)": (ft.Plan.parse(f"H1P{nfe - 2}"), None),
        "no evaluation at t = 1 (AB2, uniform)": (ft.Plan.parse(f"AB2:{nfe}"), None),
        f"the grid (AB2, shift {shift:g})": (ft.Plan.parse(f"AB2:{nfe}@{shift}"), None),
        "weights fitted on that grid": (fits.at_given_times(trial, nfe, shift), None),
        "times and weights moved": (fits.plan(nfe), None),
    }
    for name, suffix, refiner in refiners:
        steps[name] = (fits.plan(nfe, refiner, suffix), refiner)
    return {name: trial.entry(plan, refiner) for name, (plan, refiner) in steps.items()}


def load_refiners(folder: str | None, model: Any) -> list[tuple[str, str, Any]]:
    """(what it is, suffix of its plans, refiner): of the first phase, if kept, and the last."""
    found = []
    if folder and (Path(folder) / "refiner-run" / "refiner.json").is_file():
        first = ft.load_refiner(Path(folder) / "refiner-run", model)
        found.append(("the refiner, first phase", "-first", first))
    if folder:
        name = "the refiner, on-policy" if found else "the refiner"
        found.append((name, "-refiner", ft.load_refiner(folder, model)))
    return found


def measure(options: argparse.Namespace) -> None:
    model = ft.load(options.model, device=options.device)
    name = Path(options.model).name
    work = Path(options.folder or f"runs/method/{name}")
    out = Path(options.out or f"benchmarks/records/method-{name}.json")
    trial = Trial(model, options.guidance, options.noise_samples, options.reference, work / "trial")
    given = {"trajectories": options.trajectories, "search": not options.no_search}
    fits = Fits(Path(options.plans or work / "plans"), model, options.guidance, given)
    refiners = load_refiners(options.refiner, model)
    record = {"conditions": trial.conditions, "cells": {}, "split": {}}
    if out.is_file():
        found = json.loads(out.read_text())
        check_alike(out, found["conditions"], trial)
        record |= {key: found[key] for key in ("cells", "split")}
    record["reference"] = trial.reference_error()
    record["roughness"] = trial.roughness()
    print(record["reference"], f"roughness {record['roughness']:.3f}", flush=True)

    record["cells"]["12"] = {"plans": {"H1P(n-2)": trial.entry(ft.Plan.parse(PAPER))}}
    for nfe in options.nfe:
        if options.split:
            shift = float(record["cells"][str(nfe)]["plans"]["AB2"]["chosen"])
            record["split"][str(nfe)] = split(trial, fits, nfe, shift, refiners)
        else:
            fitted = {} if options.no_fit else {"fitted": (fits.plan(nfe), None)}
            for _, suffix, refiner in refiners[-1:]:
                fitted["fitted, refiner"] = (fits.plan(nfe, refiner, suffix), refiner)
            record["cells"][str(nfe)] = cell(trial, nfe, fitted)
        keep(out, record)
    print(f"-> {out}")


def keep(out: Path, record: dict[str, Any]) -> None:
    with atomic_write(out) as temporary:
        temporary.write_text(dumps(record), encoding="utf-8")


def dumps(record: dict[str, Any]) -> str:
    """JSON with each list of numbers on one line."""
    lists: list[str] = []

    def fold(value: Any) -> Any:
        if isinstance(value, list):
            lists.append(json.dumps(value))
            return f"@{len(lists) - 1}@"
        return {k: fold(v) for k, v in value.items()} if isinstance(value, dict) else value

    text = json.dumps(fold(record), indent=1)
    for i, line in enumerate(lists):
        text = text.replace(f'"@{i}@"', line)
    return text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", help="a bundled name or a folder")
    add("--nfe", type=int, nargs="+", default=[4, 5, 6, 8, 10], help="evaluations of the model")
    add("--device", default="cpu", help="where to compute")
    add("--guidance", type=float, default=2.0)
    add("--noise-samples", type=int, default=256, help="to test on")
    add("--reference", default="AB4RK:105@0.5", help="plan of the reference solution")
    add("--refiner", help="a folder with a refiner")
    add("--plans", help="a folder of fitted plans, 6.json and 6-refiner.json")
    add("--trajectories", type=int, default=64, help="for plans that have to be fitted")
    add("--no-search", action="store_true", help="fit weights at given times only")
    add("--no-fit", action="store_true", help="classical solvers and schedulers only")
    add("--split", action="store_true", help="what each part gains, instead")
    add("--folder", help="for what is computed on the way; runs/method/NAME by default")
    add("--out", "-o", help="the record, or the table")
    add("--table", nargs="+", metavar="RECORD", help="compare records with the targets")
    add("--rough", nargs="+", metavar="RECORD", default=[], help="records of rough fields")
    options = parser.parse_args()
    if options.table or options.rough:
        text = report(options.table or [], options.rough)
        print(text)
        if options.out:
            with atomic_write(options.out) as temporary:
                temporary.write_text(text, encoding="utf-8")
    elif options.model:
        measure(options)
    else:
        parser.error("--model or --table")


if __name__ == "__main__":
    main()
