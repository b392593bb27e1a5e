"""`flowturbo edit`: an image changed from what one prompt says to what another says."""

from __future__ import annotations

from typing import Annotated

import typer

from flowturbo.cli import editing, options
from flowturbo.tasks.editing import HALF, edit

__all__ = ["run"]


def run(
    context: typer.Context,
    image: editing.ImageFile,
    prompt: Annotated[str, typer.Argument(help="What the image is to show.")],
    source_prompt: Annotated[str, typer.Option("--from", help="What the image shows.")],
    method: Annotated[
        str, typer.Option("--method", help="inversion, flowedit or sdedit.")
    ] = "inversion",
    keep: Annotated[
        float, typer.Option("--keep", help="How much of the image stays, from 0 to 1.")
    ] = 0.1,
    model: options.ModelName = options.DEFAULT_MODEL,
    style: editing.Style = None,
    source_style: Annotated[
        str | None, typer.Option("--from-style", help="Style of the image; by default --style.")
    ] = None,
    plan: editing.Notation = HALF,
    guidance: options.GuidanceScale = None,
    n: editing.Number = 1,
    seed: options.Seed = 0,
    size: editing.ResultSize = "input",
    vae: options.Vae = None,
    out: editing.Out = editing.DEFAULT_OUT,
    device: options.Device = "auto",
    dtype: options.DtypeName = "float32",
) -> None:
    """Change an image from what one prompt says to what another says.

    Example: flowturbo edit apple.png "green apple" --from "red apple" -o green.png
    """
    if n > 1 and method == "inversion":
        raise ValueError(
            f"-n {n}: an inversion has no noise, so all candidates would be alike; take another "
            "--method, or another --keep for each"
        )
    network = editing.load_model(context, image, model, vae, device, dtype, out, n)
    made = edit(
        network,
        image,
        [prompt] * n,
        source_prompt,
        method=method,  # type: ignore[arg-type]
        keep=keep,
        plan=plan,
        guidance=guidance,
        style=style,
        source_style=source_style,
        seed=seed,
        size=size,  # type: ignore[arg-type]
    )
    editing.write(
        out, image, made, network, size=size, guidance=guidance, seed=seed, prompt=prompt,
        source_prompt=source_prompt, method=method, keep=keep, plan=plan, style=style,
        source_style=source_style,
    )  # fmt: skip
