"""`flowturbo train-refiner`: a light network that stands in for a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowturbo.cli.config import options_of
from flowturbo.cli.options import (
    Device,
    check_folder,
    read_lines,
    read_plan,
    resolve_device,
)
from flowturbo.cli.output import say
from flowturbo.cli.pipelines import (
    ModelOrPipeline,
    Negative,
    Offload,
    PipelineDtype,
    PipelineName,
    Size,
    check_source,
    pipeline_field,
)
from flowturbo.models.model import Model
from flowturbo.models.zoo import load
from flowturbo.progress import bars
from flowturbo.training import (
    PaperRefinerConfig,
    RefinerConfig,
    as_states,
    load_data,
    train_paper_refiner,
    train_refiner,
)
from flowturbo.types import JsonObject

if TYPE_CHECKING:
    from flowturbo.integrations.diffusers.field import PipelineField

__all__ = ["run"]

# options of training on data: fields of its configuration, and arguments
PAPER = ("iterations", "batch", "optimizer", "lr", "ema", "seed", "bf16", "compile", "save_every")
SHAPE = ("block", "width")


def _option(name: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{name}", help=text)  # type: ignore[no-any-return]


@options_of(RefinerConfig)
def run(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Output folder, may be the model's; an existing run is resumed."
        ),
    ],
    config: RefinerConfig,
    model: ModelOrPipeline = None,
    pipeline: PipelineName = None,
    plan: Annotated[
        str | None,
        _option(
            "plan", "Also train on the states that this plan visits: AB2:FFRFRFRF, or a .json."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        _option("prompts", "File of prompts, one per line, for a text model or a pipeline."),
    ] = None,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="Train the paper's refiner on --data; defaults are then the paper's."
        ),
    ] = False,
    data: Annotated[
        Path | None, _option("data", "With --paper: an .npz file or a folder of images.")
    ] = None,
    vae: Annotated[
        str | None,
        _option("vae", "With --paper: autoencoder to encode the images, instead of the card's."),
    ] = None,
    negative: Negative = None,
    size: Size = None,
    device: Device = "auto",
    dtype: PipelineDtype = None,
    offload: Offload = False,
) -> None:
    """Train a velocity refiner from the model alone, or the paper's refiner on data.

    Example: flowturbo train-refiner --model digits --guidance 1-4 --minutes 10 -o runs/refiner
    """
    check_source(
        model, pipeline, negative=negative, size=size, dtype=dtype,
        offload=offload,
    )  # fmt: skip
    if paper and pipeline is not None:
        raise ValueError("--paper: trains a refiner of a model on images; leave --pipeline out")
    if paper != (data is not None):
        raise ValueError("--paper and --data go together: the paper's refiner is trained on data")
    if vae is not None and not paper:
        raise ValueError(f"--vae {vae}: only training on data encodes images; leave --vae out")
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {k: context.params[k] for k, s in sources.items() if s and s.name == "COMMANDLINE"}
    if paper:
        others = {"model", "out", "paper", "data", "vae", "device"}
        for name in given.keys() - others - {*PAPER, *SHAPE}:
            raise ValueError(f"--{name.replace('_', '-')}: not an option of the paper's refiner")
    check_folder(out)
    pattern = read_plan(plan)
    measured: JsonObject = {}
    teacher: Model | PipelineField
    if pipeline is not None:
        teacher = pipeline_field(
            pipeline, prompts, guidance=config.guidance if "guidance" in given else None,
            negative=negative, size=size, device=device, dtype=dtype,
            offload=offload,
        )  # fmt: skip
        kind = config.kind if "kind" in given else "conv"  # no block of it can be borrowed
        config, cond = replace(config, kind=kind, guidance=teacher.guidance), None
    else:
        lines = read_lines(prompts) if prompts else []
        teacher = load(str(model), device=resolve_device(device), vae=vae)
        cond = teacher.condition(lines) if prompts else None
    if data is not None:
        assert isinstance(teacher, Model)
        _paper(teacher, data, out, given)
    else:
        with bars() as report:
            refiner = train_refiner(
                teacher, config, cond=cond, folder=out, plan=pattern, report=report
            )
        measured = refiner.card["measured"]
    for what, errors in measured.items():
        say(f"{what}: {', '.join(f'{name} {error}' for name, error in errors.items())}")
    say(f"refiner of {teacher.name} -> {out}")


def _paper(teacher: Model, data: Path, out: Path, given: JsonObject) -> None:
    """Train the paper's refiner with the options that were given."""
    known = teacher.conditioning.tokenizer if teacher.conditioning else None
    images = load_data(data, teacher.image_shape[1], known)
    say(images.describe())
    states = as_states(images, teacher.codec, out / "refiner-run" / "latents")
    fields = {name: given[name] for name in PAPER if name in given}
    if "iterations" in fields:
        fields["steps"] = fields.pop("iterations")
    shape = {name: given[name] for name in SHAPE if name in given}
    with bars() as report:
        train_paper_refiner(
            teacher, states, out, PaperRefinerConfig(**fields), **shape, report=report
        )
