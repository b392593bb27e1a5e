"""`flowturbo train`: a flow model on one's own images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from flowturbo.cli.options import check_folder, resolve_device
from flowturbo.cli.output import say
from flowturbo.models.codec import Codec, Pixels, latent_codec
from flowturbo.models.sit import SiTConfig

__all__ = ["run"]


def _option(name: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{name}", help=text)  # type: ignore[no-any-return]


def run(
    data: Annotated[Path, _option("data", "An .npz or a folder of images with labels, captions.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder; resumes what is there.")],
    name: Annotated[str | None, _option("name", "On the card; the folder's by default.")] = None,
    licence: Annotated[str, _option("licence", "Of the data, for the card.")] = "not stated",
    size: Annotated[int, _option("size", "Side of the images.")] = 32,
    vae: Annotated[
        str | None, _option("vae", "Train on latents of this autoencoder: a folder, hf:owner/repo.")
    ] = None,
    patch: Annotated[
        int | None, _option("patch", "Side of a patch; by default 4, of latents 2.")
    ] = None,
    width: Annotated[int, _option("width", "Channels of a token.")] = 192,
    depth: Annotated[int, _option("depth", "Blocks.")] = 6,
    heads: Annotated[int, _option("heads", "Attention heads.")] = 6,
    steps: Annotated[int, _option("steps", "Optimizer steps in all.")] = 20_000,
    batch: Annotated[int, _option("batch", "Images a step.")] = 128,
    lr: Annotated[float, _option("lr", "Peak learning rate.")] = 1e-3,
    schedule: Annotated[str, _option("schedule", "constant, cosine or trapezoid.")] = "trapezoid",
    optimizer: Annotated[str, _option("optimizer", "adamw or muon.")] = "adamw",
    ema: Annotated[float, _option("ema", "Decay of the averaged weights.")] = 0.999,
    clip: Annotated[float, _option("clip", "Largest norm of the gradient.")] = 1.0,
    times: Annotated[str, _option("times", "logit-normal or uniform.")] = "logit-normal",
    dropout: Annotated[float, _option("dropout", "Share of conditions dropped.")] = 0.1,
    seed: Annotated[int, _option("seed", "Of everything random.")] = 0,
    bf16: Annotated[bool, typer.Option(help="Run the network in bfloat16.")] = True,
    compile: Annotated[bool, typer.Option(help="Compile the network.")] = True,
    save_every: Annotated[int, _option("save-every", "Steps between checkpoints.")] = 500,
    preview_every: Annotated[
        int, _option("preview-every", "Steps between preview sheets, 0 for none.")
    ] = 1000,
) -> None:
    """Train a SiT, resuming where an interrupted run stopped.

    Example: flowturbo train --data photos/ --out runs/photos --size 32 --steps 20000
    """
    from flowturbo.training import TrainConfig, as_states, load_data, train

    check_folder(out)
    config = TrainConfig(
        steps=steps,
        batch=batch,
        lr=lr,
        schedule=schedule,  # type: ignore[arg-type]
        optimizer=optimizer,  # type: ignore[arg-type]
        ema=ema,
        clip=clip,
        times=times,  # type: ignore[arg-type]
        dropout=dropout,
        seed=seed,
        bf16=bf16,
        compile=compile,
        save_every=save_every,
        preview_every=preview_every,
    )
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(data)):
        raise ValueError(
            f"--out {out}: in the data, which its pictures would become part of; choose another"
        )
    codec: Codec = Pixels()
    if vae is not None:
        codec = latent_codec(vae, home=out, device=resolve_device("auto"))
        codec.state_shape((codec.image_shape((1, 1, 1))[0], size, size))
    images = load_data(data, size)
    say(images.describe())
    states = as_states(images, codec, out / "latents")
    condition = images.condition or {}
    tokenizer = condition.get("tokenizer")
    architecture = SiTConfig(
        size=states.shape[1],
        channels=states.shape[0],
        patch=patch if patch is not None else 4 if vae is None else 2,
        width=width,
        depth=depth,
        heads=heads,
        classes=len(condition["labels"]) if condition.get("kind") == "class" else 0,
        vocabulary=len(tokenizer["vocabulary"]) + 1 if tokenizer else 0,
        text_length=tokenizer["length"] if tokenizer else 16,
    )
    card = {
        "name": name or out.resolve().name,
        "data": {"name": data.name, "images": len(images), "licence": licence},
        "defaults": {"guidance": 2.0 if condition else 1.0, "plan": "AB2:12@1.6"},
    }
    with tqdm(total=steps, desc="training", disable=None) as bar:

        def report(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.4f}")

        train(architecture, states, out, config, card=card, report=report)
    say(f"{steps} steps, {len(images)} images -> {out}")
