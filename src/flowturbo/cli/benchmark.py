"""`flowturbo benchmark`: plans and other libraries' samplers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    Vae,
    read_plan,
    reserve,
    resolve_device,
    resolve_dtype,
    resolve_sampling,
)
from flowturbo.cli.output import say, show
from flowturbo.evaluate.benchmark import benchmark
from flowturbo.evaluate.report import check_picture, plot, table
from flowturbo.files import reserved, write_json
from flowturbo.integrations.baselines import baselines
from flowturbo.models.zoo import load

__all__ = ["run"]


def run(
    context: typer.Context,
    model: ModelName = DEFAULT_MODEL,
    plan: PlanNames = None,
    refiner: RefinerName = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="By default names on the card.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Pictures at once.")] = 8,
    guidance: GuidanceScale = None,
    vae: Vae = None,
    scope: Annotated[
        str,
        typer.Option("--scope", help="What is compiled, of none, network, row and plan."),
    ] = "none,plan",
    with_peers: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Measure other libraries too.")
    ] = True,
    repeats: Annotated[int, typer.Option("--repeats", help="Turns to measure.")] = 20,
    reference: Annotated[
        str, typer.Option("--reference", help="The plan to tell the error from.")
    ] = "RK4:32",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The record, a .json file.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", help="Error against milliseconds, a .png.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DtypeName = "float32",
) -> None:
    """Measure plans, uncompiled and compiled, and other samplers on the same weights.

    Example: flowturbo benchmark --model digits --plan AB2:8@1.6 --plan H1P5 -o record.json
    """
    if batch < 1:
        raise ValueError(f"--batch {batch}: must be at least 1")
    tables = [read_plan(p) for p in plan] if plan else [None]
    if picture is not None:
        check_picture(picture)
    if out is not None:
        reserve(context, out, "a record", ".json")
    context.with_resource(reserved(picture))
    field = load(model, device=resolve_device(device), dtype=resolve_dtype(dtype), vae=vae)
    plans, scale, light = resolve_sampling(field, tables, guidance, refiner)
    rows = ((prompts or field.names or [""]) * batch)[:batch]
    found, missing = baselines(plans[0].nfe["model"]) if with_peers else ({}, {})
    record = benchmark(
        field,
        plans,
        light,
        cond=field.condition(rows) if field.conditioning else None,
        batch=batch,
        guidance=scale,
        scopes=[s.strip() for s in scope.split(",")],
        baselines=found,
        missing=missing,
        repeats=repeats,
        reference=reference or None,
        seed=seed,
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
