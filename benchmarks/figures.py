"""Figures of the results page, each made from a record alone, with the same bytes every time.

Colours are those of Okabe and Ito; lines also differ in their markers. Panels are placed below each
other, as wide as a page or a phone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from ratios import FITTED, REFINED, named
from results import PAPER, PAPER_REFINED

from flowturbo.evaluate.analysis_figures import COLOURS, MARKS, STYLE, bars, logarithmic
from flowturbo.files import atomic_write

SHOWN = ("Euler", "AB2", "DPM-Solver++ 2M", "UniPC-2", PAPER, PAPER_REFINED, FITTED, REFINED)
# of the main table; the others lie between them
LOOKS = ("0.55", *COLOURS[3:6], COLOURS[1], COLOURS[6], COLOURS[2], COLOURS[0])
MARKED = ("x", *MARKS[:6], "*")
ERROR = "error to the reference solution\n(RMSE, unit of the state)"


@contextmanager
def plotted(path: Path, width: float, height: float) -> Iterator[Figure]:
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=160, metadata={"Software": None})


def errors(record: dict[str, Any], path: Path) -> None:
    """Error against evaluations, a panel for each scale of guidance."""
    parts = record["guidance"]
    with plotted(path, 6, 1 + 3 * len(parts)) as figure:
        panels = figure.subplots(len(parts), 1, squeeze=False, sharex=True)[:, 0]
        for axis, (scale, part) in zip(panels, parts.items(), strict=True):
            counts = sorted(part["cells"], key=int)
            for name, colour, mark in zip(SHOWN, LOOKS, MARKED, strict=True):
                found = [(int(n), part["cells"][n]["plans"].get(name)) for n in counts]
                rows = [entry for _, entry in found if entry]
                if rows:
                    where = [n for n, entry in found if entry]
                    look = {"color": colour, "marker": mark, "label": named(name)}
                    axis.errorbar(where, **bars(rows, "rmse"), **look, linewidth=1.2, markersize=7)
            logarithmic(axis, [int(n) for n in counts], counts)
            axis.set(title=f"guidance {scale}", ylabel=ERROR)
            axis.grid(alpha=0.3)
        panels[-1].set_xlabel("evaluations of the model")
        found: dict[str, Any] = {}
        for axis in panels:
            handles, labels = axis.get_legend_handles_labels()
            found |= zip(labels, handles, strict=True)
        shown = [words for words in map(named, SHOWN) if words in found]
        figure.legend([found[words] for words in shown], shown, loc="outside upper center",
                      ncols=2, frameon=False)  # fmt: skip


def against_time(part: dict[str, Any], speed: dict[str, Any], path: Path) -> None:
    """Error against evaluations, and against milliseconds by the costs in a record of speed.

    Calls of a refiner that was not timed cost nothing here. Rings are what was timed itself: the
    plan of the record, and the schedulers with the fewest evaluations that reach its error.
    """
    timed, about = speed["timed"]["latency"], speed["timed"]["conditions"]
    names = [name for name in SHOWN if name != "DPM-Solver++ 2M"]  # between Euler and UniPC-2
    looks = {n: {"color": c, "marker": m, "linewidth": 1.5, "markersize": 7}
             for n, c, m in zip(SHOWN, LOOKS, MARKED, strict=True)}  # fmt: skip
    counts = sorted(part["cells"], key=int)

    def milliseconds(entry: dict[str, Any]) -> float:
        calls = entry["nfe"]["refiner"] if entry.get("refiner") == about["refiner"] else 0
        refined = calls * timed["refiner"] if calls else 0
        return timed["fixed"] + timed["model"] * entry["nfe"]["model"] + refined

    with plotted(path, 9, 5.4) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for name in names:
            cells = (part["cells"][n]["plans"].get(name) for n in counts)
            if rows := [entry for entry in cells if entry]:
                y, look = bars(rows, "rmse"), looks[name]
                left.errorbar([e["nfe"]["model"] for e in rows], **y, **look, label=named(name))
                right.plot([milliseconds(e) for e in rows], y["y"], **look)
        ours = REFINED if speed["plan"]["nfe"]["refiner"] else FITTED
        taken = speed["timed"]["methods"][0]["ms"]["median"]
        rings = {ours: (taken, speed["plan"]["rmse"])}
        for kind, at in speed["equal"].items():
            name = at["chosen"].partition(",")[0].removeprefix("FlowMatch")
            if kind in ("Euler", "second order") and name in names:
                rings[name] = (taken * speed["faster"][kind]["none"], at["value"])
        for name, (ms, error) in rings.items():
            right.plot(ms, error, "o", markersize=13, markerfacecolor="none",
                       markeredgecolor=looks[name]["color"], markeredgewidth=2)  # fmt: skip
            where = {"xytext": (-9, -6), "ha": "right", "va": "top"}
            if name != ours:
                where = {"xytext": (0, -11), "ha": "center", "va": "top"}
            right.annotate(f"{ms:.0f} ms", (ms, error), textcoords="offset points", **where)
        left.errorbar([], [], fmt="ko", markersize=13, markerfacecolor="none", markeredgewidth=2,
                      label="timed side by side")  # fmt: skip
        shown = [x for line in right.lines for x in line.get_xdata()]
        low, high = 0.85 * min(shown), 1.4 * max(shown)
        ticks = [n for n in (100, 200, 500, 1000, 2000, 5000, 10000) if low < n < high]
        logarithmic(left, [int(n) for n in counts], counts)
        logarithmic(right, ticks, [f"{n:,}" for n in ticks])
        right.set_xlim(low, high)
        left.set(xlabel="evaluations of the model", ylabel=ERROR)
        right.set_xlabel(f"milliseconds for {about['batch']} images, nothing compiled")
        for axis in (left, right):
            axis.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)


def fitting(parts: dict[str, Any], path: Path) -> None:
    """Error against trajectories fitted to, and against history, at one scale of guidance."""
    with plotted(path, 6, 7) as figure:
        above, below = figure.subplots(2, 1)
        for i, (nfe, found) in enumerate(parts.get("trajectories", {}).items()):
            look = {"color": COLOURS[i % 7], "marker": MARKS[i % 7], "markersize": 6}
            middle = [np.exp(np.mean([np.log(e["rmse"]) for e in draws])) for draws in
                      found.values()]  # fmt: skip
            above.plot([int(n) for n in found], middle, color=look["color"], linewidth=1.2)
            for draw in range(max(map(len, found.values()))):
                some = [(int(n) * 1.06**draw, d[draw]) for n, d in found.items() if draw < len(d)]
                rows = bars([entry for _, entry in some], "rmse")
                label = None if draw else f"{nfe} evaluations"
                above.errorbar([n for n, _ in some], **rows, **look, label=label, linestyle="none")
            above.set_xscale("log")
            above.set_xticks([int(n) for n in found], list(found))
            above.minorticks_off()
        for i, (nfe, found) in enumerate(parts.get("history", {}).items()):
            look = {"color": COLOURS[i % 7], "marker": MARKS[i % 7], "markersize": 6}
            rows = bars(list(found.values()), "rmse")
            below.errorbar([int(h) for h in found], **rows, **look, label=f"{nfe} evaluations")
            below.set_xticks([int(h) for h in found], list(found))
        above.set(xlabel="trajectories fitted to; a mark for each random set of them", ylabel=ERROR)
        below.set(xlabel="last velocities that a row may use", ylabel=ERROR)
        for axis in (above, below):
            axis.set_ylim(0, None)
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(frameon=False, loc="lower left")


def serving(record: dict[str, Any], path: Path) -> None:
    """Images a second and latencies against the rate of arrival, a row for each workload."""
    names = {"one": "one at a time", "static": "static batching", "running": "running batch"}
    parts = record["workloads"]
    with plotted(path, 9, 1 + 2.6 * len(parts)) as figure:
        rows = figure.subplots(len(parts), 3, squeeze=False)
        for (kind, part), axes in zip(parts.items(), rows, strict=True):
            for i, (way, entry) in enumerate(part["ways"].items()):
                at = list(entry["open"].values())
                look = {"color": COLOURS[i], "marker": MARKS[i], "markersize": 6}
                rates = [one["rate"] for one in at]
                axes[0].plot(rates, [one["images_per_second"] for one in at], **look,
                             label=names[way])  # fmt: skip
                for axis, what in zip(axes[1:], ("total", "first"), strict=True):
                    axis.plot(rates, [one["all"][what]["p95"] for one in at], **look)
                    axis.set_yscale("log")
                    seconds = [0.2, 0.5, 1, 2, 5, 10]
                    axis.set_yticks(seconds, [f"{s:g}" for s in seconds])
                    axis.set_yticks([], minor=True)
                    axis.set_ylim(0.2, 11)
            titles = (f"{kind}: images a second", "seconds to the last image, p95",
                      "seconds to the first, partial or not, p95")  # fmt: skip
            for axis, title in zip(axes, titles, strict=True):
                axis.set_title(title, fontsize=9)
                axis.grid(alpha=0.3, which="both")
        for axis in rows[-1]:
            axis.set_xlabel("images a second that arrive")
        figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside upper center",
                      ncols=3, frameon=False)  # fmt: skip


def image_grid(about: dict[str, Any], images: Path, path: Path) -> None:
    """The rows of a grid of images with the names of their methods."""
    image = np.asarray(Image.open(images).convert("RGB"))
    rows, columns = about["rows"], about["prompts"]
    height, width = image.shape[0] / len(rows), image.shape[1] / len(columns)
    with plotted(path, 6, 0.5 + 0.56 * len(rows)) as figure:
        figure.set_layout_engine("compressed")  # images keep their aspect
        axis = figure.subplots()
        axis.imshow(image, interpolation="nearest")
        axis.set_yticks(height * (np.arange(len(rows)) + 0.5), [fill(row, 18) for row in rows])
        names = [f"{name.split(',')[0]}" for name in columns]
        turned = 0 if max(map(len, names)) < 3 else 40
        look = {"rotation": turned, "ha": "right" if turned else "center"}
        axis.set_xticks(width * (np.arange(len(columns)) + 0.5), names, **look)
        axis.tick_params(length=0)
        for side in axis.spines.values():
            side.set_visible(False)
