"""`flowturbo convert`: a SiT checkpoint of others into a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli.options import resolve_dtype
from flowturbo.files import printable
from flowturbo.models.checkpoint import convert
from flowturbo.models.sit import SiTConfig
from flowturbo.models.zoo import load
from flowturbo.refiner import PaperRefiner, save_refiner

__all__ = ["run"]


def run(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt or .safetensors of official names.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder to write.")],
    architecture: Annotated[
        str, typer.Option("--architecture", "-a", help="S, B, L or XL, '/' and 2, 4 or 8.")
    ] = "XL/2",
    size: Annotated[int, typer.Option("--size", help="Side of the latent.")] = 32,
    classes: Annotated[int, typer.Option("--classes", help="Number of classes.")] = 1000,
    refiner: Annotated[
        bool, typer.Option("--refiner", help="The checkpoint is the paper's refiner.")
    ] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights written.")] = "float16",
) -> None:
    """Turn an official SiT checkpoint into a model folder, without running code from it.

    What does not fit the options is refused with those that do, such as --size 64.
    With --refiner, put the refiner into the folder of its model.

    Example: flowturbo convert SiT-XL-2-256x256.pt -a XL/2 -o sit-xl
    """
    config = SiTConfig.named(architecture, size=size, classes=classes)
    if refiner:
        made = PaperRefiner.from_official(checkpoint, config)
        made.card = {"source": printable(checkpoint.name)}
        save_refiner(out, made, load(out), dtype=resolve_dtype(dtype))
        print(f"{checkpoint} -> {out}")
        return
    card = {
        "name": printable(out.name),
        "description": f"SiT-{architecture.upper().removeprefix('SIT-')}, converted.",
        "path": "linear",
        "codec": {"kind": "latent", "autoencoder": "stabilityai/sd-vae-ft-ema", "scale": 0.18215},
        "condition": {"kind": "class", "labels": [str(i) for i in range(classes)]},
        "source": printable(checkpoint.name),
    }
    convert(checkpoint, out, config, card, dtype=resolve_dtype(dtype))
    print(f"{checkpoint} -> {out}")
