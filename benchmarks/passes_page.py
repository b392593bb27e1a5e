"""Errors at equal numbers of passes, from the records of `passes.py`, as markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ratios import calls, paired, table

PAIRS = (
    ("passes", "evaluations"),
    ("passes, refiner", "evaluations, refiner"),
    ("passes", "scheduler"),
    ("passes, refiner", "scheduler"),
    ("passes", "gated reuse"),
)
NAMES = {
    "evaluations": "tuned, both branches",
    "evaluations, refiner": "tuned + refiner, both branches",
    "passes": "tuned by passes",
    "passes, refiner": "tuned + refiner, by passes",
    "scheduler": "best scheduler",
    "gated reuse": "best gated reuse",
}
ABOUT = (
    "A guided evaluation takes two passes of the network, a conditional one (C) takes one. Tuned, "
    "both branches: the plan of `tune(nfe=...)`; by passes: that of `tune(passes=...)`, in which "
    "evaluations may be conditional. Best scheduler: of all of diffusers, at its best shift and "
    "grid. Gated reuse: the best classical solver that reuses the last difference of the branches "
    "from some step on. Both are chosen on the test noise samples themselves, in their favour."
)
Record = dict[str, Any]


def section(records: Iterable[Record]) -> str:
    """The tables of ``records``, of a model each, and the ratios over all of them."""
    parts, cells = [], []
    for record in records:
        for guidance, part in sorted(record.items(), key=lambda p: float(p[0])):
            found = dict(sorted(part["cells"].items(), key=lambda c: int(c[0])))
            cells += found.values()
            c = part["conditions"]
            parts += [f"### {c['model']}, guidance {guidance}", errors(found), conditions(part)]
    return "\n\n".join([ABOUT, ratios(cells), *parts])


def errors(cells: dict[str, Record]) -> str:
    """The error of each method by passes."""
    names = [name for name in NAMES if any(name in found for found in cells.values())]
    rows = []
    for name in names:
        row = [NAMES[name]]
        for found in cells.values():
            entry = found.get(name)
            row.append("" if entry is None else shown(entry))
        rows.append(row)
    return table(["passes", *cells], rows)


def shown(entry: Record) -> str:
    (low, high), how = entry["rmse_95"], entry.get("chosen") or calls(entry["nfe"])
    return f"{entry['rmse']:.4f} ({low:.4f} to {high:.4f})<br>median {entry['median']:.4f}<br>{how}"


def ratios(cells: list[Record]) -> str:
    """Each of `PAIRS`: geometric means over the cells, and the cell where the first is worst."""
    rows = []
    for first, second in PAIRS:
        found = [(c[first], c[second]) for c in cells if {first, second} <= {*c}]
        if found:
            each = [paired(a, b) for a, b in found]
            worst = max(each)
            medians = [a["median"] / b["median"] for a, b in found]
            rows.append([
                f"{NAMES[first]} / {NAMES[second]}", f"{len(found)}",
                f"{mean([ratio for ratio, *_ in each]):.3f}", f"{mean(medians):.3f}",
                f"{worst[0]:.3f} ({worst[1]:.3f} to {worst[2]:.3f})",
            ])  # fmt: skip
    head = ["ratio of errors", "cells", "geometric mean of RMSE", "of medians",
            "largest of RMSE (95 %)"]  # fmt: skip
    return table(head, rows)


def mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def conditions(part: Record) -> str:
    """What errors were measured on."""
    c, r = part["conditions"], part["reference"]
    versions = ", ".join(f"{k} {v}" for k, v in c["versions"].items())
    return (
        f"Weights {c['fingerprint']}, {c['noise_samples']:,} noise samples of seeds {c['seeds']}, "
        f"used for nothing else, {c['dtype']}, {c['device']}, {versions}. Reference solution: "
        f"{c['reference']}, at an RMSE of {r['rmse']:.1e} from {r['finer_plan']} on "
        f"{r['noise_samples']} noise samples."
    )
