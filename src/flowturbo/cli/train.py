"""`flowturbo train`: train a flow model on your own images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli.config import options_of
from flowturbo.cli.options import check_folder, resolve_device
from flowturbo.cli.output import say
from flowturbo.models.codec import Codec, Pixels
from flowturbo.models.codec_entry import latent_codec
from flowturbo.models.conditioning import conditioning_of
from flowturbo.models.sit import SiTConfig
from flowturbo.progress import bars
from flowturbo.training import TrainConfig, as_states, load_data, train

__all__ = ["run"]


def _option(name: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{name}", help=text)  # type: ignore[no-any-return]


@options_of(TrainConfig)
def run(
    data: Annotated[
        Path, _option("data", "An .npz file, or a folder of images with labels or captions.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Output folder; an existing run in it is resumed.")
    ],
    config: TrainConfig,
    name: Annotated[
        str | None, _option("name", "Name on the card; by default that of the output folder.")
    ] = None,
    licence: Annotated[
        str, _option("licence", "Licence of the data, for the card.")
    ] = "not stated",
    size: Annotated[int, _option("size", "Height and width of the images.")] = 32,
    vae: Annotated[
        str | None,
        _option("vae", "Train on latents of this autoencoder: a folder, or hf:owner/repo."),
    ] = None,
    patch: Annotated[
        int | None, _option("patch", "Side length of a patch; by default 4, or 2 for latents.")
    ] = None,
    width: Annotated[int, _option("width", "Width of the network: channels of a token.")] = 192,
    depth: Annotated[int, _option("depth", "Number of transformer blocks.")] = 6,
    heads: Annotated[int, _option("heads", "Number of attention heads.")] = 6,
    tracker: Annotated[
        list[str] | None,
        _option("tracker", "Experiment tracker: tensorboard, wandb, ...; repeat for several."),
    ] = None,
) -> None:
    """Train a SiT, or resume an interrupted run.

    Example: flowturbo train --data photos/ --out runs/photos --size 32 --steps 20000
    """
    check_folder(out)
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(data)):
        raise ValueError(
            f"--out {out}: is in the data folder, so its images would become training data; "
            "choose another"
        )
    codec: Codec = Pixels()
    if vae is not None:
        codec = latent_codec(vae, home=out, device=resolve_device("auto"))
        codec.state_shape((codec.image_shape((1, 1, 1))[0], size, size))
    images = load_data(data, size)
    say(images.describe())
    states = as_states(images, codec, out / "latents")
    about = conditioning_of(images.condition)
    architecture = SiTConfig(
        size=states.shape[1],
        channels=states.shape[0],
        patch=patch if patch is not None else 4 if vae is None else 2,
        width=width,
        depth=depth,
        heads=heads,
        **(about.network_options if about else {}),
    )
    card = {
        "name": name or out.resolve().name,
        "data": {"name": data.name, "images": len(images), "licence": licence},
        "defaults": {"guidance": 2.0 if about else 1.0, "plan": "AB2:12@1.6"},
    }
    with bars() as report:
        train(architecture, states, out, config, card=card, trackers=tracker or (), report=report)
    say(f"{config.steps} steps, {len(images)} images -> {out}")
