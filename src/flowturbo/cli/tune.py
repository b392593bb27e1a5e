"""`flowturbo tune`: a plan fitted to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowturbo.cli.config import options_of
from flowturbo.cli.options import (
    Device,
    check_folder,
    reserve,
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
from flowturbo.plan import Plan
from flowturbo.refiner.checkpoint import load_refiner
from flowturbo.tuning.tune import TuneConfig, tune

if TYPE_CHECKING:
    from flowturbo.integrations.diffusers.field import PipelineField

__all__ = ["run"]


@options_of(TuneConfig)
def run(
    context: typer.Context,
    config: TuneConfig,
    model: ModelOrPipeline = None,
    pipeline: PipelineName = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="With --pipeline: file of prompts, one per line."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Output file, .json; with --pipeline, a folder."),
    ] = Path("plan.json"),
    refiner: Annotated[
        str | None, typer.Option("--refiner", help="Bundled name, or a folder with a refiner.")
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            help="Folder for intermediate results; an interrupted search in it is resumed.",
        ),
    ] = None,
    negative: Negative = None,
    size: Size = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence",
            help="With --pipeline: licence of the plan and its refiner, on the model card; by "
            "default apache-2.0.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: PipelineDtype = None,
    offload: Offload = False,
) -> None:
    """Fit a plan to a model, or to a diffusers pipeline and prompts, without data.

    Example: flowturbo tune --model digits --nfe 6 -o digits-6.json
    """
    check_source(
        model, pipeline, prompts=prompts, negative=negative, size=size,
        licence=licence, dtype=dtype, offload=offload,
    )  # fmt: skip
    save: Callable[[Plan, Any], None]
    field: Model | PipelineField
    if pipeline is not None:
        if out.suffix.lower() == ".json":
            raise ValueError(f"-o {out}: the plan of a pipeline is written to a folder; -o FOLDER")
        check_folder(out)
        field = pipeline_field(
            pipeline, prompts, guidance=config.guidance, negative=negative, size=size,
            device=device, dtype=dtype, offload=offload,
        )  # fmt: skip
        config = replace(config, guidance=field.guidance)
        save = partial(_save_folder, out, licence or "apache-2.0")
    else:
        reserve(context, out, "a plan", ".json")
        field = load(str(model), device=resolve_device(device))
        save = lambda plan, refiner: plan.save(out)
    loaded = None if refiner is None else load_refiner(refiner, field)
    plan = tune(field, config, refiner=loaded, cache_dir=cache_dir, report=lambda p: say(str(p)))
    save(plan, loaded)
    say(repr(plan))
    for note in plan.info["notes"]:
        say(note)
    what = "of the round trip" if "inverts" in plan.info else "to the reference solution"
    for name, error in (
        ("this plan", plan.info["error"]),
        (plan.info["baseline"]["name"], plan.info["baseline"]),
    ):
        figures = f"error {error['rmse']:.4f}, median {error['median']:.4f}"
        say(f"{name}: {figures}, {what}")
    say(f"-> {out}")


def _save_folder(out: Path, licence: str, plan: Plan, refiner: Any) -> None:
    from flowturbo.integrations.diffusers.folder import save_folder

    save_folder(out, plan, refiner, licence=licence)
