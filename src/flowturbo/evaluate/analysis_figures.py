"""Tables and figures of an analysis, from its record alone.

Colours are those of Okabe and Ito, which can be told apart with any kind of colour vision; lines
differ in their dashes or marks too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from flowturbo.evaluate.analysis import KIND
from flowturbo.files import replacing

__all__ = ["figures", "read_record", "tables"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_FAMILIES = {"H1P": "H1P, the paper's"}
_PANELS = {
    "velocity": ("velocity", "time t of the linear path\n(0 noise, 1 data)"),
    "noise": ("noise prediction", "time u of a diffusion model\n(0 noise, 1 data)"),
}
_STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def read_record(path: str | Path) -> dict[str, Any]:
    """The record in a JSON file.

    Raises:
        ValueError: if it holds no record of an analysis.
        OSError: if it cannot be read.
    """
    try:
        record = json.loads(Path(path).read_text("utf-8"))
        known = record["kind"] == KIND
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(f"{path}: not a record of flowturbo analyze; give the record.json it left")
    return record  # type: ignore[no-any-return]


def tables(record: Mapping[str, Any]) -> list[Table]:
    """The record in numbers: a table for each part it has."""
    made = []
    if "curvature" in record:
        columns = ["model", "prediction", "change", "gap", "reuse", "extrapolate"]
        table = _table("Relative change over the trajectory, and error over a gap", columns)
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
        table = _table("Error to the converged ODE", columns)
        for row in sorted(record["solvers"], key=lambda r: (r["evaluations"]["model"], r["rmse"])):
            numbers = (f"{row['rmse']:.4f}", _range(row["rmse_95"]), f"{row['median']:.4f}")
            table.add_row(row["plan"], _count(row["evaluations"]), *numbers)
        made.append(table)
    for found in record.get("rows", []):
        columns = ["row", "evaluator", "time", "to", "state", "carried", "own", "part", "95 %"]
        table = _table(f"Where {found['plan']} loses its error (RMSE)", columns)
        for row in found["rows"]:
            times = (f"{row['time']:.3f}", f"{row['to']:.3f}")
            errors = (f"{row[k]:.4f}" for k in ("state", "carried", "own", "part"))
            told = (str(row["row"]), row["evaluator"], *times, *errors, _range(row["part_95"]))
            table.add_row(*told)
        made.append(table)
    return made


def figures(record: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Draw what the record holds: "curvature.png", "gaps.png", "solvers.png", "rows.png".

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
    draw: dict[str, tuple[str, Callable[[Any, Any], None]]] = {
        "curvature": ("curvature", _curvature),
        "gaps": ("curvature", _gaps),
        "solvers": ("solvers", _solvers),
        "rows": ("rows", _rows),
    }
    written = []
    for name, (part, function) in draw.items():
        if not record.get(part):
            continue
        with rc_context(_STYLE):
            figure = Figure(layout="constrained")
            function(record, figure)
            path = Path(folder) / f"{name}.png"
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=200)
        written.append(path)
    return written


def _curvature(record: Mapping[str, Any], figure: Any) -> None:
    figure.set_size_inches(7, 6.2)
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, kind in enumerate(_PANELS):
        for colour, (name, kinds) in zip(_COLOURS, record["curvature"].items(), strict=False):
            found = kinds[kind]
            own = record["models"][name]["prediction"] == kind
            for row, what in enumerate(("rate", "change")):
                middle, half = found[what]["mean"], found[what]["half"]
                low, high = zip(
                    *((m - h, m + h) for m, h in zip(middle, half, strict=True)), strict=True
                )
                style = {"color": colour, "linestyle": "-" if own else "--", "label": name}
                axes[row, column].plot(found["times"], middle, **style)
                axes[row, column].fill_between(
                    found["times"], low, high, color=colour, alpha=0.25, linewidth=0
                )
        axes[0, column].set_title(_PANELS[kind][0])
        axes[1, column].set_xlabel(_PANELS[kind][1])
    axes[0, 0].set(yscale="log", ylabel="relative rate of change\n(1 per unit of time)")
    axes[1, 0].set(ylabel="relative change since t = 0", ylim=(0, None))
    lines = [axes[0, c].get_lines() for c in range(2)]
    used = [next(x for x in pair if x.get_linestyle() == "-") for pair in zip(*lines, strict=True)]
    figure.legend(handles=used, loc="outside upper center", ncols=2, frameon=False)
    _finish(axes.flat, record, figure, "dashed: not how the model is sampled")


def _gaps(record: Mapping[str, Any], figure: Any) -> None:
    figure.set_size_inches(7, 4.4)
    axes = figure.subplots(1, 2, sharey=True)
    ways = (("reuse", "last prediction again", "-"), ("extrapolate", "linear extrapolation", ":"))
    for axis, kind in zip(axes, _PANELS, strict=True):
        for i, (name, kinds) in enumerate(record["curvature"].items()):
            gaps = kinds[kind]["gaps"]
            for way, words, style in ways:
                axis.errorbar(
                    [g["gap"] for g in gaps],
                    [g[way]["mean"] for g in gaps],
                    [g[way]["half"] for g in gaps],
                    color=_COLOURS[i % 7],
                    marker=_MARKS[i % 7],
                    linestyle=style,
                    label=f"{name}: {words}",
                )
        ticks = [g["gap"] for g in gaps]
        axis.set(xscale="log", yscale="log", title=_PANELS[kind][0])
        axis.set_xticks(ticks, [f"1/{1 / g:.0f}" for g in ticks])
        axis.minorticks_off()
        axis.set_xlabel(f"gap between evaluations,\nin {_PANELS[kind][1].splitlines()[0]}")
    axes[0].set_ylabel("relative error of doing without\nthe evaluation")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, frameon=False)
    _finish(axes, record, figure)


def _solvers(record: Mapping[str, Any], figure: Any) -> None:
    figure.set_size_inches(7, 5)
    axis = figure.subplots()
    families = {r["family"]: [] for r in record["solvers"] if r["family"] != "given"}
    lines = [(_FAMILIES.get(f, f), [r for r in record["solvers"] if r["family"] == f])
             for f in families]  # fmt: skip
    lines += [(f"{r['plan']} ({_count(r['evaluations'])})", [r])
              for r in record["solvers"] if r["family"] == "given"]  # fmt: skip
    for i, (name, rows) in enumerate(lines):
        middle = [r["rmse"] for r in rows]
        around = [[r["rmse"] - r["rmse_95"][0] for r in rows],
                  [r["rmse_95"][1] - r["rmse"] for r in rows]]  # fmt: skip
        axis.errorbar(
            [r["evaluations"]["model"] for r in rows],
            middle,
            around,
            color=_COLOURS[i % 7],
            marker=_MARKS[i % 7] if i < len(families) else "*",
            markersize=6 if i < len(families) else 12,
            linestyle="-" if i < len(families) else "none",
            label=name,
        )
    ticks = sorted({r["evaluations"]["model"] for r in record["solvers"]})
    axis.set(xscale="log", yscale="log", xlabel="evaluations of the model")
    axis.set_ylabel("error to the converged ODE (RMSE, unit of the state)")
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    _finish([axis], record, figure)


def _rows(record: Mapping[str, Any], figure: Any) -> None:
    count = len(record["rows"])
    figure.set_size_inches(7, 0.8 + 3.2 * count)
    grid = figure.subplots(count, 2, squeeze=False)
    for (left, right), found in zip(grid, record["rows"], strict=True):
        rows = found["rows"]
        to = [r["to"] for r in rows]
        for i, (key, words) in enumerate((("state", "of the state then"),
                                          ("carried", "carried to t = 1"))):  # fmt: skip
            style = {"color": _COLOURS[i], "marker": _MARKS[i], "label": words}
            left.plot(to, [r[key] for r in rows], **style)
        left.set(title=f"{found['plan']} ({_count(found['evaluations'])})", ylim=(0, None))
        left.set(xlim=(0, 1.02), xlabel="time t after the row", ylabel="error (RMSE)")
        left.legend(frameon=False)
        middle = [r["part"] for r in rows]
        around = [[r["part"] - r["part_95"][0] for r in rows],
                  [r["part_95"][1] - r["part"] for r in rows]]  # fmt: skip
        kinds = [r["evaluator"] for r in rows]
        colours = ["#E69F00" if k == "refiner" else "#56B4E9" for k in kinds]
        right.bar(range(len(rows)), middle, yerr=around, color=colours, capsize=3)
        right.axhline(0, color="black", linewidth=0.8)
        right.set(xlabel="row of the plan", ylabel="part of the final error (RMSE)")
        right.set(title=f"adds up to {rows[-1]['carried']:.4f}")
        right.set_xticks(range(len(rows)))
        if "refiner" in kinds:
            right.annotate("orange: refiner", (0.98, 0.95), xycoords="axes fraction", ha="right")
    _finish(grid.flat, record, figure)


def _finish(axes: Any, record: Mapping[str, Any], figure: Any, note: str = "") -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    c = record["conditions"]
    told = f"{c['trajectories']} trajectories, guidance {c['guidance']:g}, 95 % intervals" + (
        f"; {note}" if note else ""
    )
    figure.supxlabel(told, fontsize=9, color="0.35")


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
    refined = f" + {evaluations['refiner']} R" if evaluations["refiner"] else ""
    return f"{evaluations['model']}{refined}"
