"""The cost of a refiner call, as a share of a guided evaluation of its model.

    python benchmarks/refiner_cost.py --model emoji --refiner runs/refiner \\
        --out benchmarks/records/refiner-cost-emoji.json

The calls are those of ``--plan``, and the time of a call is their mean: the parts that do not
depend on the state are computed once per sample, for all of them. Evaluation and calls are timed
side by side in one run, both eager, then both compiled, at batch 1 and 8. Without ``--refiner`` an
untrained one of the same shape is used, which costs the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from trial import versions

import flowturbo as ft
from flowturbo.field import embedded
from flowturbo.files import write_json
from flowturbo.refiner import VelocityRefiner
from flowturbo.stats import interval

MUST = {1: 0.10, 8: 0.06}


def calls(
    model: Any, refiner: Any, plan: ft.Plan, batch: int, guidance: float
) -> list[Callable[[], Any]]:
    """A guided evaluation, and the refiner calls of ``plan`` on the same ``batch`` images."""
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(batch, *model.shape, generator=generator) for _ in range(3))
    cond = model.random_condition(batch, generator)
    t, guided = torch.tensor(0.5), ft.Guidance(model, guidance)
    shown = embedded(guided, cond)  # once a sample, as in the loop
    rows = [row for row in plan.rows if row.evaluator == "refiner"]

    def refine() -> list[Any]:
        seen = refiner.embed_rows(rows, cond, guidance)
        history = lambda row: [(t, v) for (_, t), v in zip(row.history[-2:], (b, a), strict=True)]
        return [
            refiner(x, x.new_full((), row.model_time), seen[row.k], history(row), guidance=guidance)
            for row in rows
        ]

    return [lambda: guided(x, t, shown), refine]


def timed(pair: list[Callable[[], Any]], seconds: float) -> Any:
    """Seconds of each, (rounds, 2), for about this many seconds."""
    rounds: list[list[float]] = []
    for call in pair * 3:
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < 20:
        turn = []
        for call in pair:
            start = time.perf_counter()
            call()
            turn.append(time.perf_counter() - start)
        rounds.append(turn)
    return np.array(rounds)


def ratio(rounds: Any, number: int) -> dict[str, Any]:
    """Of the medians, the second of ``number`` calls, with a 95 % bootstrap interval."""
    rounds = rounds / [1, number]
    share = lambda t: np.divide(*np.median(t, axis=0)[::-1])
    middle = np.median(rounds, axis=0)
    return {
        "ratio": round(float(middle[1] / middle[0]), 4),
        "ratio_95": [round(q, 4) for q in interval(share, rounds)],
        "milliseconds": [round(1000 * float(m), 3) for m in middle],
        "rounds": len(rounds),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="digits", help="a bundled name or a folder")
    parser.add_argument("--refiner", help="a folder with its refiner")
    parser.add_argument("--plan", default="AB2:FFRFRFRFRF@1.6", help="with a refiner")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--eager", action="store_true", help="nothing compiled")
    parser.add_argument("--out", "-o", help="the record")
    options = parser.parse_args()
    model = ft.load(options.model)
    refiner = VelocityRefiner.from_model(model, (1.0, 4.0)).eval()
    if options.refiner:
        refiner = ft.load_refiner(options.refiner, model)
    plan = ft.Plan.parse(options.plan)
    size = lambda network: sum(p.numel() for p in network.parameters())
    record: dict[str, Any] = {
        "conditions": {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "refiner": refiner.fingerprint if options.refiner else "untrained",
            "parameters": {"model": size(model), "refiner": size(refiner)},
            "plan": plan.name,
            "guidance": options.guidance,
            "dtype": "float32",
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
        "results": {},
    }
    for mode in ["eager"] if options.eager else ["eager", "compiled"]:
        for batch in options.batch:
            pair = calls(model, refiner, plan, batch, options.guidance)
            if mode == "compiled":
                torch.compiler.reset()
                pair = [torch.compile(call, dynamic=False) for call in pair]
            rounds = timed(pair, options.seconds)
            found = record["results"][f"{mode}, batch {batch}"] = ratio(rounds, plan.nfe["refiner"])
            must = MUST.get(batch, 0.10)
            verdict = "yes" if found["ratio"] <= must else "NO"
            print(f"{mode}, batch {batch}: {found}; at most {must:g}: {verdict}", flush=True)
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
