"""`flowturbo inpaint`: repaint part of an image, given a prompt."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli import editing, options
from flowturbo.cli.config import options_of
from flowturbo.tasks.editing import PLAN
from flowturbo.tasks.inpainting import inpaint

__all__ = ["run"]


@options_of(editing.EditOptions)
def run(
    context: typer.Context,
    config: editing.EditOptions,
    image: editing.ImageFile,
    prompt: Annotated[str, typer.Argument(help="What the whole image should show.")],
    mask: Annotated[
        Path, typer.Option("--mask", help="Mask image: white is repainted, grey is blended.")
    ],
    quality: Annotated[
        str, typer.Option("--quality", help="standard or high; high takes about twice as long.")
    ] = "standard",
    feather: editing.Feather = 0.0,
    plan: options.PlanName = PLAN,
) -> None:
    """Repaint the masked part of an image, given a prompt; other pixels are not changed.

    Example: flowturbo inpaint apple.png "red apple" --mask mask.png -n 4 -o apples.png
    """
    facts = {"quality": quality, "feather": feather}
    task = partial(inpaint, mask=mask, plan=options.read_plan(plan), **facts)  # type: ignore[arg-type]
    editing.execute(context, task, image, prompt, config, mask=mask.name, plan=plan, **facts)
