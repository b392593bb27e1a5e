"""`flowturbo export`: a model with its plan, compiled ahead of time into a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from flowturbo.cli import options
from flowturbo.cli.config import options_of
from flowturbo.cli.output import say
from flowturbo.compiled import CompileSpec, export
from flowturbo.models.zoo import load
from flowturbo.progress import bars

__all__ = ["run"]


@options_of(CompileSpec, without=("shape", "device", "options"))
def run(
    context: typer.Context,
    config: CompileSpec,
    model: options.ModelName = options.DEFAULT_MODEL,
    plan: options.PlanName = None,
    refiner: options.RefinerName = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file, .pt2.")] = Path(
        "sampler.pt2"
    ),
    device: options.Device = "auto",
) -> None:
    """Compile a model with its plan ahead of time, for machines like this one.

    Example: flowturbo export --model digits --plan AB2:8@1.6 --batch 1,8 -o digits.pt2
    """
    table = options.read_plan(plan)
    options.reserve(context, out, "a compiled sampler", ".pt2")
    network = load(
        model, device=options.resolve_device(device), dtype=config.dtype or torch.float32
    )
    config = replace(config, dtype=network.dtype)
    (chosen,), _, loaded = options.resolve_sampling(network, [table], config.guidance, refiner)
    with bars() as report:
        manifest = export(out, network, chosen, loaded, config=config, report=report)
    made_for = ", ".join(manifest["made_for"][k] for k in ("torch", "system", "device", "kind"))
    batch = ", ".join(map(str, manifest["batch"]))
    say(f"{network.name} {chosen!r}, batch {batch}, for {made_for} -> {out}")
