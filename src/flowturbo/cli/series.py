"""A series of images: generated batch by batch, here or by the processes of a Ray cluster."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property

from PIL import Image
from tqdm import tqdm

from flowturbo import cluster
from flowturbo.cli.images import ImageFolder, cut_batches
from flowturbo.files import exclusive, printable
from flowturbo.sampling import Step

__all__ = ["Drawing", "Series"]


@dataclass
class Series:
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
        with _resumable(folder):
            for rows, images in self.batches(folder.missing(batch)):
                folder.write(rows, _enlarged(images, scale))

    def spread(self, drawing: Drawing, batch: int, gpus: int) -> None:
        """Generate and write the images that a folder lacks on a Ray cluster."""
        with _resumable(drawing.folder):
            batches = drawing.folder.missing(batch)
            start = time.perf_counter()
            with (
                tqdm(total=len(batches), desc=printable(self.name), disable=None) as bar,
                closing(cluster.spread(drawing, batches, gpus=gpus)) as done,
            ):
                for rows, _ in done:
                    bar.update()
                    self.generated += len(rows)
                    self.seconds = time.perf_counter() - start

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


@dataclass
class Drawing:
    """Generates and writes batches of a folder in other processes, each of which loads the model
    once.
    """

    folder: ImageFolder
    prepare: Callable[[], Callable[..., list[Image.Image]]]
    prompts: list[str]
    seed: int
    scale: int

    @cached_property
    def generate(self) -> Callable[..., list[Image.Image]]:
        """As ``Series.generate``."""
        return self.prepare()

    def __call__(self, rows: range) -> None:
        """Generate and write a batch."""
        if not self.folder.folder.is_dir():  # the command has made it
            raise OSError(
                f"{self.folder.folder} does not exist on {platform.node()}: all machines of the "
                "cluster must share it"
            )
        with warnings.catch_warnings(action="ignore"):  # the command has given them
            prompts = self.prompts[rows.start : rows.stop]
            images = self.generate(prompts, seed=self.seed + rows.start)
        self.folder.write(rows, _enlarged(images, self.scale))


@contextmanager
def _resumable(folder: ImageFolder) -> Iterator[None]:
    """Hold ``folder``; after an interruption or on a full disk, the message says what is in it."""
    with exclusive(folder.folder):
        try:
            yield
        except (KeyboardInterrupt, OSError) as e:
            left = f"{folder.existing} images are in {folder.folder}; the same command resumes"
            raise type(e)(f"{e}; {left}" if str(e) else left) from None


def _enlarged(images: Sequence[Image.Image], scale: int) -> list[Image.Image]:
    return [image.resize((image.width * scale, image.height * scale), 0) for image in images]
