"""`flowturbo convert`: an official SiT checkpoint to a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli.options import check_folder, resolve_dtype
from flowturbo.cli.output import say
from flowturbo.files import printable
from flowturbo.models.checkpoint import convert
from flowturbo.models.codec_entry import latent_entry
from flowturbo.models.conditioning import ClassCondition
from flowturbo.models.sit import SiTConfig
from flowturbo.models.zoo import load
from flowturbo.refiner import PaperRefiner, save_refiner
from flowturbo.types import JsonObject

__all__ = ["run"]

OFFICIAL = "hf:stabilityai/sd-vae-ft-ema"  # of the checkpoints of SiT and DiT; not fetched here


def run(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .pt or .safetensors file with the official parameter names.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    architecture: Annotated[
        str, typer.Option("--architecture", "-a", help="Size and patch, S/2 to XL/8.")
    ] = "XL/2",
    size: Annotated[int, typer.Option("--size", help="Side length of the latents.")] = 32,
    classes: Annotated[int, typer.Option("--classes", help="Number of classes.")] = 1000,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae", help=f"Autoencoder for the card: a folder, or hf:owner/repo [{OFFICIAL}]."
        ),
    ] = None,
    refiner: Annotated[
        bool, typer.Option("--refiner", help="Convert a checkpoint of the paper's refiner.")
    ] = False,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Precision of the weights written.")
    ] = "float16",
) -> None:
    """Convert an official SiT checkpoint to a model folder, without running code from it.

    If the options do not fit the checkpoint, the error message names those that do (--size 64).
    With --refiner, -o is the folder of the refiner's model.

    Example: flowturbo convert SiT-XL-2-256x256.pt -a XL/2 --vae sd-vae-ft-ema -o sit-xl
    """
    check_folder(out)
    config = SiTConfig.named(architecture, size=size, classes=classes)
    if refiner:
        if vae is not None:
            raise ValueError(f"--vae {vae}: belongs to the model, not to its refiner; leave it out")
        made = PaperRefiner.from_official(checkpoint, config)
        made.card = {"source": printable(checkpoint.name)}
        save_refiner(out, made, load(out), dtype=resolve_dtype(dtype))
        say(f"{checkpoint} -> {out}")
        return
    codec: JsonObject = {"kind": "latent", "autoencoder": OFFICIAL, "channels": 4, "factor": 8}
    if vae is not None:
        codec = latent_entry(vae, out)
        if codec["channels"] != config.channels:
            raise ValueError(
                f"--vae {vae}: decodes latents of {codec['channels']} channels, and the model "
                f"generates {config.channels}; take the autoencoder that it was trained with"
            )
    card = {
        "name": printable(out.name),
        "description": f"SiT-{architecture.upper().removeprefix('SIT-')}, converted.",
        "path": "linear",
        "codec": codec,
        "condition": ClassCondition.of([str(i) for i in range(classes)]).entry,
        "source": printable(checkpoint.name),
    }
    convert(checkpoint, out, config, card, dtype=resolve_dtype(dtype))
    say(f"{checkpoint} -> {out}")
