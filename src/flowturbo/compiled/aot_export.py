"""Samplers compiled ahead of time into a file (`flowturbo.compiled.aot_archive`)."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo._version import __version__
from flowturbo.compiled.aot_archive import FORMAT, MANIFEST, archive_digest
from flowturbo.compiled.backend import inductor_options
from flowturbo.compiled.function import Function
from flowturbo.compiled.machine import this_machine
from flowturbo.compiled.prepare import prepare
from flowturbo.compiled.shapes import Shapes
from flowturbo.compiled.spec import CompileSpec
from flowturbo.config import configured
from flowturbo.field import Field
from flowturbo.files import atomic_write
from flowturbo.plan import Plan
from flowturbo.progress import Progress, Report
from flowturbo.refiner.binding import Refiner
from flowturbo.types import Condition, JsonObject

__all__ = ["export"]


@configured(CompileSpec)
def export(
    path: str | Path,
    model: Field,
    plan: Plan | str,
    refiner: Refiner | None = None,
    *,
    config: CompileSpec,
    cond: Condition = None,
    report: Report | None = None,
) -> JsonObject:
    """Compile the sampling of a plan ahead of time, for this kind of machine.

    The arguments after ``path`` are those of `flowturbo.compile`, and so are the fields of
    `CompileSpec` as keywords. The condition must be a tensor or None, and the null condition the
    same for all; it goes into the manifest.

    Returns:
        The manifest.

    Raises:
        ValueError: as `flowturbo.compile`, and if the condition cannot go into a file.
        OSError: if the file cannot be written.
    """
    path = checks.path("path", path)
    if path.suffix != ".pt2":
        raise ValueError(f"path={str(path)!r}: a compiled sampler is written as .pt2")
    function, shapes, null_of = prepare(model, plan, config, refiner, cond)
    if not (shapes.cond is None or isinstance(shapes.cond, Tensor)):
        raise ValueError("cond: only a tensor, or None, can be exported; use flowturbo.compile")
    options = inductor_options(config.options) | {"aot_inductor.package": True}
    null = None if shapes.guidance is None else null_of(shapes.cond)
    from torch._inductor import aot_compile

    manifest = _manifest(function, shapes, null, model)
    files: JsonObject = {}
    with torch.no_grad(), warnings.catch_warnings(), atomic_write(path) as temporary:
        warnings.simplefilter("ignore", FutureWarning)  # of torch, at itself
        for done, size in enumerate(shapes.batch, 1):
            inputs = shapes.example(size, null)
            program = torch.export.export(function, inputs, strict=False)
            files[f"rows{size}"] = aot_compile(_module(program), inputs, options=options)
            if report:
                stage = f"export {function.plan.name}"
                report(Progress(stage, done, len(shapes.batch), batch=size))
        temporary.write_bytes(_packed(files, manifest))
    return manifest


def _packed(files: JsonObject, manifest: JsonObject) -> memoryview:
    """The archive; ``manifest`` gets its digest."""
    from torch._inductor.package.package import package_aoti

    packed = io.BytesIO()  # torch's own writer aborts the process if the disk is full
    package_aoti(packed, files)
    with zipfile.ZipFile(packed, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        manifest["digest"] = archive_digest(manifest, archive.infolist())
        archive.writestr(f"{root}/{MANIFEST}", json.dumps(manifest, indent=1))
    return packed.getbuffer()


def _module(program: torch.export.ExportedProgram) -> Any:
    try:
        return program.module(check_guards=False)
    except TypeError:  # before torch 2.9 there were none
        return program.module()


def _manifest(function: Function, shapes: Shapes, null: Condition, model: Field) -> JsonObject:
    cond, refiner = shapes.cond, function.refiner
    described: JsonObject | None = None
    if cond is not None:
        described = {"dtype": str(cond.dtype), "shape": list(cond.shape[1:])}
        described["largest"] = getattr(getattr(model, "network", None), "largest_indices", None)
    return {
        "format": FORMAT,
        "flowturbo": __version__,
        "made_for": this_machine(shapes.device),
        "model": {
            "name": getattr(model, "name", None),
            "fingerprint": getattr(model, "fingerprint", None),
        },
        "refiner": refiner and {
            "fingerprint": getattr(refiner, "fingerprint", None),
            "guidance_range": getattr(refiner, "guidance_range", None),
        },
        "plan": json.loads(function.plan.to_json()),
        "dtype": None if function.dtype is None else str(function.dtype),
        "state": {"shape": list(shapes.shape), "dtype": str(shapes.dtype)},
        "batch": list(shapes.batch),
        "cond": described,
        "null": None if null is None else null.tolist(),
        "guidance": shapes.guidance,
    }  # fmt: skip
