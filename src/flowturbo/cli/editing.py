"""What all commands that edit an image share: their options, and the file that they write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from flowturbo._version import __version__
from flowturbo.cli import options
from flowturbo.cli.generate import MOST_PIXELS
from flowturbo.cli.output import say
from flowturbo.images import image_grid, save_png
from flowturbo.models.zoo import load
from flowturbo.refiner.resolve import default_guidance
from flowturbo.tasks.editing import img2img
from flowturbo.tasks.sources import Edited, read_images

__all__ = ["EditOptions", "Feather", "ImageFile", "execute"]

ImageFile = Annotated[Path, typer.Argument(help="The image: a file of any size.")]
Feather = Annotated[
    float, typer.Option("--feather", help="Pixels over which the edge of the mask is blurred.")
]
MOST = 64  # candidates


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """Options of every command that edits an image.

    Attributes:
        model: a bundled name, a folder, or hf:owner/repo.
        style: a style of the model.
        guidance: guidance scale, 1 is off; by default that on the card.
        number: number of candidates; several make a grid, which begins with the source image.
        seed: seed of the first candidate, from 0.
        size: size of the result: input, put back into the input image, or model, that of the
            model's images.
        vae: autoencoder of a latent model: a folder, or hf:owner/repo.
        out: a .png file.
        device: where to compute: auto, cpu, cuda, cuda:1, mps, ...
        dtype: precision of the weights: float32, bfloat16 or float16.
    """

    model: str = options.DEFAULT_MODEL
    style: str | None = None
    guidance: float | None = None
    number: int = 1
    seed: int = 0
    size: Literal["input", "model"] = "input"
    vae: str | None = None
    out: Path = Path("edited.png")
    device: str = "auto"
    dtype: str = "float32"


def execute(
    context: typer.Context,
    task: Callable[..., Edited],
    image: Path,
    prompt: str,
    config: EditOptions,
    **facts: object,
) -> None:
    """Run ``task`` on an image, and write the result: an image, or a grid that begins with the
    source.

    ``facts`` go into the metadata of the file, along with the options.
    """
    n, out = config.number, config.out
    if not 1 <= n <= MOST:
        raise ValueError(f"-n {n}: must be from 1 to {MOST}")
    options.reserve(context, out, "an image", ".png")
    (source,) = read_images("image", image)
    if source.width * source.height * (n + 1) > MOST_PIXELS:
        raise ValueError(
            f"-n {n}: {n} images of {source.width} x {source.height} are over {MOST_PIXELS} pixels "
            "in a file; lower -n"
        )
    where, dtype = options.resolve_device(config.device), options.resolve_dtype(config.dtype)
    model = load(config.model, device=where, dtype=dtype, vae=config.vae)
    shared = {"guidance": config.guidance, "seed": config.seed, "style": config.style}
    made = task(model, source, prompt=[prompt] * n, size=config.size, **shared)
    whole = made[0]
    if n > 1:
        (before,) = img2img(model, source, "", strength=0.0, size=config.size)
        whole = image_grid([before.convert(whole.mode), *made])
    about = {
        "version": f"flowturbo {__version__}", "source": image.name, "size": config.size, **facts,
    }  # fmt: skip
    if made.evaluations:
        about |= {"model": f"{model.name} {model.fingerprint}", "prompt": prompt, **shared}
        about["guidance"] = default_guidance(model, config.guidance)
    save_png(whole, out, {k: str(v) for k, v in about.items() if v is not None})
    count = f"{n} image{'s' * (n > 1)}"
    say(f"{count}, {made.evaluations} evaluations ({made.passes} passes) each -> {out}")
