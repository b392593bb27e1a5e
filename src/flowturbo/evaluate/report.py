"""The record of a benchmark as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from flowturbo.files import replacing

__all__ = ["plot", "table"]

_COLOURS = {"none": "tab:blue", "plan": "tab:red", "row": "tab:orange", "network": "tab:green"}


def table(record: Mapping[str, Any]) -> Table:
    """One line a method, the fastest first."""
    columns = ["method", "ms", "spread", "images/s", "evaluations", "error", "of peak", "compile s"]
    made = Table(*columns, title=_title(record))
    for column in made.columns[1:]:
        column.justify = "right"
    for row in sorted(record["methods"], key=lambda r: r["ms"]["median"]):
        ms, count = row["ms"], row["evaluations"]
        made.add_row(
            row["name"],
            f"{ms['median']:.2f}",
            f"{ms['low']:.2f}-{ms['high']:.2f}",
            f"{row['images_per_second']:.1f}",
            f"{count['model']}" + (f" + {count['refiner']}" if count["refiner"] else ""),
            f"{row['error']['rmse']:.4f}" if "error" in row else "",
            f"{100 * row['peak_share']:.0f} %",
            f"{row['compile']['seconds']:.1f}" if "compile" in row else "",
        )
    return made


def plot(
    record: Mapping[str, Any], path: str | Path, errors: Mapping[str, float] | None = None
) -> None:
    """Error against milliseconds, both logarithmic.

    Args:
        record: of ``benchmark``.
        path: of the picture, of any kind that matplotlib writes.
        errors: another error of the methods by name, a Frechet distance say; by default what the
            record says.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is no error to show.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("the plot needs matplotlib: pip install 'flowturbo[train]'") from e
    error = errors or {r["name"]: r["error"]["rmse"] for r in record["methods"] if "error" in r}
    shown = [r for r in record["methods"] if r["name"] in error]
    if not shown:
        raise ValueError("the record holds no errors; measure with a reference, or pass errors")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in shown:
        ms, colour = row["ms"], _COLOURS.get(row["scope"], "tab:gray")
        around = [[ms["median"] - ms["low"]], [ms["high"] - ms["median"]]]
        axes.errorbar(ms["median"], error[row["name"]], xerr=around, fmt="o", color=colour)
        axes.annotate(row["name"], (ms["median"], error[row["name"]]), fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel="ms a batch", title=_title(record))
    axes.set_ylabel("distance" if errors else "error to the converged ODE")
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _title(record: Mapping[str, Any]) -> str:
    c = record["conditions"]
    return (
        f"{c['model']}, batch {c['batch']}, guidance {c['guidance']:g}, "
        f"{c['dtype'].removeprefix('torch.')}, {c['device']}, {c['threads']} threads, "
        f"torch {c['versions']['torch']}"
    )
