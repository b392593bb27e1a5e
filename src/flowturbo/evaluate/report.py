"""The record of a benchmark as a table and as a picture; records of evaluations as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from flowturbo.files import atomic_write

__all__ = ["check_alike", "check_picture", "evaluations", "plot", "table"]

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
            f"{100 * row['mfu']:.0f} %",
            f"{row['compile']['seconds']:.1f}" if "compile" in row else "",
        )
    return made


_ALIKE = (
    "fingerprint", "codec", "dtype", "pictures", "prompts", "guidance", "seed", "steps", "features",
    "against",
)  # fmt: skip


_COLUMNS = (
    "plan", "evaluations", "GFLOPs", "ms", "error", "median", "perceptual", "FD beside converged",
    "FD", "score", "precision", "recall", "agreement",
)  # fmt: skip


def check_alike(conditions: Sequence[Mapping[str, Any]]) -> None:
    """Refuse records of different pictures by their conditions, or by some of these.

    Raises:
        ValueError: naming what differs.
    """
    first = conditions[0]
    for other in conditions[1:]:
        for key in _ALIKE:
            if key in first and other.get(key) != first[key]:
                raise ValueError(
                    f"records of {key}={first[key]!r} and {other.get(key)!r}: one table holds "
                    "those of the same pictures alone; show them apart"
                )


def evaluations(records: Sequence[Mapping[str, Any]]) -> Table:
    """Records of `flowturbo.evaluate` side by side, a line a plan, the smallest error first.

    The last line is the converged sampler's, of the first record.

    Raises:
        ValueError: if there is none, or they were measured on different pictures.
    """
    if not records:
        raise ValueError("records=[]: a table needs one at least")
    check_alike([r["conditions"] for r in records])
    first = records[0]["conditions"]
    about = "" if first["against"] is None else f", against {first['against']['name']}"
    made = Table(
        title=f"{first['model']}, {first['pictures']} pictures, guidance {first['guidance']:g}, "
        f"{first['dtype'].removeprefix('torch.')}, seed {first['seed']}{about}",
    )
    lines = [_line(r, "plan") for r in sorted(records, key=lambda r: r["trajectory"]["rmse"])]
    lines.append(_line(records[0], "converged"))
    measured = [i for i in range(len(_COLUMNS)) if any(line[i] for line in lines)]
    for i in measured:
        made.add_column(_COLUMNS[i], justify="right" if i else "left")
    for line in lines:
        made.add_row(*(line[i] for i in measured))
    return made


def _line(record: Mapping[str, Any], which: str) -> list[str]:
    """What ``record`` says of "plan" or of "converged"."""
    apart = record.get("frechet", {})
    share = lambda part: f"{100 * record[part][which]['share']:.1f} %" if part in record else ""
    shown = [
        f"{apart[which]:.3f}" if apart else "",
        f"{record['score'][which]['mean']:.2f}" if "score" in record else "",
        *map(share, ("precision", "recall", "agreement")),
    ]
    if which == "converged":
        return ["converged", f"{record['reference']['evaluations']}", *[""] * 6, *shown]
    count, far = record["evaluations"], record["trajectory"]
    relative = ""
    if "relative" in apart:
        bounds = _range([100 * x for x in apart["relative_95"]], "+.1f")
        relative = f"{100 * apart['relative']:+.1f} % [{bounds}]"
    return [
        record["conditions"]["plan"],
        f"{count['model']}" + (f" + {count['refiner']}" if count["refiner"] else ""),
        f"{record['flops'] / 1e9:.3g}",
        f"{record['latency']['ms']['median']:.1f}" if "latency" in record else "",
        f"{far['rmse']:.4f} [{_range(far['rmse_95'], '.4f')}]",
        f"{far['median']:.4f}",
        f"{record['perceptual']['median']:.3g}" if "perceptual" in record else "",
        relative,
        *shown,
    ]


def _range(bounds: Sequence[float], how: str) -> str:
    return f"{bounds[0]:{how}}, {bounds[1]:{how}}"


def check_picture(path: str | Path) -> None:
    """Raise now, before long work, unless matplotlib is there and writes a picture ``path``.

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if ``path`` is of a kind that it does not write.
    """
    kinds = _figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in kinds:
        raise ValueError(f"{path}: a picture is written as one of .{', .'.join(kinds)}")


def _figure(**options: Any) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError("pictures need matplotlib: pip install 'flowturbo[eval]'") from e
    return Figure(**options)


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
    error = errors or {r["name"]: r["error"]["rmse"] for r in record["methods"] if "error" in r}
    shown = [r for r in record["methods"] if r["name"] in error]
    if not shown:
        raise ValueError("the record holds no errors; measure with a reference, or pass errors")
    figure = _figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in shown:
        ms, colour = row["ms"], _COLOURS.get(row["scope"], "tab:gray")
        around = [[ms["median"] - ms["low"]], [ms["high"] - ms["median"]]]
        axes.errorbar(ms["median"], error[row["name"]], xerr=around, fmt="o", color=colour)
        where = (ms["median"], error[row["name"]])
        axes.annotate(row["name"], where, fontsize=7, parse_math=False)
    axes.set(xscale="log", yscale="log", xlabel="ms a batch")
    axes.set_title(_title(record), parse_math=False)
    axes.set_ylabel("distance" if errors else "error to the converged ODE")
    axes.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def _title(record: Mapping[str, Any]) -> str:
    c = record["conditions"]
    return (
        f"{c['model']}, batch {c['batch']}, guidance {c['guidance']:g}, "
        f"{c['dtype'].removeprefix('torch.')}, {c['device']}, {c['threads']} threads, "
        f"torch {c['versions']['torch']}"
    )
