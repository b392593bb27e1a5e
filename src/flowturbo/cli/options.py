"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from flowturbo.plan import Plan

__all__ = [
    "DEFAULT_MODEL",
    "Device",
    "DtypeName",
    "GuidanceScale",
    "ModelName",
    "PlanName",
    "PlanNames",
    "Seed",
    "Vae",
    "read_plan",
    "resolve_batch",
    "resolve_device",
    "resolve_dtype",
    "resolve_guidance",
]

DEFAULT_MODEL = "emoji"

ModelName = Annotated[
    str, typer.Option("--model", "-m", help="A bundled name, a folder, or hf:owner/repo.")
]
PlanName = Annotated[
    str | None,
    typer.Option("--plan", help="H1P5R3, AB2:8, AB2:8@1.6, ... or a .json file."),
]
PlanNames = Annotated[
    list[str] | None,
    typer.Option("--plan", help="May be given several times; by default the card's."),
]
GuidanceScale = Annotated[
    float | None, typer.Option("--guidance", "-g", help="Scale of guidance; 1 is off.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the first picture, from 0.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")]
DtypeName = Annotated[
    str, typer.Option("--dtype", help="float32, bfloat16 or float16, of the weights.")
]
Vae = Annotated[
    str | None,
    typer.Option("--vae", help="Autoencoder of a model of latents: a folder, or hf:owner/repo."),
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device called ``name``, "auto" being CUDA where there is one.

    Raises:
        ValueError: if there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f"device={name!r} cannot be used here ({reason}); try cpu") from e
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype called ``name``; ``ValueError`` if it is not one of the three."""
    if name not in _DTYPES:
        raise ValueError(f"dtype={name!r}: must be one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def resolve_guidance(text: str) -> tuple[float, float]:
    """The (lowest, highest) scale of "2" or "1-4"; ``ValueError`` if it is neither."""
    low, dash, high = text.partition("-")
    try:
        return float(low), float(high if dash else low)
    except ValueError:
        raise ValueError(f"--guidance {text!r}: must be a scale (2) or a range (1-4)") from None


def resolve_batch(text: str) -> list[int]:
    """The numbers of rows of "8" or "1,4,8"; ``ValueError`` unless each is at least 1."""
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and int(p) for p in parts):
        raise ValueError(f"--batch {text!r}: must be numbers of rows, each at least 1 (1,8)")
    return [int(p) for p in parts]


def read_plan(text: str | None) -> Plan | str | None:
    """The plan of a file or a notation, before weights are loaded; else a name of the model's."""
    if text is None or text.isalpha():
        return text
    if text.endswith(".json"):
        if not Path(text).is_file():
            raise ValueError(f"--plan {text}: no such file")
        return Plan.load(text)
    return Plan.parse(text)
