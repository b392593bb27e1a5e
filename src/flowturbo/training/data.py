"""Reading training data: arrays in ``.npz`` files and folders of images.

Nothing is left out silently: ``ArrayData.describe`` says what was read and what was not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from flowturbo.files import printable
from flowturbo.images import read_image
from flowturbo.models.conditioning import ClassCondition, TextCondition
from flowturbo.models.prompts import excerpt
from flowturbo.models.tokenizer import MAX_CHARACTERS, Tokenizer, build_vocabulary, short
from flowturbo.training.dataset import ArrayData, counted
from flowturbo.training.folder import Caption, Folder, read_captions, scan
from flowturbo.training.npz import check_memory, read_arrays
from flowturbo.types import JsonObject

__all__ = ["is_npz", "load_data", "load_images"]

MOST_LABELS = 1_000_000  # each has a name on the card and a vector in the network
MOST_TOKENS = 128  # in a caption


def load_data(path: str | Path, size: int, tokenizer: Tokenizer | None = None) -> ArrayData:
    """Images of ``size`` x ``size`` from an ``.npz`` file or a folder.

    - ``.npz``: ``images`` (N, H, W) or (N, H, W, C) uint8 and, optionally, ``labels`` (N,). Images
      smaller than ``size`` are padded with zeros all around; larger ones are refused.
    - a folder of sub-folders: the name of the sub-folder is the label;
    - a folder with ``metadata.csv`` or ``metadata.jsonl`` ("file_name", relative to the table's
      folder, and "text"), or with a ``.txt`` or ``.caption`` of the same name next to each image:
      captions, encoded by ``tokenizer``, by default with a vocabulary of their own.

    Images in folders are read by `flowturbo.images.read_image`; `flowturbo.training.folder` says
    what of a folder is read, and `ArrayData.describe` what of this one was.

    Raises:
        ValueError: if there is nothing there, a file does not fit, or it would not fit into memory;
            names the file.
    """
    path, (height, width) = Path(path), _shape(size)
    if is_npz(path):
        return _load_npz(path, height, width)
    folder = scan(path)
    captions = read_captions(folder)
    labels, index = ([], None) if captions else _labels(folder)
    condition: JsonObject | None = ClassCondition.of(labels).entry if labels else None
    if captions:
        tokenizer, index = _encoded(captions, tokenizer)
        condition = TextCondition.of(tokenizer).entry
    images, source = _read(folder, height, width), _source(folder) if captions else ""
    return ArrayData(images, index, condition, source=source, left_out=folder.left_out)


def load_images(path: str | Path, size: int | tuple[int, int]) -> Tensor:
    """The images alone, as `load_data` reads them, (N, C, H, W) uint8.

    What is left out is named in a warning.

    Args:
        path: an ``.npz`` file or a folder.
        size: (H, W), or one number for both. Images in folders are cropped to that shape.

    Raises:
        ValueError: as `load_data`.
    """
    path, (height, width) = Path(path), _shape(size)
    if is_npz(path):
        data = _load_npz(path, height, width)
    else:
        folder = scan(path)
        data = ArrayData(_read(folder, height, width), left_out=folder.left_out)
    if data.left_out:
        warnings.warn(f"{path}: left out: {excerpt(data.left_out, 6)}", stacklevel=2)
    return data.images


def is_npz(path: Path) -> bool:
    """Whether a path is read as an ``.npz`` file, and not as a folder."""
    return path.suffix.lower() == ".npz" and not path.is_dir()


def _shape(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = size if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(n, Integral) and n > 0 for n in pair):
        raise ValueError(f"size={size!r}: must be a whole number from 1, or a height and a width")
    return int(pair[0]), int(pair[1])


def _load_npz(path: Path, height: int, width: int) -> ArrayData:
    arrays, others = read_arrays(path, ("images", "labels"))
    images = arrays.get("images")
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        held = excerpt(others, 6) if images is None else f"'images' {images.shape} {images.dtype}"
        raise ValueError(f"{path}: needs 'images' (N, H, W) or (N, H, W, C) uint8; holds {held}")
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{path}: images {images.shape} of {images.shape[-1]} channels; they are (N, H, W, C), "
            "grey (1) or RGB (3)"
        )
    rows, columns = height - images.shape[1], width - images.shape[2]
    if rows < 0 or columns < 0:
        size = height if height == width else (height, width)
        raise ValueError(f"{path}: images of {images.shape[1:3]} do not fit size={size}")
    _check_fit(path, len(images), images.shape[-1], height, width)
    pad = ((0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    tensor = torch.from_numpy(np.pad(images, pad)).permute(0, 3, 1, 2).contiguous()
    if "labels" not in arrays:
        return ArrayData(tensor, left_out=others)
    given = arrays["labels"]
    whole = given.dtype.kind in "iubf" and bool((given == np.floor(given)).all())
    if not whole or given.shape != (len(tensor),) or given.min() < 0:
        raise ValueError(
            f"{path}: 'labels' {given.shape} {given.dtype} must be ({len(tensor)},) whole numbers "
            "from 0"
        )
    if given.max() >= MOST_LABELS:
        raise ValueError(f"{path}: label {given.max()}; number them from 0, below {MOST_LABELS}")
    labels = torch.from_numpy(given.astype(np.int64))
    names = [str(i) for i in range(int(labels.max()) + 1)]
    return ArrayData(tensor, labels, ClassCondition.of(names).entry, left_out=others)


def _read(folder: Folder, height: int, width: int) -> Tensor:
    """The images of a folder (N, 3, H, W); the error names all that cannot be read."""
    _check_fit(folder.path, len(folder.images), 3, height, width)
    images = torch.empty(len(folder.images), 3, height, width, dtype=torch.uint8)
    failed = []
    for image, path in zip(images, folder.images, strict=True):
        try:
            image.copy_(read_image(path, (height, width)))
        except ValueError as e:
            failed.append(str(e))
    if failed:
        more = f"; and {len(failed) - 10} more" if len(failed) > 10 else ""
        raise ValueError("; ".join(failed[:10]) + more)
    return images


def _check_fit(path: Path, n: int, channels: int, height: int, width: int) -> None:
    what = f"data {str(path)!r}: {counted(n, 'image')} of {height} x {width}"
    check_memory(n * channels * height * width, what)


def _labels(folder: Folder) -> tuple[list[str], Tensor | None]:
    """The names of the classes and the class of each image; nothing if there are no classes."""
    parents = [p.parent for p in folder.images]
    places = sorted({*parents}, key=folder.name)
    if places == [folder.path]:
        return [], None
    if folder.path in places:
        stray = folder.images[parents.index(folder.path)]
        raise ValueError(f"{stray}: next to folders of labels; move it into one of them")
    labels = [normalize("NFC", folder.name(p)) for p in places]
    for place, label in zip(places, labels, strict=True):
        if label != label.strip() or label != printable(label):
            raise ValueError(
                f"{str(place)!r}: the label {label!r} begins or ends with a space, or holds what "
                "cannot be printed, so that no prompt could name it; rename the folder"
            )
    rank = {place: i for i, place in enumerate(places)}
    return labels, torch.tensor([rank[p] for p in parents])


def _source(folder: Folder) -> str:
    suffixes = sorted({t.suffix.lower() for t in folder.texts if t})
    return ", ".join([folder.name(t) for t in folder.tables] or suffixes)


def _encoded(captions: Sequence[Caption], known: Tokenizer | None) -> tuple[Tokenizer, Tensor]:
    """Token ids (N, L) by the given tokenizer, or else by one made from the captions.

    The latter has room for the longest caption, from 16 up to `MOST_TOKENS` tokens.
    """
    for c in captions:
        if len(c.text) > MAX_CHARACTERS:
            raise ValueError(
                f"{c.where}: a caption of {len(c.text)} characters; at most {MAX_CHARACTERS}; "
                "shorten it"
            )
    texts = [c.text for c in captions]
    tokenizer = known or Tokenizer(build_vocabulary(texts, 8000), MOST_TOKENS)
    ids = [tokenizer.ids(text) for text in texts]
    for c, found in zip(captions, ids, strict=True):
        if not found:
            raise ValueError(
                f"{c.where}: no word of the caption {short(c.text)} is known; words are letters "
                "and digits"
            )
        if len(found) > tokenizer.length:
            raise ValueError(
                f"{c.where}: a caption of {len(found)} tokens, {short(c.text)}; at most "
                f"{tokenizer.length}; shorten it"
            )
    if not known:
        tokenizer = Tokenizer(tokenizer.vocabulary, max(16, max(map(len, ids))))
    return tokenizer, tokenizer.encode(texts)
