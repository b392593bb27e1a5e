"""A folder of images that is written as they are generated, and resumed after an interruption.

Images are generated in batches that begin at fixed numbers. A batch with a missing image is
generated again as a whole, since matrix products round differently with its size: however often a
command was interrupted, its folder ends up with the same files, byte for byte.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from flowturbo.files import check_unclaimed, claim, printable
from flowturbo.images import read_metadata, save_png
from flowturbo.types import ReadOnlyJson

__all__ = ["ImageFolder", "cut_batches"]

OPTIONS = "options.json"


class ImageFolder:
    """The images of one command; hold `flowturbo.files.exclusive` on the folder while it runs.

    Attributes:
        folder: where they are.
        paths: of all images, existing or not, by number.
    """

    def __init__(
        self,
        folder: Path,
        prompts: Sequence[str],
        seed: int,
        facts: Mapping[str, str],
        options: ReadOnlyJson,
    ) -> None:
        """Image ``i`` has ``prompts[i]`` and ``seed + i``.

        Args:
            folder: where to write.
            prompts: one per image.
            seed: of the first image.
            facts: metadata of all images.
            options: everything that determines the images; a folder with others is refused.
        """
        self.folder = folder
        self.paths = [folder / _name(i, p, seed + i) for i, p in enumerate(prompts)]
        self._options = {"generate": dict(options)}
        self._metadata = lambda i: {**facts, "condition": prompts[i], "seed": str(seed + i)}

    @property
    def existing(self) -> int:
        """How many of the images are in the folder, whole or not."""
        found = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return sum(p.name in found for p in self.paths)

    def missing(self, batch: int) -> list[range]:
        """The batches with a missing or damaged image.

        Raises:
            ValueError: if the folder holds images that were generated with other options.
        """
        check_unclaimed(self.folder / OPTIONS, self._options)
        found = set(os.listdir(self.folder))
        kept = [p.name in found and self._kept(i) for i, p in enumerate(self.paths)]
        batches = cut_batches(len(kept), batch)
        return [rows for rows in batches if not all(kept[rows.start : rows.stop])]

    def write(self, rows: range, images: Sequence[Image.Image]) -> None:
        """Write a batch, each image whole or not at all.

        Raises:
            OSError: if one cannot be written.
        """
        if not (self.folder / OPTIONS).exists():  # the first batch is there
            claim(self.folder / OPTIONS, self._options)
        for i, image in zip(rows, images, strict=True):
            save_png(image, self.paths[i], self._metadata(i), sweep=False)

    def _kept(self, i: int) -> bool:
        found, wanted = read_metadata(self.paths[i]), self._metadata(i)
        if found is None:
            return False
        for key in {**wanted, **found}:
            if found.get(key) != (printable(wanted[key]) if key in wanted else None):
                raise ValueError(
                    f"{self.paths[i]} was generated with {key}={found.get(key)}, not "
                    f"{wanted.get(key)}: move it away, or choose another folder"
                )
        return True


def cut_batches(number: int, batch: int) -> list[range]:
    """The numbers from 0 in batches; the last may be smaller."""
    return [range(i, min(i + batch, number)) for i in range(0, number, batch)]


def _name(number: int, prompt: str, seed: int) -> str:
    slug = re.sub(r"[^\w]+", "-", prompt).strip("-")[:40]
    slug = slug or ("picture" if prompt.strip() else "unconditional")
    return f"{number:04d}-{slug}-seed{seed}.png"
