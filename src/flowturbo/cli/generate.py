"""`flowturbo generate`: images from labels or prompts."""

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
from flowturbo.cli import options
from flowturbo.cli.images import ImageFolder, cut_batches
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
        typer.Option("--guidance-channels", help="Guide only the first so many channels."),
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
) -> None:
    """Generate images, as a grid or into a folder; an interrupted folder is resumed.

    Example: flowturbo generate "red apple" --style noto -n 8 --seed 0 -o apple.png
    """
    for name, value, least in (("-n", n, 1), ("--batch", batch, 1), ("--scale", scale, 0)):
        if value < least:
            raise ValueError(f"{name} {value}: must be at least {least}")
    if columns is not None and columns < 1:
        raise ValueError(f"--columns {columns}: must be at least 1")
    if out.suffix.lower() not in (".png", "") and not out.is_dir():
        raise ValueError(f"-o {out}: images are written as a .png grid, or into a folder")
    table = options.read_plan(plan)
    as_grid = out.suffix.lower() == ".png" and not out.is_dir()
    options.reserve(context, out, "an image grid", ".png") if as_grid else options.check_folder(out)
    network = load(
        model, device=options.resolve_device(device), dtype=options.resolve_dtype(dtype), vae=vae
    )
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
    generate_batch = partial(
        generate,
        network,
        plan=chosen,
        guidance=guidance,
        negative=negative,
        guidance_channels=guidance_channels,
        refiner=light,
        batch=batch,
    )
    series = _Series(generate_batch, wanted, seed, len(chosen), f"{network.name} {chosen.name}")
    if as_grid:
        check_room(out.parent, pixels * channels, "images")
        images = series.whole(batch)
        page = image_grid(images, columns or _columns(n, prompts, style or []), scale=scale)
        save_png(page, out, {**facts, "condition": _list(wanted), "seed": _seeds(seed, wanted)})
    else:
        choices = {
            **facts, "negative": negative, "guidance channels": guidance_channels,
            "autoencoder": facts.get("autoencoder"), "prompts": prompts, "seed": seed,
            "scale": scale, "digest": chosen.digest,
            "refiner": getattr(light, "fingerprint", None) if chosen.nfe["refiner"] else None,
            "batch": batch, "device": network.device.type, "dtype": str(network.dtype),
            **({"number": n} if len(prompts) > 1 else {}),  # of one prompt there may be more
        }  # fmt: skip
        series.into(ImageFolder(out, wanted, seed, facts, choices), batch, scale)
    counts = ", ".join(f"{m} {kind}" for kind, m in chosen.nfe.items() if m)
    passes = f" ({chosen.passes(guidance)} passes)" if guidance != 1 else ""
    say(f"{series.summary}, {counts} evaluations{passes} each{series.speed} -> {out}")


@dataclass
class _Series:
    """Images generated in batches, with a progress bar and a count of images and seconds."""

    generate: Callable[..., list[Image.Image]]
    prompts: list[str]
    seed: int
    evaluations: int
    name: str
    generated: int = 0
    seconds: float = 0.0

    def whole(self, batch: int) -> list[Image.Image]:
        """All images; none is kept after an interruption."""
        try:
            batches = cut_batches(len(self.prompts), batch)
            return [image for _, images in self.batches(batches) for image in images]
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "nothing was written; with a folder (-o FOLDER) each finished batch is kept"
            ) from None

    def into(self, folder: ImageFolder, batch: int, scale: int) -> None:
        """Generate and write the images that ``folder`` lacks."""
        enlarged = lambda image: image.resize((image.width * scale, image.height * scale), 0)
        with exclusive(folder.folder):
            try:
                for rows, images in self.batches(folder.missing(batch)):
                    folder.write(rows, [*map(enlarged, images)])
            except (KeyboardInterrupt, OSError) as e:
                left = f"{folder.existing} images are in {folder.folder}; the same command resumes"
                raise type(e)(f"{e}; {left}" if str(e) else left) from None

    def batches(self, batches: Sequence[range]) -> Iterator[tuple[range, list[Image.Image]]]:
        """Generate ``batches`` of the images one after another."""
        total = len(batches) * self.evaluations
        start = time.perf_counter()
        with (
            tqdm(total=total, desc=printable(self.name), disable=None, delay=0.3) as bar,
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings(
                "ignore", "prompt words not known"
            )  # given for all prompts at once

            def tick(step: Step) -> None:
                bar.update()

            for rows in batches:
                prompts = self.prompts[rows.start : rows.stop]
                images = self.generate(prompts, seed=self.seed + rows.start, callback=tick)
                self.generated += len(images)
                self.seconds = time.perf_counter() - start
                yield rows, images

    @property
    def summary(self) -> str:
        """How many images, and how many of them existed already."""
        n = len(self.prompts)
        kept = n - self.generated
        return f"{n} image{'s' * (n > 1)}" + f" ({kept} existed already)" * (kept > 0)

    @property
    def speed(self) -> str:
        """Seconds, and images per second, if any was generated."""
        if not self.generated:
            return ""
        return f", {self.seconds:.2f} s, {self.generated / self.seconds:.1f} images/s"


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


def _list(prompts: list[str]) -> str:
    if len(set(prompts)) == 1:
        return prompts[0]
    return json.dumps([*map(printable, prompts)], ensure_ascii=False)


def _seeds(seed: int, prompts: list[str]) -> str:
    return str(seed) if len(prompts) == 1 else f"{seed}-{seed + len(prompts) - 1}"
