"""Training data: arrays in ``.npz`` files and folders of images, kept in memory as 8 bits.

Whatever has ``shape``, ``batch(n, generator)``, ``examples(n)`` and ``condition`` can be trained
on; batches are drawn with replacement from the generator given, so step ``s`` of a run sees the
same images however often the run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flowturbo.models.text import Tokenizer, build_vocabulary

__all__ = ["ArrayData", "Data", "load_data", "load_images"]

MOST_LABELS = 1_000_000  # each has a name on the card and a vector in the network
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class Data(Protocol):
    """What the training loop needs of a data set.

    It may also have ``digest() -> str``, a name for its content: a run is then not resumed with
    other data of the same shape.
    """

    condition: dict[str, Any] | None
    """The "condition" entry of the model's card, or None for an unconditional model."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        ...

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """``n`` images (n, C, H, W) in [-1, 1] and their conditions, drawn by ``generator``."""
        ...

    def examples(self, n: int) -> Tensor | None:
        """Conditions of ``n`` images for previews."""
        ...


class ArrayData:
    """Images (N, C, H, W) uint8 with a condition for each: class indices (N,), token ids (N, L)."""

    def __init__(
        self, images: Tensor, cond: Tensor | None = None, condition: dict[str, Any] | None = None
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or not len(images):
            raise ValueError(
                f"images: {tuple(images.shape)} {images.dtype}, want (N, C, H, W) uint8"
            )
        if cond is not None and len(cond) != len(images):
            raise ValueError(f"{len(images)} images but {len(cond)} conditions")
        self.images, self.cond, self.condition = images, cond, condition

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(self.images.shape[1:])  # type: ignore[return-value]

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """``n`` images in [-1, 1] and their conditions, drawn with replacement."""
        rows = torch.randint(len(self), (n,), generator=generator)
        x = self.images[rows].float() / 127.5 - 1
        return x, None if self.cond is None else self.cond[rows]

    def examples(self, n: int) -> Tensor | None:
        """Conditions for previews: classes in order, or evenly spaced captions."""
        if self.cond is None:
            return None
        if self.cond.ndim == 1:
            return torch.arange(n) % (int(self.cond.max()) + 1)
        return self.cond[torch.linspace(0, len(self) - 1, n).long()]

    def digest(self) -> str:
        """16 hexadecimal digits that name the images, their conditions and what these mean."""
        found = hashlib.sha256(json.dumps(self.condition, sort_keys=True).encode())
        for x in (self.images, self.cond):
            if x is not None:
                found.update(f"{x.dtype} {tuple(x.shape)}".encode())
                found.update(x.detach().cpu().contiguous().numpy().data)
        return found.hexdigest()[:16]


def load_data(path: str | Path, size: int, tokenizer: Tokenizer | None = None) -> ArrayData:
    """Images of ``size`` x ``size`` from an ``.npz`` file or a folder.

    - ``.npz``: ``images`` (N, H, W) or (N, H, W, C) uint8 and, optionally, ``labels`` (N,). Images
      smaller than ``size`` are padded with their corner's zero; larger ones are refused.
    - a folder of sub-folders: the name of the sub-folder is the label;
    - a folder with ``metadata.jsonl`` (lines with "file_name" and "text"), or with a ``.txt`` of
      the same name beside each image: captions, encoded by ``tokenizer``, by default with a
      vocabulary of their own.

    Images in folders are turned as their EXIF data say, put on white where they are transparent,
    cropped to the middle square and scaled.

    Raises:
        ValueError: if there is nothing there, or a file does not fit; names the file.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _load_npz(path, size)
    files = _files(path)
    images = torch.stack([_read(p, size) for p in files])
    captions = _captions(path, files)
    if captions:
        try:
            tokenizer = tokenizer or _tokenizer(captions)
            ids = tokenizer.encode(captions)
        except ValueError as e:
            raise ValueError(f"captions of {path}: {e}") from e
        return ArrayData(images, ids, {"kind": "text", "tokenizer": tokenizer.to_json()})
    parents = [p.relative_to(path).parts[:-1] for p in files]
    labels = sorted({"/".join(p) for p in parents})
    if labels == [""]:
        return ArrayData(images)
    if "" in labels:
        stray = files[parents.index(())]
        raise ValueError(f"{stray}: beside folders of labels; move it into one of them")
    index = torch.tensor([labels.index("/".join(p)) for p in parents])
    return ArrayData(images, index, {"kind": "class", "labels": labels})


def load_images(path: str | Path, size: int | tuple[int, int]) -> Tensor:
    """The images alone, as `load_data` reads them, (N, C, H, W) uint8.

    Args:
        path: an ``.npz`` file or a folder.
        size: (H, W), or one number for both. Images in folders are cropped to that shape.

    Raises:
        ValueError: if there is nothing there, or a file does not fit; names the file.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _load_npz(path, size).images
    return torch.stack([_read(p, size) for p in _files(path)])


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ValueError(f"data {str(path)!r}: no such folder, and not an .npz file")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"data {str(path)!r}: no images ({', '.join(sorted(_SUFFIXES))}) in it")
    return files


def _load_npz(path: Path, size: int | tuple[int, int]) -> ArrayData:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
    except Exception as e:
        raise ValueError(f"data {str(path)!r}: cannot be read as .npz ({e})") from e
    images = arrays.get("images")
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise ValueError(f"{path}: needs 'images' (N, H, W) or (N, H, W, C) uint8")
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"{path}: images of {images.shape[-1]} channels; grey (1) or RGB (3) only")
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = height - images.shape[1], width - images.shape[2]
    if rows < 0 or columns < 0:
        raise ValueError(f"{path}: images of {images.shape[1:3]} do not fit size={size}")
    pad = ((0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    tensor = torch.from_numpy(np.pad(images, pad)).permute(0, 3, 1, 2).contiguous()
    if "labels" not in arrays:
        return ArrayData(tensor)
    given = arrays["labels"]
    whole = given.dtype.kind in "iubf" and bool((given == np.floor(given)).all())
    if not whole or given.shape != (len(tensor),) or given.min() < 0:
        raise ValueError(f"{path}: 'labels' must be ({len(tensor)},) whole numbers from 0")
    if given.max() >= MOST_LABELS:
        raise ValueError(f"{path}: label {given.max()}; number them from 0, below {MOST_LABELS}")
    labels = torch.from_numpy(given.astype(np.int64))
    names = [str(i) for i in range(int(labels.max()) + 1)]
    return ArrayData(tensor, labels, {"kind": "class", "labels": names})


def _read(path: Path, size: int | tuple[int, int]) -> Tensor:
    try:
        image = _rgb(ImageOps.exif_transpose(Image.open(path)))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f"{path}: not a readable image ({e})") from e
    height, width = (size, size) if isinstance(size, int) else size
    across = min(image.width, max(1, image.height * width // height))
    down = min(image.height, max(1, image.width * height // width))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    image = image.crop((left, top, left + across, top + down))
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    """RGB, on white where it is transparent; 16 bits are scaled, which PIL would clip."""
    if image.mode.startswith("I;16") or image.mode == "I":
        levels = (np.asarray(image) // 257).clip(0, 255).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image).convert("RGB")


def _tokenizer(captions: Sequence[str]) -> Tokenizer:
    """A tokenizer that knows the captions and holds the longest, from 16 up to 128 tokens."""
    vocabulary = build_vocabulary(captions, 8000)
    lengths = (Tokenizer(vocabulary, 128).encode(captions) != 0).sum(1)
    return Tokenizer(vocabulary, max(16, int(lengths.max())))


def _captions(folder: Path, files: Sequence[Path]) -> list[str]:
    """One caption a file, or none at all."""
    table = folder / "metadata.jsonl"
    if table.is_file():
        try:
            raw = table.read_text("utf-8-sig")
            lines = [json.loads(x) for x in raw.split("\n") if x.strip()]
            texts = {str(x["file_name"]): str(x["text"] or "") for x in lines}
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{table}: lines need 'file_name' and 'text' ({e})") from e
        found = [texts.get(p.relative_to(folder).as_posix()) for p in files]
    else:
        beside = [p.with_suffix(".txt") for p in files]
        found = [_text(p) if p.is_file() else None for p in beside]
        if not any(found):
            return []
    for file, text in zip(files, found, strict=True):
        if not text:
            raise ValueError(f"{file}: has no caption, others have; add one or remove the image")
    return [str(t) for t in found]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not a text in UTF-8 ({e})") from e
