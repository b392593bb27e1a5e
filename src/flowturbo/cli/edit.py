"""`flowturbo edit`: change what one prompt describes into what another describes."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from flowturbo.cli import editing
from flowturbo.cli.config import options_of
from flowturbo.tasks.editing import HALF, edit

__all__ = ["run"]


@options_of(editing.EditOptions)
def run(
    context: typer.Context,
    config: editing.EditOptions,
    image: editing.ImageFile,
    prompt: Annotated[str, typer.Argument(help="What the edited image should show.")],
    source_prompt: Annotated[str, typer.Option("--from", help="What the image shows.")],
    method: Annotated[
        str, typer.Option("--method", help="inversion, flowedit or sdedit.")
    ] = "inversion",
    keep: Annotated[
        float, typer.Option("--keep", help="How much of the image stays, from 0 to 1.")
    ] = 0.1,
    source_style: Annotated[
        str | None, typer.Option("--from-style", help="Style of the image; by default --style.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Invert by the reversible solver BELM.")
    ] = False,
    plan: Annotated[
        str, typer.Option("--plan", help="Notation of a solver that is used in each direction.")
    ] = HALF,
) -> None:
    """Edit an image: change what one prompt describes into what another describes.

    Example: flowturbo edit apple.png "green apple" --from "red apple" -o green.png
    """
    if config.number > 1 and method == "inversion":
        raise ValueError(
            f"-n {config.number}: an inversion has no noise, so all candidates would be alike; "
            "use another --method, or a different --keep for each"
        )
    facts = {
        "source_prompt": source_prompt, "method": method, "keep": keep, "exact": exact,
        "plan": plan, "source_style": source_style,
    }  # fmt: skip
    task = partial(edit, **facts)  # type: ignore[arg-type]
    editing.execute(context, task, image, prompt, config, **facts)
