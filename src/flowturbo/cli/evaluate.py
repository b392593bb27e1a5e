"""`flowturbo evaluate`: how near a plan's pictures are to those the model means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flowturbo.cli.options import (
    DEFAULT_MODEL,
    Device,
    DtypeName,
    GuidanceScale,
    ModelName,
    PlanName,
    RefinerName,
    Seed,
    Vae,
    read_lines,
    read_plan,
    reserve,
    resolve_device,
    resolve_dtype,
    resolve_sampling,
)
from flowturbo.cli.output import say, show
from flowturbo.evaluate.evaluation import evaluate
from flowturbo.evaluate.records import read_evaluation
from flowturbo.evaluate.report import check_alike, evaluations
from flowturbo.files import write_json
from flowturbo.models.zoo import load

__all__ = ["run"]


def run(
    context: typer.Context,
    model: ModelName = DEFAULT_MODEL,
    plan: PlanName = None,
    pictures: Annotated[int, typer.Option("-n", "--number", help="Pictures to draw.")] = 5000,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="A file, one a line; by default drawn from the card."),
    ] = None,
    guidance: GuidanceScale = None,
    vae: Vae = None,
    refiner: RefinerName = None,
    real_images: Annotated[
        Path | None,
        typer.Option(
            "--real-images", help="Real pictures: a folder, or an .npz of images or features."
        ),
    ] = None,
    features: Annotated[
        bool, typer.Option(help="Compare features; otherwise states and cost alone.")
    ] = True,
    fid: Annotated[
        bool, typer.Option("--fid", help="Official FID, sFID, IS, precision, recall too.")
    ] = False,
    agreement: Annotated[
        int, typer.Option("--agreement", help="Prompts to compare for agreement; 0 for none.")
    ] = 200,
    steps: Annotated[int, typer.Option("--steps", help="Of the converged sampler.")] = 64,
    resamples: Annotated[
        int, typer.Option("--resamples", help="Of the bootstrap of Frechet distances.")
    ] = 200,
    repeats: Annotated[int, typer.Option("--repeats", help="Turns to measure time in.")] = 10,
    batch: Annotated[int, typer.Option("--batch", help="Pictures drawn at once.")] = 64,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            help="Folder for generated images; an interrupted evaluation in it is resumed.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The record, a .json file.")
    ] = None,
    compare_with: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare-with",
            help="Record of another evaluation to show in the table; may be repeated.",
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DtypeName = "float32",
) -> None:
    """Measure a plan's pictures beside the converged sampler's of the same noises.

    Example: flowturbo evaluate --model digits --plan AB2:6 -n 500 --cache-dir runs/digits -o a.json
    """
    if out is not None:
        reserve(context, out, "a record", ".json")
    table = read_plan(plan)
    records = [_record(path) for path in compare_with or []]
    field = load(model, device=resolve_device(device), dtype=resolve_dtype(dtype), vae=vae)
    (chosen,), scale, light = resolve_sampling(field, [table], guidance, refiner)
    about = {
        "fingerprint": field.fingerprint, "dtype": str(field.dtype), "pictures": pictures,
        "guidance": scale, "seed": seed, "steps": steps,
    }  # fmt: skip
    check_alike([about, *(r["conditions"] for r in records)])
    record = evaluate(
        field,
        chosen,
        pictures=pictures,
        prompts=None if prompts is None else read_lines(prompts),
        guidance=guidance,
        refiner=light,
        real_images=real_images,
        features="effnet" if features else None,
        fid=fid,
        agreement=agreement,
        steps=steps,
        resamples=resamples,
        repeats=repeats,
        batch=batch,
        seed=seed,
        cache_dir=cache_dir,
    )
    if out is not None:
        write_json(out, record)
    try:
        shown = evaluations([record, *records])
    except ValueError:  # by prompts, features or what they were measured against
        show(evaluations([record]))
        raise
    show(shown)
    if out is not None:
        say(f"-> {out}")


def _record(path: Path) -> dict[str, Any]:
    try:
        return read_evaluation(path)
    except ValueError as e:
        raise ValueError(f"--compare-with {e}") from e
