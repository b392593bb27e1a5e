"""`flowturbo generate`: pictures from labels or prompts."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from tqdm import tqdm

from flowturbo._version import __version__
from flowturbo.cli.images import PictureFolder, cut_batches
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
    check_folder,
    read_plan,
    reserve,
    resolve_device,
    resolve_dtype,
    resolve_sampling,
)
from flowturbo.cli.output import say
from flowturbo.files import check_room, exclusive, printable
from flowturbo.images import image_grid, save_png
from flowturbo.models.model import Model
from flowturbo.models.zoo import load
from flowturbo.plan import Plan
from flowturbo.sampling import Step
from flowturbo.tasks.generate import check_whole, generate

__all__ = ["run"]

MOST_PIXELS = 500_000_000  # in one file; image readers refuse larger ones
MOST_PICTURES = 1_000_000


def run(
    context: typer.Context,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Labels or prompts; none where the model takes no condition."),
    ] = None,
    model: ModelName = DEFAULT_MODEL,
    style: Annotated[
        list[str] | None,
        typer.Option("--style", help="One of the model's styles; may be given several times."),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", help="Pictures for each prompt.")] = 1,
    seed: Seed = 0,
    plan: PlanName = None,
    refiner: RefinerName = None,
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
    """Draw pictures; into a folder they are written as they are drawn, and it goes on if stopped.

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
    reserve(context, out, "a sheet", ".png") if as_sheet else check_folder(out)
    network = load(model, device=resolve_device(device), dtype=resolve_dtype(dtype), vae=vae)
    prompts = _prompts(network, prompts or [], style or [], negative)
    if n * len(prompts) > MOST_PICTURES:
        raise ValueError(f"-n {n}: {n * len(prompts)} pictures; at most {MOST_PICTURES} at a time")
    wanted = [p for p in prompts for _ in range(n)]
    channels, height, width = network.image_shape
    scale = scale or max(1, 128 // height)
    drawn = height * width * scale**2 * (len(wanted) if as_sheet else 1)
    if drawn > MOST_PIXELS:
        raise ValueError(
            f"{len(wanted)} pictures at --scale {scale}: over {MOST_PIXELS} pixels in a file; "
            "lower --scale, or give a folder as -o"
        )
    (chosen,), guidance, light = resolve_sampling(network, [table], guidance, refiner)
    check_whole(chosen)
    facts = _facts(network, chosen, guidance, negative, guidance_channels)
    draw = partial(
        generate,
        network,
        plan=chosen,
        guidance=guidance,
        negative=negative,
        guidance_channels=guidance_channels,
        refiner=light,
        batch=batch,
    )
    series = _Series(draw, wanted, seed, len(chosen), f"{network.name} {chosen.name}")
    if as_sheet:
        check_room(out.parent, drawn * channels, "pictures")
        images = series.whole(batch)
        page = image_grid(images, columns or _columns(n, prompts, style or []), scale=scale)
        save_png(page, out, {**facts, "condition": _list(wanted), "seed": _seeds(seed, wanted)})
    else:
        options = {
            **facts, "negative": negative, "guidance channels": guidance_channels,
            "autoencoder": facts.get("autoencoder"), "prompts": prompts, "seed": seed,
            "scale": scale, "digest": chosen.digest,
            "refiner": getattr(light, "fingerprint", None) if chosen.nfe["refiner"] else None,
            "batch": batch, "device": network.device.type, "dtype": str(network.dtype),
            **({"number": n} if len(prompts) > 1 else {}),  # of one prompt there may be more
        }  # fmt: skip
        series.into(PictureFolder(out, wanted, seed, facts, options), batch, scale)
    counts = ", ".join(f"{m} {kind}" for kind, m in chosen.nfe.items() if m)
    say(f"{series.told}, {counts} evaluations each{series.speed} -> {out}")


@dataclass
class _Series:
    """Pictures drawn in batches, with a bar; counts those drawn and the seconds it took."""

    draw: Callable[..., list[Image.Image]]
    prompts: list[str]
    seed: int
    evaluations: int
    name: str
    drawn: int = 0
    seconds: float = 0.0

    def whole(self, batch: int) -> list[Image.Image]:
        """All pictures; nothing is left of them where that is interrupted."""
        try:
            batches = cut_batches(len(self.prompts), batch)
            return [image for _, images in self.batches(batches) for image in images]
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "nothing was written; into a folder (-o FOLDER) pictures are written as they come"
            ) from None

    def into(self, folder: PictureFolder, batch: int, scale: int) -> None:
        """Draw and write the pictures that ``folder`` lacks."""
        enlarged = lambda image: image.resize((image.width * scale, image.height * scale), 0)
        with exclusive(folder.folder):
            try:
                for rows, images in self.batches(folder.missing(batch)):
                    folder.write(rows, [*map(enlarged, images)])
            except (KeyboardInterrupt, OSError) as e:
                left = f"{folder.there} pictures are in {folder.folder}, the same command goes on"
                raise type(e)(f"{e}; {left}" if str(e) else left) from None

    def batches(self, batches: Sequence[range]) -> Iterator[tuple[range, list[Image.Image]]]:
        """Draw ``batches`` of the pictures one after another."""
        total = len(batches) * self.evaluations
        start = time.perf_counter()
        with (
            tqdm(total=total, desc=printable(self.name), disable=None, delay=0.3) as bar,
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "prompt words not known")  # told of all at once

            def tick(step: Step) -> None:
                bar.update()

            for rows in batches:
                prompts = self.prompts[rows.start : rows.stop]
                images = self.draw(prompts, seed=self.seed + rows.start, callback=tick)
                self.drawn += len(images)
                self.seconds = time.perf_counter() - start
                yield rows, images

    @property
    def told(self) -> str:
        """How many pictures, and how many of them were there already."""
        n = len(self.prompts)
        kept = n - self.drawn
        return f"{n} picture{'s' * (n > 1)}" + f" ({kept} were there already)" * (kept > 0)

    @property
    def speed(self) -> str:
        """Seconds, and pictures a second, where any was drawn."""
        if not self.drawn:
            return ""
        return f", {self.seconds:.2f} s, {self.drawn / self.seconds:.1f} images/s"


def _prompts(
    model: Model, prompts: list[str], styles: list[str], negative: str | None
) -> list[str]:
    """The prompts in each of the styles, all of them checked before the first is drawn."""
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
    """A row for each prompt and style, or for each prompt if there is one picture of each style."""
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


def _list(prompts: list[str]) -> str:
    if len(set(prompts)) == 1:
        return prompts[0]
    return json.dumps([*map(printable, prompts)], ensure_ascii=False)


def _seeds(seed: int, prompts: list[str]) -> str:
    return str(seed) if len(prompts) == 1 else f"{seed}-{seed + len(prompts) - 1}"
