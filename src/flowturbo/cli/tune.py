"""`flowturbo tune`: a plan fitted to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli.options import (
    Device,
    ModelName,
    reserve,
    resolve_device,
    resolve_guidance,
)
from flowturbo.cli.output import say
from flowturbo.models.zoo import load
from flowturbo.refiner.checkpoint import load_refiner
from flowturbo.tuning.tune import tune

__all__ = ["run"]


def run(
    context: typer.Context,
    model: ModelName,
    nfe: Annotated[int, typer.Option("--nfe", help="Evaluations of the model.")] = 6,
    budget_ms: Annotated[
        float | None,
        typer.Option("--budget-ms", help="Instead: milliseconds to evaluate 8 pictures."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The plan, a .json file.")] = Path(
        "plan.json"
    ),
    guidance: Annotated[
        str | None, typer.Option("--guidance", "-g", help="A scale, or a range as 1-4.")
    ] = None,
    refiner: Annotated[
        str | None, typer.Option("--refiner", help="A folder or bundled name with a refiner.")
    ] = None,
    trajectories: Annotated[
        int, typer.Option("--trajectories", help="To fit on; more to choose and test.")
    ] = 64,
    backward: Annotated[bool, typer.Option("--backward", help="From data to noise.")] = False,
    search: Annotated[bool, typer.Option(help="Search the times, not weights alone.")] = True,
    contrast: Annotated[
        bool, typer.Option("--contrast", help="Keep the contrast of pictures, for some error.")
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            help="Folder for intermediate results; an interrupted search in it is resumed.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the noises and conditions.")] = 0,
    device: Device = "auto",
) -> None:
    """Fit a plan to a model, without data.

    Example: flowturbo tune --model digits --nfe 6 -o digits-6.json
    """
    scale = None if guidance is None else resolve_guidance(guidance)
    reserve(context, out, "a plan", ".json")
    field = load(model, device=resolve_device(device))
    plan = tune(
        field,
        nfe=nfe,
        budget_ms=budget_ms,
        refiner=None if refiner is None else load_refiner(refiner, field),
        guidance=scale,
        trajectories=trajectories,
        seed=seed,
        direction="backward" if backward else "forward",
        search=search,
        contrast=contrast,
        cache_dir=cache_dir,
        report=say,
    )
    plan.save(out)
    say(repr(plan))
    for name, error in (
        ("this plan", plan.info["error"]),
        (plan.info["plain"]["name"], plan.info["plain"]),
    ):
        say(
            f"{name}: error {error['rmse']:.4f}, median {error['median']:.4f}, to the converged ODE"
        )
    say(f"-> {out}")
