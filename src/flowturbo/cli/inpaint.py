"""`flowturbo inpaint`: part of an image painted anew by a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli import editing, options
from flowturbo.tasks.editing import PLAN
from flowturbo.tasks.inpainting import inpaint

__all__ = ["run"]


def run(
    context: typer.Context,
    image: editing.ImageFile,
    prompt: Annotated[str, typer.Argument(help="What the whole image is to show.")],
    mask: Annotated[Path, typer.Option("--mask", help="White where to paint; grey blends.")],
    quality: Annotated[
        str, typer.Option("--quality", help="standard, or high: smoother seams, twice the cost.")
    ] = "standard",
    feather: editing.Feather = 0.0,
    model: options.ModelName = options.DEFAULT_MODEL,
    style: editing.Style = None,
    plan: options.PlanName = PLAN,
    guidance: options.GuidanceScale = None,
    n: editing.Number = 1,
    seed: options.Seed = 0,
    size: editing.ResultSize = "input",
    vae: options.Vae = None,
    out: editing.Out = editing.DEFAULT_OUT,
    device: options.Device = "auto",
    dtype: options.DtypeName = "float32",
) -> None:
    """Paint the masked part of an image by a prompt; other pixels keep their bits.

    Example: flowturbo inpaint apple.png "red apple" --mask mask.png -n 4 -o apples.png
    """
    table = options.read_plan(plan)
    network = editing.load_model(context, image, model, vae, device, dtype, out, n)
    made = inpaint(
        network,
        image,
        mask,
        [prompt] * n,
        plan=table,
        guidance=guidance,
        quality=quality,  # type: ignore[arg-type]
        feather=feather,
        style=style,
        seed=seed,
        size=size,  # type: ignore[arg-type]
    )
    editing.write(
        out, image, made, network, size=size, guidance=guidance, seed=seed, prompt=prompt,
        plan=plan, quality=quality, style=style, mask=mask.name, feather=feather,
    )  # fmt: skip
