"""`flowturbo benchmark`: plans and samplers of other libraries side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli import options
from flowturbo.cli.config import options_of
from flowturbo.cli.output import say, show
from flowturbo.evaluate.benchmark import BenchmarkConfig, benchmark
from flowturbo.evaluate.report import check_plot, plot, table
from flowturbo.files import reserved, write_json
from flowturbo.integrations.baselines import baselines
from flowturbo.models.zoo import load
from flowturbo.progress import bars

__all__ = ["run"]


@options_of(BenchmarkConfig)
def run(
    context: typer.Context,
    config: BenchmarkConfig,
    model: options.ModelName = options.DEFAULT_MODEL,
    plan: options.PlanNames = None,
    refiner: options.RefinerName = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Label or prompt; by default names on the card."),
    ] = None,
    vae: options.Vae = None,
    with_baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Measure other libraries too.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the record, .json.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", help="File for a plot of error against milliseconds.")
    ] = None,
    device: options.Device = "auto",
    dtype: options.DtypeName = "float32",
) -> None:
    """Measure plans, uncompiled and compiled, and other samplers on the same weights.

    Example: flowturbo benchmark --model digits --plan AB2:8@1.6 --plan H1P5 -o record.json
    """
    tables = [options.read_plan(p) for p in plan] if plan else [None]
    if picture is not None:
        check_plot(picture)
    if out is not None:
        options.reserve(context, out, "a record", ".json")
    context.with_resource(reserved(picture))
    field = load(
        model, device=options.resolve_device(device), dtype=options.resolve_dtype(dtype), vae=vae
    )
    plans, _, light = options.resolve_sampling(field, tables, config.guidance, refiner)
    rows = ((prompts or field.names or [""]) * config.batch)[: config.batch]
    found, missing = baselines(plans[0].nfe["model"]) if with_baselines else ({}, {})
    with bars() as report:
        record = benchmark(
            field,
            plans,
            light,
            config=config,
            cond=field.condition(rows) if field.conditioning else None,
            baselines=found,
            missing=missing,
            report=report,
        )
    if out is not None:
        write_json(out, record)
    if picture is not None:
        plot(record, picture)
    show(table(record))
    for name, how in record["missing"].items():
        say(f"not measured: {name} ({how})")
    cost = {k: v for k, v in record["latency"].items() if v is not None and k != "worst"}
    say("an uncompiled batch costs, in ms: " + ", ".join(f"{k} {v:.3g}" for k, v in cost.items()))
    for path in (out, picture):
        if path is not None:
            say(f"-> {path}")
