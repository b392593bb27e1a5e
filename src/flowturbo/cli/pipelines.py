"""Options of the commands that take a diffusers pipeline, and how they load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from flowturbo.cli.options import read_lines, resolve_device, resolve_dtype
from flowturbo.cli.output import say
from flowturbo.messages import reason
from flowturbo.models.hub import repository
from flowturbo.types import GuidanceRange, JsonObject, Pipeline

if TYPE_CHECKING:
    from flowturbo.integrations.diffusers.field import PipelineField

__all__ = [
    "ModelOrPipeline",
    "Negative",
    "Offload",
    "PipelineDtype",
    "PipelineName",
    "Size",
    "check_source",
    "pipeline_field",
]

ModelOrPipeline = Annotated[
    str | None, typer.Option("--model", "-m", help="A bundled name, a folder, or hf:owner/repo.")
]
PipelineName = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        help="In place of a model, a diffusers pipeline: a folder, or hf:owner/repo.",
    ),
]
Negative = Annotated[
    str | None, typer.Option("--negative", help="With --pipeline: a prompt to guide away from.")
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        help="With --pipeline: image size in pixels, 1024 or 1344x768 (width first); by default "
        "the pipeline's.",
    ),
]
PipelineDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="With --pipeline: precision, float32, bfloat16 or float16; by default bfloat16 on a "
        "GPU, and float32 on a CPU.",
    ),
]
Offload = Annotated[
    bool,
    typer.Option("--offload", help="With --pipeline: keep only the running part on the GPU."),
]


def check_source(model: str | None, pipeline: str | None, **of_pipelines: object) -> None:
    """Refuse a model and a pipeline, neither, and options of pipelines without one."""
    if (model is None) == (pipeline is None):
        raise ValueError(
            f"--model {model}, --pipeline {pipeline}: give one of them"
            if model is not None
            else "give --model, or --pipeline with --prompts"
        )
    if pipeline is None:
        for name, value in of_pipelines.items():
            if value not in (None, False):
                raise ValueError(f"--{name}: goes with --pipeline; leave it out")


def pipeline_field(
    name: str,
    prompts: Path | None,
    *,
    guidance: GuidanceRange | None,
    negative: str | None,
    size: str | None,
    device: str,
    dtype: str | None,
    offload: bool,
) -> PipelineField:
    """The field of the pipeline ``name`` for the prompts in a file.

    Raises:
        ValueError: if there is no file of prompts, or no such pipeline.
        ImportError: if diffusers is missing.
    """
    if prompts is None:
        raise ValueError(f"--pipeline {name}: needs --prompts FILE, one prompt per line")
    from flowturbo.integrations.diffusers.field import as_field, sides_of

    lines, sides = read_lines(prompts, every=True), sides_of(size)
    where = resolve_device(device)
    if offload and where.type == "cpu":
        raise ValueError(f"--offload: needs a GPU, and --device {device} is the CPU")
    usual = torch.float32 if where.type == "cpu" else torch.bfloat16
    precision = usual if dtype is None else resolve_dtype(dtype)
    pipe = _load(name, precision)
    if offload:
        pipe.enable_model_cpu_offload(device=where)
    else:
        pipe.to(where)
    say(f"encoding {len(lines)} prompts")
    options: JsonObject = {"guidance": guidance, "negative": negative, **sides}
    return as_field(pipe, lines, **options)


def _load(name: str, dtype: torch.dtype) -> Pipeline:
    """The pipeline in a folder, or on the hub."""
    from flowturbo.integrations.diffusers._shim import DTYPE, DiffusionPipeline

    if name.startswith("hf:"):
        source, revision = repository(name, "--pipeline")
    elif (Path(name).expanduser() / "model_index.json").is_file():
        source, revision = str(Path(name).expanduser()), None
    else:
        raise ValueError(
            f"--pipeline {name}: no folder with a model_index.json; on the hub it is written "
            "hf:owner/repo"
        )
    try:
        return DiffusionPipeline.from_pretrained(source, revision=revision, **{DTYPE: dtype})
    except (OSError, ValueError, AttributeError) as e:
        raise ValueError(f"--pipeline {name}: cannot be loaded ({reason(e)})") from e
