"""`flowturbo analyze`: how models change along their trajectories, and where samplers err."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli import options
from flowturbo.cli.config import options_of
from flowturbo.cli.output import say, show
from flowturbo.evaluate.analysis import AnalyzeConfig, analyze
from flowturbo.evaluate.analysis_figures import figures, read_record, tables
from flowturbo.evaluate.report import check_plot
from flowturbo.files import exclusive, write_json
from flowturbo.models.zoo import load
from flowturbo.progress import bars
from flowturbo.types import JsonObject

__all__ = ["run"]


@options_of(AnalyzeConfig)
def run(
    context: typer.Context,
    config: AnalyzeConfig,
    model: options.ModelName = options.DEFAULT_MODEL,
    compare_model: Annotated[
        list[str] | None, typer.Option(help="Another model to compare with; may be repeated.")
    ] = None,
    plan: options.PlanNames = None,
    refiner: options.RefinerName = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Make tables and figures of this record.json; measure nothing."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for record.json and the figures.")
    ] = Path("analysis"),
    device: options.Device = "auto",
    dtype: options.DtypeName = "float32",
) -> None:
    """Measure how predictions change along trajectories, and where samplers lose their error.

    Example: flowturbo analyze --model digits --plan AB2:8@1.6 --plan H1P6 -o analysis
    """
    path = out / "record.json"
    options.check_folder(out)
    check_plot(out / "rows.png")
    context.with_resource(exclusive(out))
    if record is not None:
        made = read_record(record)
    else:
        names = [model, *(compare_model or [])]
        made = _measure(names, plan, refiner, config, device, dtype)
        write_json(path, made)
    for table in tables(made):
        show(table)
    if record is None:
        say(f"-> {path}")
    for picture in figures(made, out):
        say(f"-> {picture}")


def _measure(
    names: list[str],
    plans: list[str] | None,
    refiner: str | None,
    config: AnalyzeConfig,
    device: str,
    dtype: str,
) -> JsonObject:
    tables = [options.read_plan(p) for p in plans] if plans else [None]
    where, precision = options.resolve_device(device), options.resolve_dtype(dtype)
    models = [load(name, device=where, dtype=precision) for name in names]
    first = models[0]
    chosen, _, light = options.resolve_sampling(first, tables, config.guidance, refiner)
    named = {m.name: m for m in models}
    if len(named) < len(models):
        raise ValueError(f"models {', '.join(m.name for m in models)}: names on cards must differ")
    with bars() as report:
        return analyze(named, chosen, light, config=config, report=report)
