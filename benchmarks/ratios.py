"""Ratios of errors in records of `method.py`, with paired bootstrap intervals, as markdown.

All plans of a record ran on the same noise samples, so a resample has the same rows for every plan
and number of evaluations of a model. Means over models and evaluations are geometric.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo.stats import bounds, interval, rmse

MODELS = ("digits", "emoji")  # that are to be measured
RESAMPLES = 2000
EVERY, FEW = (4, 5, 6, 8, 10), (5, 6)
FITTED, REFINED = "fitted", "fitted, refiner"  # for the lowest error
KEPT, KEPT_REFINED = "fitted, contrast kept", "fitted, refiner, contrast kept"
NAMES = {  # in tables and figures; every other label is its own name
    "H1P(n-2)": "FlowTurbo (paper), without refiner",
    "the paper's, its refiner": "FlowTurbo (paper), with refiner",
    FITTED: "tuned",
    REFINED: "tuned + refiner",
    KEPT: "tuned, contrast-preserving",
    KEPT_REFINED: "tuned + refiner, contrast-preserving",
}
Record = dict[str, Any]
Statistic = Callable[[Any], Any]


def named(label: str) -> str:
    """The name of a method, by its label in records."""
    return NAMES.get(label, label)


@dataclass(frozen=True)
class Asked:
    """``plan`` over ``baseline`` at ``at`` evaluations: at most ``must``, ``aim`` is the goal."""

    plan: str
    baseline: str
    at: tuple[int, ...]
    must: float
    aim: float
    baseline_at: int | None = None  # evaluations of the baseline; the plan's by default

    def title(self) -> str:
        other = named(self.baseline) if self.baseline_at is None else f"H1P{self.baseline_at - 2}"
        return f"{named(self.plan)} / {other}"


ASKED = (
    Asked(FITTED, "H1P(n-2)", EVERY, 0.5, 0.35),
    Asked(FITTED, "AB2", EVERY, 0.9, 0.6),
    Asked(FITTED, "scheduler", EVERY, 0.8, 0.5),
    Asked(REFINED, "H1P(n-2)", FEW, 0.35, 0.2),
    Asked(REFINED, "scheduler", FEW, 0.6, 0.35),
    Asked(REFINED, "H1P(n-2)", FEW, 1.0, 1.0, baseline_at=12),
    Asked(REFINED, "H1P(n-2)", FEW, 1.0, 1.0, baseline_at=10),
)
ROUGH_MEAN, ROUGH_WORST = 1.0, 1.05


def median(errors: Any) -> Any:
    return np.median(errors, axis=-1)


class Ratio:
    """The ratio of two statistics in every cell, and their geometric mean, each resampled."""

    def __init__(self, records: Iterable[Record], asked: Asked, of: Statistic) -> None:
        self.cells: dict[tuple[str, int], float] = {}
        self.samples: dict[tuple[str, int], Any] = {}
        self.missing: list[str] = []
        for record in records:
            name, n = record["conditions"]["model"], record["conditions"]["noise_samples"]
            rows = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
            for nfe in asked.at:
                ours = errors(record, nfe, asked.plan)
                theirs = errors(record, asked.baseline_at or nfe, asked.baseline)
                if ours is None or theirs is None:
                    self.missing.append(f"{name} {nfe}")
                    continue
                self.cells[name, nfe] = float(of(ours) / of(theirs))
                self.samples[name, nfe] = of(ours[rows]) / of(theirs[rows])

    @property
    def mean(self) -> float:
        return float(np.exp(np.mean(np.log([*self.cells.values()]))))

    def interval(self, cell: tuple[str, int] | None = None) -> tuple[float, float]:
        some = self.samples.values() if cell is None else [self.samples[cell]]
        means = np.exp(np.mean([np.log(s) for s in some], axis=0))
        low, high = bounds(means)
        return low, high


def errors(record: Record, nfe: int, label: str) -> Any:
    entry = record["cells"].get(str(nfe), {}).get("plans", {}).get(label)
    return None if entry is None else np.array(entry["errors"])


def report(paths: list[str], rough: list[str]) -> str:
    """Markdown: targets, what was measured, what each part gains, and how."""
    records, others = ([json.loads(Path(p).read_text()) for p in some] for some in (paths, rough))
    parts = []
    if records:
        parts += ["## Tuned plans and baselines", requirements(records)]
    if others:
        parts += ["## Rough in time", roughness(others)]
    for record in [*records, *others]:
        name = record["conditions"]["model"]
        parts += [f"## {name}: error to the reference solution", cells(record)]
        parts += [gains(record, nfe) for nfe in record["split"]]
        parts += [conditions(record)]
    return "\n\n".join(parts) + "\n"


def each(folder: Path, kind: str, command: str) -> Iterable[tuple[str, Record | None, str]]:
    """By model, ours first: its name, the record of a kind if it is there, what to say if not."""
    found = {p.stem.removeprefix(f"{kind}-"): p for p in folder.glob(f"{kind}-*.json")}
    for name in (*MODELS, *sorted(set(found) - set(MODELS))):
        record = json.loads(found[name].read_text("utf-8")) if name in found else None
        missing = f"`{command.format(name)}` makes `{kind}-{name}.json`"
        yield name, record, f"Not measured yet on {name}: {missing}."


def passes(nfe: Record, guidance: float) -> int:
    """Passes of the network: two for a guided evaluation, one for a conditional one."""
    return int(nfe["model"]) * (1 if guidance == 1 else 2) + int(nfe.get("conditional", 0))


def calls(nfe: Record) -> str:
    """Evaluations of the model, conditional ones (C) and refiner calls (R)."""
    more = {"C": nfe.get("conditional", 0), "R": nfe["refiner"]}
    return f"{nfe['model']}" + "".join(f" + {n} {letter}" for letter, n in more.items() if n)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def between(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


def requirements(records: list[Record]) -> str:
    rows = []
    for asked in ASKED:
        ratio, middle = (Ratio(records, asked, of) for of in (rmse, median))
        at = ", ".join(map(str, asked.at))
        limits = f"{asked.must:g} ({asked.aim:g})"
        if not ratio.cells:
            rows.append([asked.title(), at, limits, "not measured", "", "", ""])
            continue
        verdict = "aim" if ratio.mean <= asked.aim else "yes" if ratio.mean <= asked.must else "NO"
        if ratio.missing:
            verdict += f"; without {', '.join(ratio.missing)}"
        each = ", ".join(f"{name} {nfe}: {r:.2f}" for (name, nfe), r in ratio.cells.items())
        mean = f"**{ratio.mean:.3f}** ({between(*ratio.interval())})"
        rows.append([asked.title(), at, limits, mean, f"{middle.mean:.3f}", verdict, each])
    head = ["ratio", "evaluations", "target (aim)", "of RMSE (95 %)", "of medians", "met", "each"]
    note = (
        "Geometric means over models and numbers of evaluations; 95 % intervals by paired "
        "bootstrap over noise samples. The best shift and grid of a scheduler are chosen on the "
        "test noise samples."
    )
    return f"{table(head, rows)}\n\n{note}"


def roughness(records: list[Record]) -> str:
    """The plan that `tune` returns against the best scheduler."""
    rows = []
    for record in records:
        counts = [int(n) for n, c in record["cells"].items() if FITTED in c["plans"]]
        label = REFINED if all(errors(record, n, REFINED) is not None for n in counts) else FITTED
        ratio = Ratio([record], Asked(label, "scheduler", tuple(counts), 1.0, 1.0), rmse)
        worst = max(ratio.cells.values())
        met = "yes" if ratio.mean <= ROUGH_MEAN and worst <= ROUGH_WORST else "NO"
        each = (f"{c[1]}: {r:.2f} ({between(*ratio.interval(c))})" for c, r in ratio.cells.items())
        mean = f"**{ratio.mean:.3f}** ({between(*ratio.interval())})"
        change = f"{record['roughness']:.2f}"
        name = record["conditions"]["model"]
        rows.append([name, change, mean, f"{worst:.3f}", met, ", ".join(each)])
    head = ["model", "velocity change over the last 2 % of time"]
    head += [f"plan / scheduler, at most {ROUGH_MEAN:g}", f"worst, at most {ROUGH_WORST}"]
    return table([*head, "met", "each"], rows)


def cells(record: Record) -> str:
    counts = sorted(record["cells"], key=int)
    labels = list(dict.fromkeys(k for n in counts for k in record["cells"][n]["plans"]))
    rows = []
    for label in labels:
        row = [named(label)]
        for n in counts:
            plans = record["cells"][n]["plans"]
            lowest = min(e["rmse"] for e in plans.values()) if len(plans) > 1 else None
            entry = plans.get(label)
            row.append("" if entry is None else shown(entry, bold=entry["rmse"] == lowest))
        rows.append(row)
    return table(["evaluations", *counts], rows)


def shown(entry: Record, *, bold: bool = False) -> str:
    chosen = f"<br>{entry['chosen']}" if "chosen" in entry else ""
    extra = f"<br>+ {entry['nfe']['refiner']} refiner" if entry["nfe"]["refiner"] else ""
    (low, high), mark = entry["rmse_95"], "**" if bold else ""
    return (
        f"{mark}{entry['rmse']:.4f}{mark} ({low:.4f} to {high:.4f})"
        f"<br>median {entry['median']:.4f}{chosen}{extra}"
    )


def paired(here: Record, before: Record) -> tuple[float, float, float]:
    """The ratio of the RMSE of two plans on the same noise samples, and its 95 % interval."""
    one, two = (np.array(entry["errors"]) for entry in (here, before))
    ratio = lambda a, b: rmse(a) / rmse(b)
    low, high = interval(ratio, one, two, replicates=RESAMPLES)
    return float(ratio(one, two)), low, high


def gains(record: Record, nfe: str) -> str:
    """What each part gains, the step over the one before with a paired interval."""
    name, rows, before = record["conditions"]["model"], [], None
    for part, entry in record["split"][nfe].items():
        over = ""
        if before is not None:
            ratio, low, high = paired(entry, before)
            over = f"{ratio:.3f} ({between(low, high)})"
        calls = f"{entry['nfe']['model']} + {entry['nfe']['refiner']}"
        rows.append([part, calls, f"{entry['rmse']:.4f}", f"{entry['median']:.4f}", over])
        before = entry
    head = ["with", "evaluations", "RMSE", "median", "over the line above (95 %)"]
    return f"### What each part gains: {name}, {nfe} evaluations\n\n{table(head, rows)}"


def conditions(record: Record) -> str:
    c, r = record["conditions"], record["reference"]
    versions = ", ".join(f"{k} {v}" for k, v in c["versions"].items())
    where = f"{c['threads']} threads" if c["device"] == "cpu" else f"on an {c['device']}"
    plans = [e for cell in record.get("cells", {}).values() for e in cell["plans"].items()]
    away = {k: e["device"] for k, e in plans if e.get("device", c["device"]) != c["device"]}
    for device in dict.fromkeys(away.values()):
        labels = ", ".join(named(k) for k, there in away.items() if there == device)
        where += f" ({labels}: {device})"
    return (
        f"Weights {c['fingerprint']}, guidance {c['guidance']:g}, {c['noise_samples']} noise "
        f"samples of seeds {c['seeds']} used for nothing else, {c['dtype']}, {where}, {versions}. "
        f"Reference solution: {c['reference']}, at an RMSE of {r['rmse']:.1e} from "
        f"{r['finer_plan']} on {r['noise_samples']} noise samples. The error of an image is the "
        "root mean square over the numbers of its state; the RMSE is the root mean square over "
        "images, with 95 % bootstrap intervals. Over the last 2 % of time the "
        f"velocity changes by {record['roughness']:.2f} times its size."
    )
