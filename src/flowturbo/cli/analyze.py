"""`flowturbo analyze`: how models change along their trajectories, and where samplers err."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flowturbo.cli.options import (
    DEFAULT_MODEL,
    Device,
    DtypeName,
    GuidanceScale,
    ModelName,
    PlanNames,
    RefinerName,
    Seed,
    check_folder,
    read_plan,
    resolve_device,
    resolve_dtype,
    resolve_sampling,
)
from flowturbo.cli.output import say, show
from flowturbo.evaluate.analysis import SECTIONS, analyze
from flowturbo.evaluate.analysis_figures import figures, read_record, tables
from flowturbo.evaluate.report import check_picture
from flowturbo.files import exclusive, write_json
from flowturbo.models.zoo import load

__all__ = ["run"]


def run(
    context: typer.Context,
    model: ModelName = DEFAULT_MODEL,
    compare_model: Annotated[
        list[str] | None,
        typer.Option(
            "--compare-model", help="Another model to compare with; may be given several times."
        ),
    ] = None,
    plan: PlanNames = None,
    refiner: RefinerName = None,
    sections: Annotated[
        str, typer.Option("--sections", help="What to measure, of curvature, solvers and rows.")
    ] = ",".join(SECTIONS),
    nfe: Annotated[str, typer.Option("--nfe", help="Evaluations of the solvers.")] = "4,6,8,12,16",
    shift: Annotated[float, typer.Option("--shift", help="Of the solvers' time grid.")] = 1.0,
    guidance: GuidanceScale = None,
    trajectories: Annotated[int, typer.Option("--trajectories", help="To measure on.")] = 64,
    steps: Annotated[int, typer.Option("--steps", help="Of the converged solution.")] = 64,
    batch: Annotated[int, typer.Option("--batch", help="Trajectories at a time.")] = 64,
    record: Annotated[
        Path | None, typer.Option("--record", help="Draw this record.json, measure nothing.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder for record.json and the figures.")
    ] = Path("analysis"),
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DtypeName = "float32",
) -> None:
    """Measure how predictions change along trajectories, and where samplers lose their error.

    Example: flowturbo analyze --model digits --plan AB2:8@1.6 --plan H1P6 -o analysis
    """
    path = out / "record.json"
    check_folder(out)
    check_picture(out / "rows.png")
    context.with_resource(exclusive(out))
    if record is not None:
        made = read_record(record)
    else:
        made = _measure(
            [model, *(compare_model or [])],
            plan,
            refiner,
            device=device,
            dtype=dtype,
            guidance=guidance,
            sections=[p.strip() for p in sections.split(",")],
            nfe=_numbers(nfe),
            shift=shift,
            trajectories=trajectories,
            steps=steps,
            batch=batch,
            seed=seed,
        )
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
    *,
    device: str,
    dtype: str,
    **options: Any,
) -> dict[str, Any]:
    tables = [read_plan(p) for p in plans] if plans else [None]
    where: dict[str, Any] = {"device": resolve_device(device), "dtype": resolve_dtype(dtype)}
    models = [load(name, **where) for name in names]
    first = models[0]
    chosen, options["guidance"], light = resolve_sampling(
        first, tables, options["guidance"], refiner
    )
    named = {m.name: m for m in models}
    if len(named) < len(models):
        raise ValueError(f"models {', '.join(m.name for m in models)}: names on cards must differ")
    return analyze(named, chosen, light, **options)


def _numbers(text: str) -> list[int]:
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and 0 < int(p) < 1000 for p in parts):
        raise ValueError(f"--nfe {text!r}: must be numbers of evaluations, each 1 to 999 (4,8)")
    return [int(p) for p in parts]
