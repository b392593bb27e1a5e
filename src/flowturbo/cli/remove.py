"""`flowturbo remove`: what a mask or a box covers is removed from an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli import editing, options
from flowturbo.tasks.editing import PLAN
from flowturbo.tasks.inpainting import remove

__all__ = ["run"]


def run(
    context: typer.Context,
    image: editing.ImageFile,
    prompt: Annotated[
        str, typer.Argument(help="What remains; without it colours are spread into the hole.")
    ] = "",
    mask: Annotated[Path | None, typer.Option("--mask", help="White on the object.")] = None,
    box: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option("--box", help="Left, top, right and bottom of the object, in pixels."),
    ] = None,
    feather: editing.Feather = 0.0,
    model: options.ModelName = options.DEFAULT_MODEL,
    style: editing.Style = None,
    plan: options.PlanName = PLAN,
    guidance: Annotated[
        float, typer.Option("--guidance", "-g", help="Guidance scale, 1 is off.")
    ] = 1.0,
    seed: options.Seed = 0,
    size: editing.ResultSize = "input",
    vae: options.Vae = None,
    out: editing.Out = editing.DEFAULT_OUT,
    device: options.Device = "auto",
    dtype: options.DtypeName = "float32",
) -> None:
    """Remove what a mask or a box covers.

    Example: flowturbo remove tree.png "tree" --box 20 4 30 12 -o bare.png
    """
    table = options.read_plan(plan)
    network = editing.load_model(context, image, model, vae, device, dtype, out, 1)
    made = remove(
        network,
        image,
        mask,
        prompt,
        box=box,
        plan=table,
        guidance=guidance,
        feather=feather,
        style=style,
        seed=seed,
        size=size,  # type: ignore[arg-type]
    )
    editing.write(
        out, image, made, network, size=size, guidance=guidance, seed=seed, feather=feather,
        mask=None if mask is None else mask.name, box=box, prompt=prompt or None,
        plan=plan if made.evaluations else None, style=style,
    )  # fmt: skip
