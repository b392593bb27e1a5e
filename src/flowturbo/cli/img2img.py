"""`flowturbo img2img`: add noise to an image, and sample it again with a prompt."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from flowturbo.cli import editing, options
from flowturbo.cli.config import options_of
from flowturbo.tasks.editing import PLAN, img2img

__all__ = ["run"]


@options_of(editing.EditOptions)
def run(
    context: typer.Context,
    config: editing.EditOptions,
    image: editing.ImageFile,
    prompt: Annotated[str, typer.Argument(help="What the new image should show.")],
    strength: Annotated[
        float, typer.Option("--strength", help="From 0 (the image itself) to 1 (pure noise).")
    ] = 0.6,
    negative: Annotated[
        str | None, typer.Option("--negative", help="A prompt to guide away from.")
    ] = None,
    plan: options.PlanName = PLAN,
) -> None:
    """Add noise to an image, and sample it again with a prompt.

    Example: flowturbo img2img apple.png "lemon" --strength 0.6 -n 4 -o lemons.png
    """
    task = partial(img2img, strength=strength, negative=negative, plan=options.read_plan(plan))
    editing.execute(
        context, task, image, prompt, config, strength=strength, negative=negative, plan=plan
    )
