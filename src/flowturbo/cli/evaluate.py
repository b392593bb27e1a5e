"""`flowturbo evaluate`: how close the images of a plan are to the reference solution."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowturbo.cli import options
from flowturbo.cli.config import options_of
from flowturbo.cli.output import say, show
from flowturbo.evaluate.evaluation import EvaluateConfig, evaluate
from flowturbo.evaluate.inputs import NUM_IMAGES
from flowturbo.evaluate.records import read_evaluation
from flowturbo.evaluate.report import check_alike, evaluations
from flowturbo.files import write_json
from flowturbo.models.model import Model
from flowturbo.models.zoo import load
from flowturbo.progress import bars
from flowturbo.types import JsonObject

__all__ = ["run"]


@options_of(EvaluateConfig)
def run(
    context: typer.Context,
    config: EvaluateConfig,
    model: options.ModelName = options.DEFAULT_MODEL,
    plan: options.PlanName = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts, one per line; by default sampled from the card."),
    ] = None,
    vae: options.Vae = None,
    refiner: options.RefinerName = None,
    real_images: Annotated[
        Path | None,
        typer.Option(help="Real images: a folder, or an .npz file of images or features."),
    ] = None,
    features: Annotated[
        bool, typer.Option(help="Compare features of images; otherwise states and cost only.")
    ] = True,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for generated images; an interrupted evaluation is resumed."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the record, .json.")
    ] = None,
    compare_with: Annotated[
        list[Path] | None,
        typer.Option(help="Record of another evaluation to show in the table; may be repeated."),
    ] = None,
    device: options.Device = "auto",
    dtype: options.DtypeName = "float32",
) -> None:
    """Compare the images of a plan with the reference solution of the same noise samples.

    Example: flowturbo evaluate --model digits --plan AB2:6 -n 500 --cache-dir runs/digits -o a.json
    """
    if out is not None:
        options.reserve(context, out, "a record", ".json")
    table = options.read_plan(plan)
    records = [_record(path) for path in compare_with or []]
    field = load(
        model, device=options.resolve_device(device), dtype=options.resolve_dtype(dtype), vae=vae
    )
    (chosen,), scale, light = options.resolve_sampling(field, [table], config.guidance, refiner)
    check_alike([_known(field, config, scale), *(r["conditions"] for r in records)])
    with bars() as report:
        record = evaluate(
            field,
            chosen,
            config=config,
            prompts=None if prompts is None else options.read_lines(prompts),
            refiner=light,
            real_images=real_images,
            features="effnet" if features else None,
            cache_dir=cache_dir,
            report=report,
        )
    if out is not None:
        write_json(out, record)
    try:
        shown = evaluations([record, *records])
    except ValueError:  # of other prompts, features or real images
        for part in evaluations([record]):
            show(part)
        raise
    for part in shown:
        show(part)
    if out is not None:
        say(f"-> {out}")


def _known(model: Model, config: EvaluateConfig, guidance: float) -> JsonObject:
    """The conditions that are known before anything is generated."""
    return {
        "fingerprint": model.fingerprint, "dtype": str(model.dtype),
        "images": config.num_images or NUM_IMAGES, "guidance": guidance, "seed": config.seed,
        "steps": config.steps,
    }  # fmt: skip


def _record(path: Path) -> JsonObject:
    try:
        return read_evaluation(path)
    except ValueError as e:
        raise ValueError(f"--compare-with {e}") from e
