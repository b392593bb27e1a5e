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
    read_plan,
    resolve_batch,
    resolve_device,
    resolve_dtype,
)
from flowturbo.compiled import export
from flowturbo.files import check_writable
from flowturbo.models.zoo import load
from flowturbo.tasks.generate import resolve_plan, resolve_refiner

__all__ = ["run"]


def run(
    model: ModelName = DEFAULT_MODEL,
    plan: PlanName = None,
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
    if out.suffix != ".pt2":
        raise ValueError(f"-o {out}: a compiled sampler is written as .pt2")
    check_writable(out)
    network = load(model, device=resolve_device(device), dtype=resolve_dtype(dtype))
    table = resolve_plan(network, table, guidance)
    refiner = resolve_refiner(network, table, None)
    manifest = export(
        out, network, table, refiner, batch=sizes, dtype=network.dtype, guidance=guidance
    )
    made_for = ", ".join(manifest["made_for"][k] for k in ("torch", "system", "device", "kind"))
    print(f"{network.name} {table!r}, batch {batch}, for {made_for} -> {out}")
