"""`flowturbo generate`: images from labels or prompts."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image

from flowturbo import cluster
from flowturbo._version import __version__
from flowturbo.cli import options
from flowturbo.cli.images import ImageFolder
from flowturbo.cli.output import say
from flowturbo.cli.series import Drawing, Series
from flowturbo.files import check_room, printable
from flowturbo.images import image_grid, save_png
from flowturbo.models.model import Model
from flowturbo.models.zoo import load
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner
from flowturbo.tasks.generate import check_whole, generate

__all__ = ["run"]

MOST_PIXELS = 500_000_000  # in one file; image readers refuse larger ones
MOST_IMAGES = 1_000_000


def run(
    context: typer.Context,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Labels or prompts; none if the model takes no condition."),
    ] = None,
    model: options.ModelName = options.DEFAULT_MODEL,
    style: Annotated[
        list[str] | None,
        typer.Option("--style", help="A style of the model; may be given several times."),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", help="Images per prompt and style.")] = 1,
    seed: options.Seed = 0,
    plan: options.PlanName = None,
    refiner: options.RefinerName = None,
    guidance: options.GuidanceScale = None,
    negative: Annotated[
        str | None, typer.Option("--negative", help="A prompt to guide away from.")
    ] = None,
    guidance_channels: Annotated[
        int | None,
        typer.Option(
            "--guidance-channels", help="Guide only this many channels, from the first on."
        ),
    ] = None,
    vae: options.Vae = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="A .png file for an image grid, or a folder for single images."
        ),
    ] = Path("flowturbo.png"),
    columns: Annotated[
        int | None, typer.Option("--columns", help="Images per row of the grid.")
    ] = None,
    scale: Annotated[
        int,
        typer.Option(
            "--scale", help="Enlargement, a whole number; 0 chooses one by the image size."
        ),
    ] = 0,
    batch: Annotated[
        int, typer.Option("--batch", help="Largest number of images sampled at once.")
    ] = 64,
    device: options.Device = "auto",
    dtype: options.DtypeName = "float32",
    ray: options.Ray = False,
    ray_address: options.RayAddress = None,
) -> None:
    """Generate images, as a grid or into a folder; an interrupted folder is resumed.

    Example: flowturbo generate "red apple" --style noto -n 8 --seed 0 -o apple.png
    """
    options.check_ray(ray, ray_address)
    for name, value, least in (("-n", n, 1), ("--batch", batch, 1), ("--scale", scale, 0)):
        if value < least:
            raise ValueError(f"{name} {value}: must be at least {least}")
    if columns is not None and columns < 1:
        raise ValueError(f"--columns {columns}: must be at least 1")
    if out.suffix.lower() not in (".png", "") and not out.is_dir():
        raise ValueError(f"-o {out}: images are written as a .png grid, or into a folder")
    table = options.read_plan(plan)
    as_grid = out.suffix.lower() == ".png" and not out.is_dir()
    if ray and as_grid:
        raise ValueError(f"--ray: images go into a folder, and -o {out} is an image grid")
    options.reserve(context, out, "an image grid", ".png") if as_grid else options.check_folder(out)
    here = options.resolve_device("cpu" if ray else device)
    network = load(model, device=here, dtype=options.resolve_dtype(dtype), vae=vae)
    prompts = _prompts(network, prompts or [], style or [], negative)
    if n * len(prompts) > MOST_IMAGES:
        raise ValueError(f"-n {n}: {n * len(prompts)} images; at most {MOST_IMAGES} at a time")
    wanted = [p for p in prompts for _ in range(n)]
    channels, height, width = network.image_shape
    scale = scale or max(1, 128 // height)
    pixels = height * width * scale**2 * (len(wanted) if as_grid else 1)
    if pixels > MOST_PIXELS:
        raise ValueError(
            f"{len(wanted)} images at --scale {scale}: over {MOST_PIXELS} pixels in a file; "
            "lower --scale, or give a folder as -o"
        )
    (chosen,), guidance, light = options.resolve_sampling(network, [table], guidance, refiner)
    check_whole(chosen)
    facts = _facts(network, chosen, guidance, negative, guidance_channels)
    made_with: dict[str, Any] = {
        "plan": chosen, "guidance": guidance, "negative": negative,
        "guidance_channels": guidance_channels, "batch": batch,
    }  # fmt: skip
    generate_batch = partial(generate, network, refiner=light, **made_with)
    series = Series(generate_batch, wanted, seed, len(chosen), f"{network.name} {chosen.name}")
    if as_grid:
        check_room(out.parent, pixels * channels, "images")
        images = series.whole(batch)
        page = image_grid(images, columns or _columns(n, prompts, style or []), scale=scale)
        save_png(page, out, {**facts, "condition": _list(wanted), "seed": _seeds(seed, wanted)})
    else:
        used = _fingerprint(light, chosen)
        choices = {
            **facts, "negative": negative, "guidance channels": guidance_channels,
            "autoencoder": facts.get("autoencoder"), "prompts": prompts, "seed": seed,
            "scale": scale, "digest": chosen.digest, "refiner": used, "batch": batch,
            "device": here.type, "dtype": str(network.dtype),
            **({"number": n} if len(prompts) > 1 else {}),  # of one prompt there may be more
        }  # fmt: skip
        if ray:
            with cluster.joined(ray_address):
                there, gpus = cluster.placed(device)
                choices["device"] = torch.device(there).type
                folder = ImageFolder(out.resolve(), wanted, seed, facts, choices)
                prepare = partial(
                    _prepared, {**facts, "refiner": used}, options.absolute(model),
                    vae=vae and options.absolute(vae), device=there, dtype=dtype,
                    refiner=refiner and options.absolute(refiner), **made_with,
                )  # fmt: skip
                series.spread(Drawing(folder, prepare, wanted, seed, scale), batch, gpus)
        else:
            series.into(ImageFolder(out, wanted, seed, facts, choices), batch, scale)
    counts = ", ".join(f"{m} {kind}" for kind, m in chosen.nfe.items() if m)
    passes = f" ({chosen.passes(guidance)} passes)" if guidance != 1 else ""
    say(f"{series.summary}, {counts} evaluations{passes} each{series.speed} -> {out}")


def _prepared(
    facts: dict[str, str | None],
    model: str,
    *,
    vae: str | None,
    device: str,
    dtype: str,
    plan: Plan,
    guidance: float,
    negative: str | None,
    guidance_channels: int | None,
    refiner: str | None,
    batch: int,
) -> Callable[..., list[Image.Image]]:
    """A function that generates the images of ``facts``.

    Raises:
        ValueError: if the model or refiner found on this machine would generate others.
    """
    network = load(
        model, device=options.resolve_device(device), dtype=options.resolve_dtype(dtype), vae=vae
    )
    _, _, light = options.resolve_sampling(network, [plan], guidance, refiner)
    found: dict[str, str | None] = {
        **_facts(network, plan, guidance, negative, guidance_channels),
        "refiner": _fingerprint(light, plan),
    }
    for key, value in found.items():
        if value != facts[key]:
            raise ValueError(
                f"{key} is {value} on {platform.node()}, and {facts[key]} where the command runs; "
                "all machines of the cluster need the same"
            )
    return partial(
        generate, network, plan=plan, guidance=guidance, negative=negative,
        guidance_channels=guidance_channels, refiner=light, batch=batch,
    )  # fmt: skip


def _prompts(
    model: Model, prompts: list[str], styles: list[str], negative: str | None
) -> list[str]:
    """The prompts in each of the styles, all of them checked before sampling."""
    if not prompts and model.conditioning is None:
        prompts = [""]
    if not prompts:
        raise ValueError(
            f"Missing argument 'PROMPTS...': labels or prompts for model {model.name!r} "
            '("" is any)'
        )
    if styles:
        prompts = [model.styled(p, s) for p in prompts for s in styles]
    for asked in (prompts, [] if negative is None else [negative]):
        if asked and (model.conditioning or any(p.strip() for p in asked)):
            model.condition(asked)
    return prompts


def _columns(n: int, prompts: list[str], styles: list[str]) -> int:
    """A row for each prompt and style, or for each prompt if there is one image per style."""
    row = n if n > 1 else max(1, len(styles))
    return row if len(prompts) * n > row > 1 and row <= 16 else 8


def _facts(
    model: Model, plan: Plan, guidance: float, negative: str | None, channels: int | None
) -> dict[str, str]:
    facts = {
        "model": f"{model.name} {model.fingerprint}",
        "plan": plan.name,
        "guidance": str(guidance),
        "version": f"flowturbo {__version__}",
    }
    if model.codec.fingerprint:
        facts["autoencoder"] = f"{model.codec.name} {model.codec.fingerprint}"
    if channels is not None:
        facts["guidance channels"] = str(channels)
    return facts if negative is None else {**facts, "negative": negative}


def _fingerprint(refiner: Refiner | None, plan: Plan) -> str | None:
    """That of the refiner, if the plan uses it."""
    return getattr(refiner, "fingerprint", None) if plan.nfe["refiner"] else None


def _list(prompts: list[str]) -> str:
    if len(set(prompts)) == 1:
        return prompts[0]
    return json.dumps([*map(printable, prompts)], ensure_ascii=False)


def _seeds(seed: int, prompts: list[str]) -> str:
    return str(seed) if len(prompts) == 1 else f"{seed}-{seed + len(prompts) - 1}"
