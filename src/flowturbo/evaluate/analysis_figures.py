"""Tables and figures of an analysis, from its record alone.

Colours are those of Okabe and Ito, which people with any kind of colour vision can distinguish;
lines also differ in their dashes or markers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from flowturbo.evaluate.records import read_analysis
from flowturbo.files import atomic_write
from flowturbo.types import JsonObject, ReadOnlyJson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "MARKS",
    "STYLE",
    "bars",
    "figures",
    "logarithmic",
    "read_record",
    "tables",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
_GIVEN = ("*", "X", "P", "p", "h", "d", "8")
_FAMILIES = {"H1P": "H1P, the paper's"}
_PANELS = {
    "velocity": ("velocity", "time t of the linear path\n(0 noise, 1 data)"),
    "noise": ("noise prediction", "time u of a diffusion model\n(0 noise, 1 data)"),
}
STYLE: dict[Any, object] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def read_record(path: str | Path) -> JsonObject:
    """The record in a JSON file.

    Raises:
        ValueError: if it cannot be read or is not the record of an analysis.
    """
    return read_analysis(path)


def tables(record: ReadOnlyJson) -> list[Table]:
    """Tables of the sections in the record."""
    made = []
    if "curvature" in record:
        columns = ["model", "prediction", "change", "gap", "reuse", "extrapolate"]
        table = _table(
            "Relative change over the trajectory, and error of skipping evaluations over a gap",
            columns,
        )
        for name, kinds in record["curvature"].items():
            for kind, found in kinds.items():
                total = _within(found["change"]["mean"][-1], found["change"]["half"][-1])
                for gap in found["gaps"]:
                    errors = [_within(**gap[k]) for k in ("reuse", "extrapolate")]
                    table.add_row(name, kind, total, f"{gap['gap']:.3g}", *errors)
                    name = kind = total = ""
        made.append(table)
    if "solvers" in record:
        columns = ["plan", "evaluations", "RMSE", "95 %", "median"]
        table = _table("Error to the reference solution", columns)
        for row in sorted(record["solvers"], key=lambda r: (r["evaluations"]["model"], r["rmse"])):
            numbers = (f"{row['rmse']:.4f}", _range(row["rmse_95"]), f"{row['median']:.4f}")
            table.add_row(row["plan"], _count(row["evaluations"]), *numbers)
        made.append(table)
    for found in record.get("rows", []):
        columns = ["row", "evaluator", "time", "to", "state", "propagated", "local", "part", "95 %"]
        table = _table(f"Where {found['plan']} loses its error (RMSE)", columns)
        for row in found["rows"]:
            times = (f"{row['time']:.3f}", f"{row['to']:.3f}")
            each = (f"{row[k]:.4f}" for k in ("state", "propagated", "local", "part"))
            cells = (str(row["row"]), row["evaluator"], *times, *each, _range(row["part_95"]))
            table.add_row(*cells)
        made.append(table)
    return made


def figures(record: ReadOnlyJson, folder: str | Path) -> list[Path]:
    """Plot the sections in the record: "curvature.png", "gaps.png", "solvers.png", "rows.png".

    Returns:
        The files written into ``folder``.

    Raises:
        ImportError: if matplotlib is missing.
        OSError: if ``folder`` cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("the figures need matplotlib: pip install 'flowturbo[eval]'") from e
    draw: dict[str, tuple[str, Callable[[ReadOnlyJson, Figure], None]]] = {
        "curvature": ("curvature", _curvature),
        "gaps": ("curvature", _gaps),
        "solvers": ("solvers", _solvers),
        "rows": ("rows", _rows),
    }
    written = []
    for name, (part, function) in draw.items():
        if not record.get(part):
            continue
        with rc_context(STYLE):
            figure = Figure(layout="constrained")
            function(record, figure)
            names = [t for legend in figure.legends for t in legend.get_texts()]
            for text in (*names, *(axes.title for axes in figure.axes)):
                text.set_parse_math(False)  # a name may have dollars
            path = Path(folder) / f"{name}.png"
            with atomic_write(path) as temporary:
                figure.savefig(temporary, dpi=200)
        written.append(path)
    return written


def _curvature(record: ReadOnlyJson, figure: Figure) -> None:
    figure.set_size_inches(7, 6.2)
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, kind in enumerate(_PANELS):
        for i, (name, kinds) in enumerate(record["curvature"].items()):
            found, native = kinds[kind], record["models"][name]["prediction"] == kind
            for row, what in enumerate(("rate", "change")):
                middle, half = (np.array(found[what][k]) for k in ("mean", "half"))
                axis, colour = axes[row, column], COLOURS[i % 7]
                label = name if native and row == 0 else None
                style = {"color": colour, "linestyle": "-" if native else "--", "label": label}
                axis.plot(found["times"], middle, **style)
                around = (found["times"], middle - half, middle + half)
                axis.fill_between(*around, color=colour, alpha=0.25, linewidth=0)
        axes[0, column].set_title(_PANELS[kind][0])
        axes[1, column].set_xlabel(_PANELS[kind][1])
    axes[0, 0].set(yscale="log", ylabel="relative rate of change\n(1 per unit of time)")
    axes[1, 0].set(ylabel="relative change since the start", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    _finish(axes.flat, record, figure, "dashed: not the prediction that the model is sampled in")


def _gaps(record: ReadOnlyJson, figure: Figure) -> None:
    figure.set_size_inches(7, 4.4)
    axes = figure.subplots(1, 2, sharey=True)
    ways = (
        ("reuse", "repeat the last prediction", "-"),
        ("extrapolate", "linear extrapolation", ":"),
    )
    for axis, kind in zip(axes, _PANELS, strict=True):
        for i, (name, kinds) in enumerate(record["curvature"].items()):
            gaps = kinds[kind]["gaps"]
            for way, words, style in ways:
                axis.errorbar(
                    [g["gap"] for g in gaps],
                    [g[way]["mean"] for g in gaps],
                    [g[way]["half"] for g in gaps],
                    color=COLOURS[i % 7],
                    marker=MARKS[i % 7],
                    linestyle=style,
                    label=f"{name}: {words}",
                )
        ticks = [g["gap"] for g in gaps]
        logarithmic(axis, ticks, [f"1/{1 / g:.0f}" for g in ticks])
        axis.set_title(_PANELS[kind][0])
        axis.set_xlabel(f"gap between evaluations,\nin {_PANELS[kind][1].splitlines()[0]}")
    axes[0].set_ylabel("relative error of skipping\nthe evaluation")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, frameon=False)
    _finish(axes, record, figure)


def _solvers(record: ReadOnlyJson, figure: Figure) -> None:
    figure.set_size_inches(7, 5)
    axis = figure.subplots()
    families: dict[str, list[JsonObject]] = {}
    for row in record["solvers"]:
        families.setdefault(row["family"], []).append(row)
    given = families.pop("given", [])
    for i, (family, rows) in enumerate(families.items()):
        colour = (*COLOURS[:6], "0.5")[i % 7]  # black is for the plans given
        style: JsonObject = {"color": colour, "marker": MARKS[i % 7]}
        where = [r["evaluations"]["model"] for r in rows]
        axis.errorbar(where, **bars(rows, "rmse"), **style, label=_FAMILIES.get(family, family))
    for i, row in enumerate(given):
        style = {"color": "black", "marker": _GIVEN[i % 7], "markersize": 10, "linestyle": "none"}
        name = f"{row['plan']} ({_count(row['evaluations'])})"
        axis.errorbar(row["evaluations"]["model"], **bars([row], "rmse"), **style, label=name)
    ticks = sorted({r["evaluations"]["model"] for r in record["solvers"]})
    logarithmic(axis, ticks, [str(t) for t in ticks])
    axis.set_xlabel("evaluations of the model")
    axis.set_ylabel("error to the reference solution\n(RMSE, unit of the state)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    _finish([axis], record, figure)


def _rows(record: ReadOnlyJson, figure: Figure) -> None:
    from matplotlib.patches import Patch

    count = len(record["rows"])
    figure.set_size_inches(7, 1.2 + 3 * count)
    grid = figure.subplots(count, 2, squeeze=False)
    lines = {"state": "error of the state", "propagated": "propagated exactly to t = 1"}
    colour = {"model": "#56B4E9", "conditional": "#009E73", "refiner": "#E69F00"}
    for (left, right), found in zip(grid, record["rows"], strict=True):
        rows = found["rows"]
        for i, (key, words) in enumerate(lines.items()):
            style = {"color": COLOURS[i], "marker": MARKS[i], "label": words}
            left.errorbar([r["to"] for r in rows], **bars(rows, key), **style)
        left.set(title=f"{found['plan']} ({_count(found['evaluations'])})", ylim=(0, None))
        left.set(xlim=(0, 1.03), xlabel="time t after the row", ylabel="error (RMSE)")
        parts, colours = bars(rows, "part"), [colour[r["evaluator"]] for r in rows]
        right.bar(range(len(rows)), parts["y"], yerr=parts["yerr"], color=colours, capsize=3)
        right.axhline(0, color="black", linewidth=0.8)
        right.set(xlabel="row of the plan", ylabel="part of the final error (RMSE)")
        right.set_title(f"adds up to {rows[-1]['propagated']:.3g}")
        right.set_xticks(range(0, len(rows), -(-len(rows) // 10)))
    used = {row["evaluator"] for found in record["rows"] for row in found["rows"]}
    about = {
        "model": "the model",
        "conditional": "its conditional branch",
        "refiner": "the refiner",
    }
    handles = [*grid[0, 0].get_legend_handles_labels()[0]]
    if len(used) > 1:
        handles += [
            Patch(color=colour[k], label=f"evaluates {about[k]}") for k in colour if k in used
        ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    _finish(grid.flat, record, figure)


def bars(rows: Sequence[ReadOnlyJson], key: str) -> JsonObject:
    """The values of ``key``, and the lengths of their error bars below and above."""
    y = [r[key] for r in rows]
    bounds = [r[f"{key}_95"] for r in rows]
    reach = [[max(0.0, s * (v - b[i])) for v, b in zip(y, bounds, strict=True)]
             for i, s in enumerate((1, -1))]  # fmt: skip
    return {"y": y, "yerr": reach}


def logarithmic(axis: Axes, ticks: Sequence[float], words: list[str]) -> None:
    """Both axes, with ``ticks`` along x and 1, 2 and 5 of each decade along y."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set(xscale="log", yscale="log")
    axis.set_xticks(ticks, words)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")


def _finish(axes: Iterable[Axes], record: ReadOnlyJson, figure: Figure, note: str = "") -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    c = record["conditions"]
    text = f"{c['trajectories']} trajectories, guidance {c['guidance']:g}, 95 % intervals" + (
        f"; {note}" if note else ""
    )
    figure.supxlabel(text, fontsize=9, color="0.35")


def _table(title: str, columns: list[str]) -> Table:
    made = Table(*columns, title=title)
    for column in made.columns[1:]:
        column.justify = "right"
    return made


def _within(mean: float, half: float) -> str:
    return f"{mean:.3g} ± {half:.1g}"


def _range(bounds: list[float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _count(evaluations: Mapping[str, int]) -> str:
    more = {"C": evaluations.get("conditional", 0), "R": evaluations["refiner"]}
    return f"{evaluations['model']}" + "".join(f" + {n} {k}" for k, n in more.items() if n)
