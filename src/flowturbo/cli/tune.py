"""`flowturbo tune`: a plan fitted to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli.config import options_of
from flowturbo.cli.options import (
    Device,
    ModelName,
    reserve,
    resolve_device,
)
from flowturbo.cli.output import say
from flowturbo.models.zoo import load
from flowturbo.refiner.checkpoint import load_refiner
from flowturbo.tuning.tune import TuneConfig, tune

__all__ = ["run"]


@options_of(TuneConfig)
def run(
    context: typer.Context,
    model: ModelName,
    config: TuneConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file, .json.")] = Path(
        "plan.json"
    ),
    refiner: Annotated[
        str | None, typer.Option("--refiner", help="Bundled name, or a folder with a refiner.")
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            help="Folder for intermediate results; an interrupted search in it is resumed.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Fit a plan to a model, without data.

    Example: flowturbo tune --model digits --nfe 6 -o digits-6.json
    """
    reserve(context, out, "a plan", ".json")
    field = load(model, device=resolve_device(device))
    loaded = None if refiner is None else load_refiner(refiner, field)
    plan = tune(field, config, refiner=loaded, cache_dir=cache_dir, report=lambda p: say(str(p)))
    plan.save(out)
    say(repr(plan))
    for note in plan.info["notes"]:
        say(note)
    what = "of the round trip" if "inverts" in plan.info else "to the reference solution"
    for name, error in (
        ("this plan", plan.info["error"]),
        (plan.info["baseline"]["name"], plan.info["baseline"]),
    ):
        figures = f"error {error['rmse']:.4f}, median {error['median']:.4f}"
        say(f"{name}: {figures}, {what}")
    say(f"-> {out}")
