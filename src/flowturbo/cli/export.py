"""`flowturbo export`: a model with its plan, compiled ahead of time into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli.options import (
    DEFAULT_MODEL,
    Device,
    DtypeName,
    ModelName,
    PlanName,
    RefinerName,
    find_refiner,
    read_plan,
    reserve,
    resolve_batch,
    resolve_device,
    resolve_dtype,
)
from flowturbo.cli.output import say
from flowturbo.compiled import export
from flowturbo.models.zoo import load
from flowturbo.tasks.generate import resolve_plan

__all__ = ["run"]


def run(
    context: typer.Context,
    model: ModelName = DEFAULT_MODEL,
    plan: PlanName = None,
    refiner: RefinerName = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", "-g", help="The default; 1 leaves guidance out for good."),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Pictures at once, as 8 or 1,8.")] = "8",
    out: Annotated[Path, typer.Option("--out", "-o", help="The file, .pt2.")] = Path("sampler.pt2"),
    device: Device = "auto",
    dtype: DtypeName = "float32",
) -> None:
    """Compile a model with its plan ahead of time, for machines like this one.

    Example: flowturbo export --model digits --plan AB2:8@1.6 --batch 1,8 -o digits.pt2
    """
    table, sizes = read_plan(plan), resolve_batch(batch)
    reserve(context, out, "a compiled sampler", ".pt2")
    network = load(model, device=resolve_device(device), dtype=resolve_dtype(dtype))
    table = resolve_plan(network, table, guidance)
    light = find_refiner(refiner, network, [table])
    manifest = export(
        out, network, table, light, batch=sizes, dtype=network.dtype, guidance=guidance
    )
    made_for = ", ".join(manifest["made_for"][k] for k in ("torch", "system", "device", "kind"))
    say(f"{network.name} {table!r}, batch {batch}, for {made_for} -> {out}")
