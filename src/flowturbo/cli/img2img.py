"""`flowturbo img2img`: an image noised and sampled again by a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from flowturbo.cli import editing, options
from flowturbo.tasks.editing import PLAN, img2img

__all__ = ["run"]


def run(
    context: typer.Context,
    image: editing.ImageFile,
    prompt: Annotated[str, typer.Argument(help="What the image is to show.")],
    strength: Annotated[
        float, typer.Option("--strength", help="From 0, the image itself, to 1, noise alone.")
    ] = 0.6,
    model: options.ModelName = options.DEFAULT_MODEL,
    style: editing.Style = None,
    plan: options.PlanName = PLAN,
    guidance: options.GuidanceScale = None,
    negative: Annotated[
        str | None, typer.Option("--negative", help="A prompt to guide away from.")
    ] = None,
    n: editing.Number = 1,
    seed: options.Seed = 0,
    size: editing.ResultSize = "input",
    vae: options.Vae = None,
    out: editing.Out = editing.DEFAULT_OUT,
    device: options.Device = "auto",
    dtype: options.DtypeName = "float32",
) -> None:
    """Noise an image and sample it again by a prompt.

    Example: flowturbo img2img apple.png "lemon" --strength 0.6 -n 4 -o lemons.png
    """
    table = options.read_plan(plan)
    network = editing.load_model(context, image, model, vae, device, dtype, out, n)
    made = img2img(
        network,
        image,
        [prompt] * n,
        strength=strength,
        plan=table,
        guidance=guidance,
        negative=negative,
        style=style,
        seed=seed,
        size=size,  # type: ignore[arg-type]
    )
    editing.write(
        out, image, made, network, size=size, guidance=guidance, seed=seed, prompt=prompt,
        strength=strength, plan=plan, style=style, negative=negative,
    )  # fmt: skip
