"""Editing, measured against the true result on avatars that differ in one attribute.

    python recipes/avatars/data.py --out avatars-data
    python recipes/avatars/train.py --data avatars-data --out runs/avatars
    python recipes/avatars/reader.py --data avatars-data --out runs/avatars-reader.safetensors
    python benchmarks/true_edits.py --data avatars-data --model runs/avatars \\
        --reader runs/avatars-reader.safetensors --out benchmarks/records/true-edits.json

Images of people that the model was not trained on are edited to another word of one attribute, by
each method and several values of ``keep``, with the same number of evaluations (an inversion uses
half of them in each direction). The true result is known, and so are the pixels that an edit
changes, the *mask*.

- *error*: of the pixels in the mask, to the true result; *background*: of all other pixels, to the
  source, where they are the same. Root mean squares over pixels, in states from -1 to 1.
- *success*: the share that a classifier recognises as the requested word.
- *at equal success*: each relative to that of SDEdit, at the ``keep`` of SDEdit with the least
  error among those with at least this success; none if there is no such ``keep``.
- *controls*: the unchanged source, and the true result.

    python benchmarks/true_edits.py --table RECORD --figure FILE.png

prints and plots a record.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ratios import table
from torch import Tensor
from trial import versions

import flowturbo as ft
from flowturbo.files import write_json
from flowturbo.images import to_pil
from flowturbo.stats import interval, rmse, summary
from flowturbo.tasks.editing import METHODS
from flowturbo.timing import interleaved

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes" / "avatars"))
from data import load_pairs
from people import EDITS, STYLES, WORDS, sentence
from reader import load_reader, to_input

KEEPS = tuple(i / 10 for i in range(10))
FIRST = 800_000_000  # seeds of the noise
RIVAL = "sdedit"
TIMED = 8  # images in a batch that is timed
GROUPS = {"glasses": ("glasses on", "glasses off"), **{edit: (edit,) for edit in EDITS}}


def plan_of(method: str, evaluations: int) -> str:
    """The plan, for each direction, that makes ``evaluations`` in all."""
    return f"AB2:{evaluations if method == RIVAL else evaluations // 2}@1.6"


class Pairs:
    """The pairs that differ in one attribute, as states, prompts and masks."""

    def __init__(self, model: ft.Model, folder: Path, n: int | None) -> None:
        found = load_pairs(folder, model.shape[1])
        # as many of each edit and style
        per = len(found["edit"]) // (len(EDITS) * len(STYLES))
        n = per if n is None else n
        if not 1 <= n <= per:
            raise SystemExit(f"--pairs {n}: {folder} has 1 to {per} of each edit and style")
        some = np.arange(len(found["edit"])) % per < n
        found = {name: values[some] for name, values in found.items()}
        self.before, self.after = (to_input(found[name]) for name in ("before", "after"))
        self.sources = to_pil(self.before / 2 + 0.5)
        self.mask = torch.from_numpy(found["mask"])
        self.edit = np.array(list(EDITS))[found["edit"]]
        attribute = [list(WORDS).index(EDITS[edit][0]) for edit in self.edit]
        self.attribute = torch.tensor(attribute)
        self.words = torch.from_numpy(found["words"]).long()
        styles = [list(STYLES)[s] for s in found["style"]]
        self.prompts, self.targets = (
            [model.styled(prompt, style) for prompt, style in zip(of, styles, strict=True)]
            for of in zip(*([_sentence(w) for w in pair] for pair in found["words"]), strict=True)
        )

    def __len__(self) -> int:
        return len(self.sources)


def _sentence(words: Any) -> str:
    return sentence({a: known[i] for (a, known), i in zip(WORDS.items(), words, strict=True)})


def judged(pairs: Pairs, reader: Any, states: Tensor) -> dict[str, np.ndarray]:
    """The error in the mask, that of the background, and whether the word asked for is read: (P,)
    each, of edited images (P, 3, H, W) in [-1, 1].
    """
    squares = (states - pairs.after).double().square().mean(1)
    root = lambda inside: ((squares * inside).sum((1, 2)) / inside.sum((1, 2))).sqrt().numpy()
    changed = pairs.attribute[:, None]
    read, asked = (w.gather(1, changed)[:, 0] for w in (reader.read(states), pairs.words[:, 1]))
    return {
        "error": root(pairs.mask),
        "background": root(~pairs.mask),
        "success": (read == asked).double().numpy(),
    }


def entry(found: dict[str, np.ndarray]) -> dict[str, Any]:
    about = {name: summary(found[name]) for name in ("error", "background")}
    success = found["success"]
    return about | {"success": float(success.mean()), "success_95": interval(_mean, success)}


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(-1)


def _ratio(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return rmse(ours) / rmse(theirs)


def at_equal_success(ours: Any, rival: dict[str, Any]) -> dict[str, Any] | None:
    """The ratios to the ``keep`` of the rival with the least error and at least this success."""
    able = {k: r for k, r in rival.items() if r["success"].mean() >= ours["success"].mean()}
    if not able:
        return None
    keep = min(able, key=lambda k: float(rmse(able[k]["error"])))
    ratios: dict[str, Any] = {"keep": keep}
    for name in ("error", "background"):
        pair = ours[name], able[keep][name]
        ratios |= {name: float(_ratio(*pair)), f"{name}_95": interval(_ratio, *pair)}
    return ratios


def edit(model: ft.Model, pairs: Pairs, rows: slice, method: Any, keep: float, **how: Any) -> Any:
    return ft.edit(
        model, pairs.sources[rows], pairs.targets[rows], pairs.prompts[rows], method=method,
        keep=keep, plan=plan_of(method, how["evaluations"]), guidance=how["guidance"], seed=FIRST,
        size="model",
    )  # fmt: skip


def measured(model: ft.Model, pairs: Pairs, reader: Any, **how: Any) -> dict[str, Any]:
    """All methods and ``keep``, for each group of edits."""
    found: dict[str, dict[str, Any]] = {}
    cost: dict[str, Any] = {}
    for method in METHODS:
        for keep in KEEPS:
            made = edit(model, pairs, slice(None), method, keep, **how)
            states = to_input(np.stack([np.asarray(image) for image in made]))
            at = found.setdefault(method, {})[f"{keep:g}"] = judged(pairs, reader, states)
            cost[method] = {"evaluations": made.evaluations, "passes": made.passes}
            print(f"{method}, keep {keep:g}: success {at['success'].mean():.3f}", flush=True)
    few = slice(0, TIMED)
    calls = {m: lambda m=m: edit(model, pairs, few, m, KEEPS[1], **how) for m in METHODS}
    for method, taken in interleaved(calls, repeats=5, warm_up=1).items():
        cost[method]["ms"] = float(np.median(taken))
    controls = {
        "source": judged(pairs, reader, pairs.before),
        "truth": judged(pairs, reader, pairs.after),
    }
    record: dict[str, Any] = {"cost": cost, "edits": {}}
    for group, edits in GROUPS.items():
        rows = np.isin(pairs.edit, edits)
        of = lambda values, rows=rows: {name: each[rows] for name, each in values.items()}
        some = {m: {k: of(at) for k, at in dials.items()} for m, dials in found.items()}
        record["edits"][group] = {
            "pairs": int(rows.sum()),
            "pixels": float(pairs.mask[rows].double().mean()),
            "controls": {name: entry(of(values)) for name, values in controls.items()},
            "methods": {
                method: {
                    keep: entry(at) | {"equal_success": at_equal_success(at, some[RIVAL])}
                    for keep, at in dials.items()
                }
                for method, dials in some.items()
            },
        }
    return record


def show(record: dict[str, Any]) -> None:
    headings = [
        "method, keep",
        "error",
        "background",
        "success",
        "error / SDEdit",
        "background / SDEdit",
    ]
    ratio = lambda at, name: (
        f"{at[name]:.2f} ({at[f'{name}_95'][0]:.2f} to {at[f'{name}_95'][1]:.2f})"
    )
    for group, found in record["edits"].items():
        rows = []
        named = {
            f"{m}, {k}": at for m, dials in found["methods"].items() for k, at in dials.items()
        }
        for name, at in (found["controls"] | named).items():
            equal = at.get("equal_success")
            rows.append([
                name, f"{at['error']['rmse']:.3f}", f"{at['background']['rmse']:.3f}",
                f"{100 * at['success']:.1f} %",
                *(ratio(equal, n) if equal else "" for n in ("error", "background")),
            ])  # fmt: skip
        print(f"\n{group}: {found['pairs']} pairs, {100 * found['pixels']:.1f} % of the pixels\n")
        print(table(headings, rows))
    rows = [
        [method, f"{c['evaluations']}", f"{c['passes']}", f"{c['ms']:.0f}"]
        for method, c in record["cost"].items()
    ]
    print(f"\n{table(['method', 'evaluations', 'passes', f'ms, batch of {TIMED}'], rows)}")


def draw(record: dict[str, Any], path: Path) -> None:
    """Error and background against success, a row of panels for each edit; marks are ``keep``."""
    from figures import plotted

    from flowturbo.evaluate.analysis_figures import COLOURS, MARKS

    shown = {group: found for group, found in record["edits"].items() if group in EDITS}
    with plotted(path, 7, 1 + 2.4 * len(shown)) as figure:
        panels = figure.subplots(len(shown), 2, squeeze=False, sharex=True)
        for (group, found), row in zip(shown.items(), panels, strict=True):
            for axis, name in zip(row, ("error", "background"), strict=True):
                for method, colour, mark in zip(METHODS, COLOURS, MARKS, strict=False):
                    dials = found["methods"][method].values()
                    x, y = [at["success"] for at in dials], [at[name]["rmse"] for at in dials]
                    axis.plot(x, y, color=colour, marker=mark, label=method, linewidth=1.2)
                    axis.annotate("0", (x[0], y[0]), textcoords="offset points", xytext=(4, 4))
                still = found["controls"]["source"][name]["rmse"]
                axis.axhline(still, color="0.55", linewidth=1, linestyle=":", label="the source")
                axis.set(title=group, ylim=(0, None))
                axis.set_ylabel("error in the mask" if name == "error" else "error outside it")
                axis.grid(alpha=0.3)
        for axis in panels[-1]:
            axis.set_xlabel("share read as the word asked for")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder that recipes/avatars/data.py made")
    parser.add_argument("--model", help="what train.py left")
    parser.add_argument("--reader", type=Path, help="what reader.py wrote")
    parser.add_argument("--pairs", type=int, help="of each edit and style; by default all")
    parser.add_argument("--evaluations", type=int, default=10, help="of each method, even")
    parser.add_argument("--guidance", type=float, help="by default the model's")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records/true-edits.json"))
    parser.add_argument("--table", type=Path, metavar="RECORD", help="print a record, and stop")
    parser.add_argument("--figure", type=Path, help="draw the record here")
    options = parser.parse_args()
    if options.table:
        record = json.loads(options.table.read_text("utf-8"))
    else:
        record = run(options, parser)
        write_json(options.out, record)
    show(record)
    if options.figure:
        draw(record, options.figure)


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, Any]:
    if missing := [n for n in ("data", "model", "reader") if getattr(options, n) is None]:
        parser.error(f"--{missing[0]} is missing")
    if options.evaluations < 2 or options.evaluations % 2:
        parser.error(f"--evaluations {options.evaluations}: must be even, 2 at least")
    model, reader = ft.load(options.model), load_reader(options.reader)
    pairs = Pairs(model, options.data, options.pairs)
    guidance = model.defaults["guidance"] if options.guidance is None else options.guidance
    plans = {method: plan_of(method, options.evaluations) for method in METHODS}
    conditions = {
        "model": model.name, "weights": model.fingerprint, "pairs": len(pairs), "plans": plans,
        "guidance": guidance, "seeds": f"from {FIRST}", "threads": torch.get_num_threads(),
        "versions": versions(),
    }  # fmt: skip
    how = {"evaluations": options.evaluations, "guidance": guidance}
    return {"conditions": conditions, **measured(model, pairs, reader, **how)}


if __name__ == "__main__":
    main()
