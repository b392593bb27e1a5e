"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from math import inf, nan
from pathlib import Path
from typing import Annotated

import torch
import typer

from flowturbo.files import check_writable, reserved
from flowturbo.models.checkpoint import CARD
from flowturbo.models.model import Model
from flowturbo.models.zoo import bundled
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner
from flowturbo.refiner.checkpoint import load_refiner
from flowturbo.refiner.resolve import default_guidance, own_refiner, resolve_plan

__all__ = [
    "DEFAULT_MODEL",
    "Device",
    "DtypeName",
    "GuidanceScale",
    "ModelName",
    "PlanName",
    "PlanNames",
    "Ray",
    "RayAddress",
    "Seed",
    "Vae",
    "absolute",
    "check_ray",
    "read_lines",
    "read_plan",
    "reserve",
    "resolve_batch",
    "resolve_device",
    "resolve_dtype",
    "resolve_guidance",
    "resolve_sampling",
]

DEFAULT_MODEL = "emoji"

ModelName = Annotated[
    str, typer.Option("--model", "-m", help="A bundled name, a folder, or hf:owner/repo.")
]
PlanName = Annotated[
    str | None,
    typer.Option(
        "--plan", help="Notation (AB2:8@1.6, H1P5R3), a plan of the model by name, or a .json file."
    ),
]
PlanNames = Annotated[
    list[str] | None,
    typer.Option(
        "--plan", help="As for generate; may be given several times. Default: that on the card."
    ),
]
RefinerName = Annotated[
    str | None,
    typer.Option(
        "--refiner", help="Folder or bundled name of a refiner; by default the model's own."
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option("--guidance", "-g", help="Guidance scale, 1 is off; by default that on the card."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the first image, from 0.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")]
DtypeName = Annotated[
    str, typer.Option("--dtype", help="Precision of the weights: float32, bfloat16 or float16.")
]
Vae = Annotated[
    str | None,
    typer.Option("--vae", help="Autoencoder of a latent model: a folder, or hf:owner/repo."),
]

Ray = Annotated[bool, typer.Option("--ray", help="Run on a Ray cluster.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="host:port of the cluster, or local to start one; by default RAY_ADDRESS, a cluster "
        "that runs on this machine, or a new one.",
    ),
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is CUDA if available, one device for each process.

    Raises:
        ValueError: if there is no such device on this machine.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        rank = os.environ.get("LOCAL_RANK")  # of the processes of torchrun or accelerate
        return torch.device("cuda" if rank is None else f"cuda:{rank}")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0]
        near = "cuda" if "gpu" in name.lower() else "cpu"
        raise ValueError(f"device={name!r} cannot be used here ({reason}); try {near}") from e
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
        scales = float(low), float(high if dash else low)
    except ValueError:
        scales = nan, nan
    if not -inf < scales[0] <= scales[1] < inf:
        raise ValueError(f"--guidance {text!r}: must be a scale (2) or a range (1-4)")
    return scales


def resolve_batch(text: str, option: str = "--batch") -> list[int]:
    """The batch sizes of "8" or "1,4,8"; ``ValueError`` unless each is at least 1."""
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and int(p) for p in parts):
        raise ValueError(f"{option} {text!r}: must be batch sizes, each at least 1 (1,8)")
    return [int(p) for p in parts]


def absolute(name: str) -> str:
    """``name`` as processes with another current folder understand it; only folders change."""
    if name.startswith("hf:") or name in bundled():
        return name
    return str(Path(name).expanduser().resolve())


def check_ray(ray: bool, address: str | None) -> None:
    """``ValueError`` if the address of a cluster is given without ``ray``."""
    if address is not None and not ray:
        raise ValueError(f"--ray-address {address}: needs --ray")


def read_plan(text: str | None) -> Plan | str | None:
    """The plan in a .json file, read before weights are loaded; else the text itself.

    Raises:
        ValueError: if the file is missing or holds no plan.
    """
    if text is None or Path(text).suffix.lower() != ".json":
        return text
    if not Path(text).is_file():
        raise ValueError(f"--plan {text}: no such file")
    return Plan.load(text)


def read_lines(
    path: Path, option: str = "--prompts", what: str = "prompts", *, every: bool = False
) -> list[str]:
    """The lines of a text file; ``ValueError`` if it has none, or is not text.

    Empty lines are skipped or, with ``every``, refused.
    """
    try:
        found = path.read_text(encoding="utf-8").splitlines()
        lines = [x for x in found if x.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{option} {path}: cannot be read ({e})") from e
    if not lines:
        raise ValueError(f"{option} {path}: contains no {what}; write one per line")
    if every and len(lines) < len(found):
        empty = next(i for i, x in enumerate(found, 1) if not x.strip())
        raise ValueError(f"{option} {path}: line {empty} is empty; remove it")
    return lines


def resolve_sampling(
    model: Model,
    plans: Sequence[Plan | str | None],
    guidance: float | None,
    refiner: str | None,
) -> tuple[list[Plan], float, Refiner | None]:
    """Plans, guidance and refiner of a command; see `flowturbo.refiner.resolve.resolve`.

    Warns if no plan needs the refiner that was named.

    Raises:
        ValueError: if a plan is malformed, or needs a refiner and there is none; if the one named
            was made for another model.
    """
    chosen = [resolve_plan(model, plan, guidance) for plan in plans]
    needing = [p for p in chosen if p.nfe["refiner"]]
    found: Refiner | None = None
    if refiner is not None:
        found = load_refiner(refiner, model)
        if not needing:
            names = ", ".join(p.name for p in chosen)
            warnings.warn(f"--refiner {refiner}: not used, plan {names} has no R", stacklevel=2)
    elif needing:
        found = own_refiner(model)
        if found is None:
            raise ValueError(
                f"plan {needing[0].name!r} has {needing[0].nfe['refiner']} refiner evaluations, "
                f"and model {model.name!r} came without a refiner: give one with --refiner, or "
                "take a plan without R"
            )
    return chosen, default_guidance(model, guidance), found


def reserve(context: typer.Context, out: Path, what: str, *suffixes: str) -> None:
    """Reserve an output file until the command ends; refuses another suffix before long work."""
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"-o {out}: {what} is written as {' or '.join(suffixes)}")
    context.with_resource(reserved(out))


def check_folder(out: Path, option: str = "-o") -> None:
    """Refuse, before long work, an output that is not a folder or cannot be written."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{option} {out}: exists and is not a folder")
    check_writable(out / CARD)
