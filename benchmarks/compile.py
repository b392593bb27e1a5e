"""Timings of the compiled sampler: scopes side by side, and from a cold start to an image.

    python benchmarks/compile.py --model digits --out benchmarks/records/compile-digits.json

The cold starts are fresh processes with an empty cache each, alternating: one compiles, one loads
an artefact exported before. Seconds are given from the start of the process to the first image, and
without the import of the library.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import flowturbo as ft
from flowturbo.evaluate.benchmark import benchmark
from flowturbo.refiner.resolve import resolve

FRESH = """
import sys, time
name, plan, artefact, out, batch = sys.argv[1:]
import torch
import flowturbo as ft
from flowturbo.refiner.resolve import resolve
start = time.perf_counter()
model = ft.load(name)
plan = ft.Plan.load(plan)
if artefact == "-":
    fast = ft.compile(model, plan, resolve(model, plan).refiner, batch=int(batch))
else:
    fast = ft.load_compiled(artefact)
x = ft.noise.draw(range(int(batch)), model.shape)
x1 = fast(x, model.condition(((model.names or [""]) * int(batch))[:int(batch)]))
print(time.perf_counter() - start)
torch.save(x1, out)
"""


def cold(name: str, plan: ft.Plan, artefact: Path, batch: int, repeats: int) -> dict:
    """Seconds to the first image by compiling and by loading, and how far these are apart."""
    taken = {"compile": [], "load": []}
    images = {}
    for _ in range(repeats):
        for kind, given in (("compile", "-"), ("load", str(artefact))):
            with tempfile.TemporaryDirectory() as folder:
                plan.save(f"{folder}/plan.json")
                env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}
                env |= {"CXX": "false"} if kind == "load" else {}
                arguments = [name, f"{folder}/plan.json", given, f"{folder}/x.pt", str(batch)]
                start = time.perf_counter()
                run = subprocess.run(
                    [sys.executable, "-c", FRESH, *arguments],
                    env=env, check=True, text=True, stdout=subprocess.PIPE,
                )  # fmt: skip
                whole = time.perf_counter() - start
                taken[kind].append({"process": whole, "without_import": float(run.stdout)})
                images[kind] = torch.load(f"{folder}/x.pt", weights_only=True)
    middle = lambda kind, what: median(t[what] for t in taken[kind])
    return {
        "seconds": taken,
        "sooner": {
            what: middle("compile", what) / middle("load", what)
            for what in ("process", "without_import")
        },
        "largest_difference": float((images["compile"] - images["load"]).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--plan", default=None)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--cold", type=int, default=1, help="cold starts of each kind, 0 for none")
    parser.add_argument("--scopes", default="none,network,row,plan")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    model = ft.load(options.model, dtype=getattr(torch, options.dtype))
    used = resolve(model, options.plan)
    plan, refiner = used.plan, used.refiner
    names = ((model.names or [""]) * options.batch)[: options.batch]
    control = ft.Plan.parse(f"AB2:{max(2, plan.nfe['model'] - 1)}@1.6")
    record = benchmark(
        model,
        [plan, control],
        refiner,
        cond=model.condition(names),
        batch=options.batch,
        guidance=model.defaults["guidance"],
        scopes=options.scopes.split(","),
        repeats=options.repeats,
    )
    measured = record["methods"][: len(options.scopes.split(","))]  # of the plan, not the control
    ms = {row["scope"]: row["ms"]["median"] for row in measured}
    record["faster_than"] = {f"{a} than {b}": ms[b] / ms[a] for a in ms for b in ms if a != b}
    record["loop_share"] = [r["loop_share"] for r in record["methods"] if "loop_share" in r]
    if options.cold:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sampler.pt2"
            ft.export(path, model, plan, refiner, batch=options.batch)
            record["cold_start"] = cold(options.model, plan, path, options.batch, options.cold)
            record["cold_start"]["artefact_bytes"] = path.stat().st_size
    text = json.dumps(record, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
