"""What the commands that edit an image share: their options, and the file they write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer
from PIL import Image

from flowturbo._version import __version__
from flowturbo.cli import options
from flowturbo.cli.output import say
from flowturbo.images import image_grid, save_png
from flowturbo.models.model import Model
from flowturbo.models.zoo import load
from flowturbo.refiner.resolve import default_guidance
from flowturbo.tasks.editing import img2img
from flowturbo.tasks.sources import Edited, Size, read_images

__all__ = [
    "DEFAULT_OUT",
    "Feather",
    "ImageFile",
    "Notation",
    "Number",
    "Out",
    "ResultSize",
    "Style",
    "load_model",
    "write",
]

DEFAULT_OUT = Path("edited.png")
ImageFile = Annotated[Path, typer.Argument(help="The image: a file of any size.")]
Notation = Annotated[str, typer.Option("--plan", help="Notation of a solver, such as AB2:8@1.6.")]
Number = Annotated[
    int, typer.Option("-n", "--number", help="Candidates; several make a grid, the source first.")
]
ResultSize = Annotated[
    str,
    typer.Option(
        "--size", help="input: in its place in the image; model: the size of the model's images."
    ),
]
Style = Annotated[str | None, typer.Option("--style", help="A style of the model.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="A .png file.")]
Feather = Annotated[
    float, typer.Option("--feather", help="Pixels over which the edge of the mask is blurred.")
]
MOST = 64  # candidates
MOST_PIXELS = 500_000_000  # in one file, as of generate


def load_model(
    context: typer.Context,
    image: Path,
    name: str,
    vae: str | None,
    device: str,
    dtype: str,
    out: Path,
    n: int,
) -> Model:
    """The model of a command, after the checks that need none."""
    if not 1 <= n <= MOST:
        raise ValueError(f"-n {n}: must be from 1 to {MOST}")
    options.reserve(context, out, "an image", ".png")
    (source,) = read_images("image", image)
    if source.width * source.height * (n + 1) > MOST_PIXELS:
        raise ValueError(
            f"-n {n}: {n} images of {source.width} x {source.height} are over {MOST_PIXELS} pixels "
            "in a file; lower -n"
        )
    return load(
        name, device=options.resolve_device(device), dtype=options.resolve_dtype(dtype), vae=vae
    )


def write(
    out: Path,
    image: Path,
    made: Edited,
    model: Model,
    *,
    size: str,
    guidance: float | None,
    seed: int,
    **facts: object,
) -> None:
    """Write the edited image or a grid of the source and all candidates, and say what it took."""
    images: Sequence[Image.Image] = made
    if len(made) > 1:
        (source,) = img2img(model, image, "", strength=0.0, size=cast(Size, size))
        images = [image_grid([source.convert(made[0].mode), *made])]
    about = {"version": f"flowturbo {__version__}", "source": image.name, "size": size, **facts}
    if made.evaluations:
        about |= {
            "model": f"{model.name} {model.fingerprint}",
            "guidance": default_guidance(model, guidance),
            "seed": seed,
        }
    save_png(images[0], out, {k: str(v) for k, v in about.items() if v is not None})
    count = f"{len(made)} image{'s' * (len(made) > 1)}"
    say(f"{count}, {made.evaluations} evaluations ({made.passes} passes) each -> {out}")
