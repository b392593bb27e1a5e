"""`flowturbo generate`: pictures from labels or prompts."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from tqdm import tqdm

from flowturbo._version import __version__
from flowturbo.cli.options import (
    DEFAULT_MODEL,
    Device,
    DtypeName,
    GuidanceScale,
    ModelName,
    PlanName,
    Seed,
    Vae,
    read_plan,
    resolve_device,
    resolve_dtype,
)
from flowturbo.files import check_writable, printable
from flowturbo.images import save_png, sheet
from flowturbo.models.model import Model
from flowturbo.models.zoo import load
from flowturbo.plan import Plan
from flowturbo.sampler import Step
from flowturbo.tasks.generate import generate, resolve_plan

__all__ = ["run"]

MOST_PIXELS = 500_000_000  # in one file; image readers refuse larger ones
MOST_PICTURES = 1_000_000


def run(
    prompts: Annotated[list[str], typer.Argument(help="Labels or prompts, one or more.")],
    model: ModelName = DEFAULT_MODEL,
    style: Annotated[
        list[str] | None,
        typer.Option("--style", help="One of the model's styles; may be given several times."),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", help="Pictures for each prompt.")] = 1,
    seed: Seed = 0,
    plan: PlanName = None,
    guidance: GuidanceScale = None,
    negative: Annotated[
        str | None, typer.Option("--negative", help="A prompt to guide away from.")
    ] = None,
    guidance_channels: Annotated[
        int | None,
        typer.Option("--guidance-channels", help="Guide the first so many channels only."),
    ] = None,
    vae: Vae = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="A .png for one contact sheet, a folder for single files."
        ),
    ] = Path("flowturbo.png"),
    columns: Annotated[
        int | None, typer.Option("--columns", help="Pictures in a row of the sheet.")
    ] = None,
    scale: Annotated[
        int, typer.Option("--scale", help="Enlargement, in whole pixels; 0 picks one.")
    ] = 0,
    batch: Annotated[int, typer.Option("--batch", help="Most pictures sampled at once.")] = 64,
    device: Device = "auto",
    dtype: DtypeName = "float32",
) -> None:
    """Draw pictures.

    Example: flowturbo generate "red apple" --style noto -n 8 --seed 0 -o apple.png
    """
    for name, value, least in (("-n", n, 1), ("--batch", batch, 1), ("--scale", scale, 0)):
        if value < least:
            raise ValueError(f"{name} {value}: must be at least {least}")
    if columns is not None and columns < 1:
        raise ValueError(f"--columns {columns}: must be at least 1")
    if out.suffix.lower() not in (".png", "") and not out.is_dir():
        raise ValueError(f"-o {out}: pictures are written as .png, or into a folder")
    table = read_plan(plan)
    as_sheet = out.suffix.lower() == ".png" and not out.is_dir()
    check_writable(out if as_sheet else out / "0.png")
    network = load(model, device=resolve_device(device), dtype=resolve_dtype(dtype), vae=vae)
    if style:
        prompts = [network.styled(p, s) for p in prompts for s in style]
    if n * len(prompts) > MOST_PICTURES:
        raise ValueError(f"-n {n}: {n * len(prompts)} pictures; at most {MOST_PICTURES} at a time")
    wanted = [p for p in prompts for _ in range(n)]
    _, height, width = network.picture_shape
    scale = scale or max(1, 128 // height)
    drawn = height * width * scale**2 * (len(wanted) if as_sheet else 1)
    if drawn > MOST_PIXELS:
        raise ValueError(f"{len(wanted)} pictures at --scale {scale}: over {MOST_PIXELS} pixels")
    table = resolve_plan(network, table, guidance)
    batches = -(-len(wanted) // batch)
    start = time.perf_counter()
    with tqdm(
        total=batches * len(table), desc=f"{network.name} {table.name}", disable=None, delay=0.3
    ) as bar:

        def tick(step: Step) -> None:
            bar.update()

        images = generate(
            network,
            wanted,
            plan=table,
            guidance=guidance,
            negative=negative,
            guidance_channels=guidance_channels,
            seed=seed,
            batch=batch,
            callback=tick,
        )
    seconds = time.perf_counter() - start
    facts = _facts(network, table, guidance, negative, guidance_channels)
    if as_sheet:
        page = sheet(images, columns or _columns(n, prompts, style or []), scale=scale)
        save_png(page, out, {**facts, "condition": _list(wanted), "seed": _seeds(seed, wanted)})
    else:
        _save_each(images, wanted, seed, out, facts, scale)
    counts = ", ".join(f"{m} {kind}" for kind, m in table.nfe.items() if m)
    print(
        f"{len(images)} picture{'s' * (len(images) > 1)}, {counts} evaluations each, "
        f"{seconds:.2f} s, {len(images) / seconds:.1f} images/s -> {printable(str(out))}"
    )


def _columns(n: int, prompts: list[str], styles: list[str]) -> int:
    """A row for each prompt and style, or for each prompt if there is one picture of each style."""
    row = n if n > 1 else max(1, len(styles))
    return row if len(prompts) * n > row > 1 and row <= 16 else 8


def _facts(
    model: Model, plan: Plan, guidance: float | None, negative: str | None, channels: int | None
) -> dict[str, str]:
    guidance = model.defaults["guidance"] if guidance is None else guidance
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


def _list(prompts: list[str]) -> str:
    if len(set(prompts)) == 1:
        return prompts[0]
    return json.dumps([*map(printable, prompts)], ensure_ascii=False)


def _seeds(seed: int, prompts: list[str]) -> str:
    return str(seed) if len(prompts) == 1 else f"{seed}-{seed + len(prompts) - 1}"


def _save_each(
    images: list[Image.Image],
    prompts: list[str],
    seed: int,
    folder: Path,
    facts: dict[str, str],
    scale: int,
) -> None:
    """One file a picture; if one cannot be written, those before it are removed."""
    written: list[Path] = []
    try:
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            slug = re.sub(r"[^\w]+", "-", prompt).strip("-")[:40]
            slug = slug or ("picture" if prompt.strip() else "unconditional")
            path = folder / f"{i:04d}-{slug}-seed{seed + i}.png"
            page = image.resize((image.width * scale, image.height * scale), 0)
            existed = path.exists()
            save_png(page, path, {**facts, "condition": prompt, "seed": str(seed + i)})
            if not existed:
                written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
