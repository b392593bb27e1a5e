"""Timings of the paper's main table at full size: SiT-XL/2 at 256 px, random weights, bfloat16.

    python benchmarks/gpu/full_size.py --out benchmarks/records/gpu-full-size.json

Times do not depend on the weights, so these are random, and image quality is not measured. The
paper's plans run with the paper's refiner, ours with ours, and plain solvers run with the same
number of evaluations; for each batch size, uncompiled and with the networks compiled block by
block, both also captured in a CUDA graph. A profile of one plan of each kind shows how the device
spends that time. With ``--parts whole``, the other scopes of compilation are compared on these two
plans, which takes minutes each. The record is written after every step, and an existing one is
extended, so parts and batches may be measured one after another, on the same machine.

``--device cpu --size small`` tests the script.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compile_check import random_sit
from torch.profiler import ProfilerActivity, profile

import flowturbo as ft
from flowturbo.evaluate.benchmark import benchmark, conditions
from flowturbo.files import write_json
from flowturbo.models.layers import Block, FinalLayer
from flowturbo.refiner import PaperRefiner, VelocityRefiner
from flowturbo.timing import interleaved, spread

KIND = "full size"
PAPER = ("H8", "H11", "H15", "H24", "H1P5R3", "H2P4R2", "H2P8R2", "H5P7R3", "H8P9R5")
OURS = tuple(f"AB2:F{'FR' * (n - 1)}@1.6" for n in (4, 5, 6, 8, 10))
PLAIN = ("AB2:4@1.6", "AB2:6@1.6", "AB2:10@1.6")
KNOWN = {"fixed": 13.74, "model": 3.39, "refiner": 0.355}  # of the paper's table, ms; an R block
SHOWN = {"paper": "H1P5R3", "ours": OURS[2]}
PARTS = ("uncompiled", "whole", "compiled")  # in this order: networks stay compiled
KINDS = {  # of kernels, by what is in their names
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas"),
    "attention": ("flash", "fmha", "attention"),
    "copies": ("memcpy", "memset"),
}


def compile_blocks(*networks: torch.nn.Module) -> None:
    """Compile their blocks, all of one kind as one."""
    torch._dynamo.config.recompile_limit = 64  # batches, with and without guidance
    for network in networks:
        for module in network.modules():
            if isinstance(module, Block | FinalLayer):
                module.compile(dynamic=False)


def profiled(net: Any, plan: ft.Plan, refiner: Any, cond: torch.Tensor, **options: Any) -> Any:
    """Milliseconds of a sample, as it is and captured, and of the kernels in it by kind."""
    x = torch.randn(len(cond), *net.shape, device=cond.device)
    made = partial(
        ft.compile, net, plan, refiner, batch=len(x), cond=cond, scope="none",
        dtype=torch.bfloat16, **options,
    )  # fmt: skip
    found, cuda = {}, x.device.type == "cuda"
    calls = {"loop": partial(made(capture=False), x, cond)}
    if cuda:
        calls["captured"] = partial(made(capture=True), x, cond)
    taken = interleaved(calls, x.device, repeats=10)
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    spent = lambda e: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1000
    for name, call in calls.items():
        ms = spread(taken[name])
        with profile(activities=[activity]) as traced:
            call()
            if cuda:
                torch.cuda.synchronize()
        kernels = sorted(filter(spent, traced.key_averages()), key=spent, reverse=True)
        took: Counter[str] = Counter()
        for e in kernels:
            of = (k for k, parts in KINDS.items() if any(p in e.key.lower() for p in parts))
            took[next(of, "others")] += spent(e)
        busy = sum(took.values())
        found[name] = {
            "ms": ms, "kernels": sum(e.count for e in kernels), "kernels_ms": busy,
            "kernels_ms_by_kind": dict(took), "left_over_ms": ms["median"] - busy,
            "longest": {e.key[:80]: spent(e) for e in kernels[:12]},
        }  # fmt: skip
    return found


def begun(out: Path, size: str, guidance: float, device: str) -> dict[str, Any]:
    """The record that is there, an empty one if there is none.

    Raises:
        ValueError: if it is of something else or of another machine.
    """
    if not out.is_file():
        return {"kind": KIND, "size": size, "command": "", "paper_latency": KNOWN,
                "timed": {}, "profiles": {}}  # fmt: skip
    record = json.loads(out.read_text("utf-8"))
    machine = lambda c: (c["device"], c["versions"]["torch"])
    here = (KIND, size, guidance, *machine(conditions(None, None, torch.zeros(1, device=device))))
    for timed in (t for b in record["timed"].values() for k in b.values() for t in k.values()):
        c = timed["conditions"]
        there = (record["kind"], record["size"], c["guidance"], *machine(c))
        if there != here:
            raise ValueError(f"--out {out}: is of {there}, not of {here}; give another")
    return record


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
    add("--plans", nargs="+", default=[*PAPER, *OURS, *PLAIN], help="by default all")
    add("--parts", nargs="+", choices=PARTS, default=PARTS[::2], metavar="PART",
        help=f"of {', '.join(PARTS)}; by default without the second")  # fmt: skip
    add("--out", "-o", type=Path, required=True, help="the record")
    options = parser.parse_args()
    net = random_sit(options.size, options.device).to(torch.bfloat16)
    refiners = {
        "paper": PaperRefiner.from_model(net),
        "ours": VelocityRefiner.from_model(net, (1.0, 4.0)),
    }
    for refiner in refiners.values():
        refiner.to(options.device, torch.bfloat16).eval().requires_grad_(False)
    plans = {
        whose: [ft.Plan.parse(p) for p in options.plans if p not in others]
        for whose, others in (("paper", OURS), ("ours", PAPER))
    }
    cuda = options.device == "cuda"
    try:
        record = begun(options.out, options.size, options.guidance, options.device)
    except ValueError as e:
        parser.error(str(e))
    command = " ".join(["python", *sys.argv])
    record["command"] = " && ".join(filter(None, [record["command"], command]))

    labels = lambda batch: torch.arange(batch, device=options.device) % net.config.classes

    def measured(batch: int, key: str, scopes: tuple[str, ...], which: Any) -> None:
        for whose, refiner in refiners.items():
            found = benchmark(
                net, which[whose], refiner, cond=labels(batch), batch=batch, scopes=scopes,
                guidance=options.guidance, dtype=torch.bfloat16, repeats=options.repeats,
                reference=None,
            )  # fmt: skip
            record["timed"].setdefault(whose, {}).setdefault(str(batch), {})[key] = found
            write_json(options.out, record)
            print(f"{whose}, batch {batch}, {key}: {found['latency']}", flush=True)

    captured = ("none", "none captured") if cuda else ("none",)
    for key in (k for k in PARTS if k in options.parts):
        if key == "whole":
            every = ("none", "network", "row", "plan")
            measured(
                options.batch[-1], key, every, {k: [ft.Plan.parse(p)] for k, p in SHOWN.items()}
            )
            continue
        if key == "compiled":
            compile_blocks(net, *refiners.values())
        for batch in options.batch:
            measured(batch, key, captured, plans)
            for whose, text in SHOWN.items():
                sizes = record["profiles"].setdefault(whose, {})
                sizes.setdefault(str(batch), {})[key] = profiled(
                    net,
                    ft.Plan.parse(text),
                    refiners[whose],
                    labels(batch),
                    guidance=options.guidance,
                )
                write_json(options.out, record)


if __name__ == "__main__":
    main()
