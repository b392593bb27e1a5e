"""Records of benchmarks as tables and plots, and records of evaluations as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from flowturbo.files import atomic_write
from flowturbo.types import ReadOnlyJson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_alike", "check_plot", "evaluations", "plot", "table"]

_COLOURS = {"none": "tab:blue", "plan": "tab:red", "row": "tab:orange", "network": "tab:green"}


def counted(evaluations: Mapping[str, int]) -> str:
    """Evaluations of the model, conditional ones (C) and those of a refiner, as "6 + 2 C + 5"."""
    conditional, refiner = evaluations.get("conditional", 0), evaluations["refiner"]
    return (
        f"{evaluations['model']}"
        + (f" + {conditional} C" if conditional else "")
        + (f" + {refiner}" if refiner else "")
    )


def table(record: ReadOnlyJson) -> Table:
    """A row for each method, the fastest first."""
    columns = [
        "method", "ms", "spread", "images/s", "evaluations", "passes", "error", "MFU",
        "compile s",
    ]  # fmt: skip
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
            counted(count),
            str(row.get("passes", "")),
            f"{row['error']['rmse']:.4f}" if "error" in row else "",
            f"{100 * row['mfu']:.0f} %",
            f"{row['compile']['seconds']:.1f}" if "compile" in row else "",
        )
    return made


_ALIKE = (
    "fingerprint", "codec", "dtype", "images", "prompts", "guidance", "seed", "noise", "steps",
    "features", "real_images",
)  # fmt: skip


_COLUMNS = (
    ("plan", "evaluations", "passes", "GFLOPs", "ms", "error", "median"),
    ("plan", "perceptual", "relative increase of FD", "FD"),
    ("plan", "inception score", "precision", "recall", "agreement"),
)


def check_alike(conditions: Sequence[ReadOnlyJson]) -> None:
    """Refuse conditions, or parts of them, of different sets of images.

    Raises:
        ValueError: naming the difference.
    """
    first = conditions[0]
    for other in conditions[1:]:
        for key in _ALIKE:
            if key in first and other.get(key) != first[key]:
                raise ValueError(
                    f"records of {key}={first[key]!r} and {other.get(key)!r}: one table holds "
                    "records of the same images only; show them separately"
                )


def evaluations(records: Sequence[ReadOnlyJson]) -> list[Table]:
    """Records of `flowturbo.evaluate`, a row for each plan, the smallest error first.

    The last row is the reference solution of the first record. The first table has cost
    and errors; others have distances and scores, where they were measured.

    Raises:
        ValueError: if there is no record, or they were measured on different images.
    """
    if not records:
        raise ValueError("records=[]: give at least one")
    check_alike([r["conditions"] for r in records])
    first = records[0]["conditions"]
    about = "" if first["real_images"] is None else f", real images {first['real_images']['name']}"
    title = (
        f"{first['model']}, {first['images']} images, guidance {first['guidance']:g}, "
        f"{first['dtype'].removeprefix('torch.')}, seed {first['seed']}{about}"
    )
    lines = [_line(r, "plan") for r in sorted(records, key=lambda r: r["trajectory"]["rmse"])]
    lines.append(_line(records[0], "reference"))
    found: list[Table] = []
    for columns in _COLUMNS:
        measured = [name for name in columns if any(line.get(name) for line in lines)]
        if len(measured) > 1:
            made = Table(title=None if found else title)
            for name in measured:
                made.add_column(
                    name, justify="left" if name == "plan" else "right", no_wrap=name == "plan"
                )
            for line in lines:
                made.add_row(*(line.get(name, "") for name in measured))
            found.append(made)
    return found


def _line(record: ReadOnlyJson, which: str) -> dict[str, str]:
    """The cells of "plan" or of "reference", by column."""
    distances = record.get("frechet", {})
    shown = {"FD": f"{distances[which]:.3f}" if distances else ""}
    if "inception_score" in record:
        shown["inception score"] = f"{record['inception_score'][which]['mean']:.2f}"
    for part in ("precision", "recall", "agreement"):
        if part in record:
            shown[part] = f"{100 * record[part][which]['share']:.1f} %"
    if which == "reference":
        exact = record["reference"]
        return {
            "plan": "reference", "evaluations": f"{exact['evaluations']}",
            "passes": str(exact.get("passes", "")), **shown,
        }  # fmt: skip
    far = record["trajectory"]
    if "relative" in distances:
        bounds = _range([100 * x for x in distances["relative_95"]], "+.1f")
        shown["relative increase of FD"] = f"{100 * distances['relative']:+.1f} % [{bounds}]"
    if "latency" in record:
        shown["ms"] = f"{record['latency']['ms']['median']:.1f}"
    if "perceptual" in record:
        shown["perceptual"] = f"{record['perceptual']['median']:.3g}"
    return {
        "plan": record["conditions"]["plan"], "evaluations": counted(record["evaluations"]),
        "passes": str(record.get("passes", "")), "GFLOPs": f"{record['flops'] / 1e9:.3g}",
        "error": f"{far['rmse']:.4f} [{_range(far['rmse_95'], '.4f')}]",
        "median": f"{far['median']:.4f}", **shown,
    }  # fmt: skip


def _range(bounds: Sequence[float], how: str) -> str:
    return f"{bounds[0]:{how}}, {bounds[1]:{how}}"


def check_plot(path: str | Path) -> None:
    """Raise, before long work, unless matplotlib is installed and can write a file like ``path``.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if it cannot write that file format.
    """
    kinds = _figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in kinds:
        raise ValueError(f"{path}: must end in one of .{', .'.join(kinds)}")


def _figure() -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("plots need matplotlib: pip install 'flowturbo[eval]'") from e
    return Figure(figsize=(8, 5), layout="constrained")


def plot(record: ReadOnlyJson, path: str | Path, errors: Mapping[str, float] | None = None) -> None:
    """Error against milliseconds, both logarithmic.

    Args:
        record: of ``benchmark``.
        path: file to write, of any format of matplotlib.
        errors: another error of the methods by name, such as a Frechet distance; by default the
            errors in the record.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is no error to show.
    """
    error = errors or {r["name"]: r["error"]["rmse"] for r in record["methods"] if "error" in r}
    shown = [r for r in record["methods"] if r["name"] in error]
    if not shown:
        raise ValueError("the record has no errors; measure with a reference, or pass errors")
    figure = _figure()
    axes = figure.subplots()
    for row in shown:
        ms, colour = row["ms"], _COLOURS.get(row["scope"], "tab:gray")
        around = [[ms["median"] - ms["low"]], [ms["high"] - ms["median"]]]
        axes.errorbar(ms["median"], error[row["name"]], xerr=around, fmt="o", color=colour)
        where = (ms["median"], error[row["name"]])
        axes.annotate(row["name"], where, fontsize=7, parse_math=False)
    axes.set(xscale="log", yscale="log", xlabel="ms a batch")
    axes.set_title(_title(record), parse_math=False)
    axes.set_ylabel("distance" if errors else "error to the reference solution")
    axes.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _title(record: ReadOnlyJson) -> str:
    c = record["conditions"]
    return (
        f"{c['model']}, batch {c['batch']}, guidance {c['guidance']:g}, "
        f"{c['dtype'].removeprefix('torch.')}, {c['device']}, {c['threads']} threads, "
        f"torch {c['versions']['torch']}"
    )
