"""`flowturbo remove`: remove what a mask, a box or a click marks in an image."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli import editing, options
from flowturbo.cli.config import options_of
from flowturbo.tasks.editing import PLAN
from flowturbo.tasks.inpainting import remove

__all__ = ["run"]


@options_of(editing.EditOptions, without=("number",), guidance=1.0)
def run(
    context: typer.Context,
    config: editing.EditOptions,
    image: editing.ImageFile,
    prompt: Annotated[
        str,
        typer.Argument(
            help="What remains; without it, the hole is filled with the colours around it."
        ),
    ] = "",
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Mask image, white on the object.")
    ] = None,
    box: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option("--box", help="Left, top, right and bottom of the object, in pixels."),
    ] = None,
    click: Annotated[
        tuple[int, int] | None,
        typer.Option("--click", help="A pixel of the object, from the left and from the top."),
    ] = None,
    feather: editing.Feather = 0.0,
    plan: options.PlanName = PLAN,
) -> None:
    """Remove what a mask or a box covers, or the object at a click.

    Example: flowturbo remove tree.png "tree" --box 20 4 30 12 -o bare.png
    """
    task = partial(
        remove, mask=mask, box=box, click=click, feather=feather, plan=options.read_plan(plan)
    )
    editing.execute(
        context, task, image, prompt, config, box=box, click=click, feather=feather,
        mask=None if mask is None else mask.name, plan=plan if prompt else None,
    )  # fmt: skip
