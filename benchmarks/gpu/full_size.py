"""The paper's main table on the clock at its size: SiT-XL/2 at 256 px, random weights, bfloat16.

    python benchmarks/gpu/full_size.py --out benchmarks/records/gpu-full-size.json

Times do not depend on the weights, so these are random, and nothing is said of pictures. The
paper's plans run with the paper's refiner, ours with ours, both beside plain solvers of as many
evaluations; by batch, uncompiled, with the network compiled, and that captured in a CUDA graph.
What is compiled is compared on one plan of each. The record is written after every batch.

``--device cpu --size small`` shows that the script works.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from compile_check import random_sit

import flowturbo as ft
from flowturbo.evaluate.benchmark import benchmark
from flowturbo.files import write_json
from flowturbo.refiner import PaperRefiner, VelocityRefiner
from flowturbo.train.own_states import mixed_plan

PAPER = ("H8", "H11", "H15", "H24", "H1P5R3", "H2P4R2", "H2P8R2", "H5P7R3", "H8P9R5")
OURS = tuple("M" + "MR" * (n - 1) for n in (4, 5, 6, 8, 10))
PLAIN = ("AB2:4@1.6", "AB2:6@1.6", "AB2:10@1.6")
KNOWN = {"fixed": 13.74, "model": 3.39, "refiner": 0.355}  # fitted to the paper's table, ms


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda")
    add("--size", default="XL/2", help="of the SiT: small, B/2, XL/2, ...")
    add("--batch", type=int, nargs="+", default=[1, 8, 32])
    add("--repeats", type=int, default=10)
    add("--guidance", type=float, default=1.5, help="the paper's")
    add("--plans", type=int, help="at the most, of each kind; by default all")
    add("--out", "-o", type=Path, required=True, help="the record")
    options = parser.parse_args()
    net = random_sit(options.size, options.device)
    refiners = {
        "paper": PaperRefiner.from_model(net).to(options.device).eval().requires_grad_(False),
        "ours": VelocityRefiner.from_model(net, (1.0, 4.0)).to(options.device).eval(),
    }
    few = slice(options.plans)
    plain = [ft.Plan.parse(p) for p in PLAIN[few]]
    plans = {
        "paper": [*(ft.Plan.parse(p) for p in PAPER[few]), *plain],
        "ours": [*(mixed_plan(p) for p in OURS[few]), *plain],
    }
    shown = {"paper": ft.Plan.parse("H1P5R3"), "ours": mixed_plan(OURS[2])}
    cuda = options.device == "cuda"
    scopes = ("none", "network", "network captured") if cuda else ("none", "network")
    every = ("none", "network", "row", "plan")
    record: dict[str, Any] = {
        "kind": "full size",
        "size": options.size,
        "command": " ".join(["python", *sys.argv]),
        "paper_latency": KNOWN,
        "timed": {},
    }
    for batch in options.batch:
        cond = torch.arange(batch, device=options.device) % net.config.classes
        for whose, refiner in refiners.items():
            measure = lambda which, what, r=refiner, c=cond, b=batch: benchmark(
                net, which, r, cond=c, batch=b, guidance=options.guidance, scopes=what,
                dtype=torch.bfloat16, repeats=options.repeats, reference=None,
            )  # fmt: skip
            found = record["timed"].setdefault(whose, {})
            found[str(batch)] = measure(plans[whose], scopes)
            write_json(options.out, record)
            found[f"{batch}, by what is compiled"] = measure([shown[whose]], every)
            write_json(options.out, record)
            print(f"{whose}, batch {batch}: {found[str(batch)]['latency']}", flush=True)


if __name__ == "__main__":
    main()
