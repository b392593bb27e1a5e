"""The content of a folder of images: the images, their captions, and what is left out.

Links are followed. Names with a leading dot, and files that operating systems leave behind, are
left out; so is anything that is neither an image nor a caption, and all of it is named.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from posixpath import join, normpath

from flowturbo.images import is_image
from flowturbo.models.tokenizer import short
from flowturbo.types import JsonObject

__all__ = ["Caption", "Folder", "read_captions", "scan"]

MOST_BYTES = 2**16  # of a caption file
_TEXTS = {".txt", ".caption"}
_TABLES = {".csv", ".jsonl"}
_SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
_SYSTEM |= {"thumbs.db", "ehthumbs.db", "desktop.ini"}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The files in a folder, sorted.

    Attributes:
        path: of the folder.
        images: all of them, in sub-folders too.
        tables: ``metadata.csv`` and ``metadata.jsonl``.
        texts: caption files, of the same names; one for each of ``images``, or None.
        left_out: names, relative to ``path``, of all other files, of folders that were not
            searched, and of empty ones.
    """

    path: Path
    images: list[Path]
    tables: list[Path]
    texts: list[Path | None]
    left_out: list[str]

    def name(self, path: Path) -> str:
        """The name of something in the folder, relative to it, with slashes."""
        return path.relative_to(self.path).as_posix()


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption, and where it was found: a file, or a line of one."""

    text: str
    where: str


def scan(path: Path) -> Folder:
    """Look through a folder and its sub-folders.

    Raises:
        ValueError: if it does not exist, cannot be read or contains no image; for names that differ
            only in Unicode normalization, an image or a folder that is reached twice through links,
            a broken link, a device, two captions for an image, or an image or a table in a format
            that is not read; names it.
    """
    if not path.is_dir():
        raise ValueError(f"data {str(path)!r}: no such folder, and not an .npz file")
    found: dict[str, list[Path]] = {k: [] for k in ("folder", "image", "table", "text", "other")}
    home = os.path.realpath(path)
    seen = {home: path}
    todo = [(path, [home])]  # folders, with where they and those above them really are
    while todo:
        folder, above = todo.pop()
        entries = _entries(folder)
        if not entries and folder != path:
            found["other"].append(folder)
        for entry in entries:
            kind, real = _kind(entry), os.path.join(above[-1], entry.name)
            if entry.is_symlink():
                real = os.path.realpath(entry)
                if kind == "folder" and any(Path(a).is_relative_to(real) for a in above):
                    kind = "other"  # a loop
            if kind in ("folder", "image", "table") and seen.setdefault(real, entry) != entry:
                raise ValueError(
                    f"{entry}: the same {kind} as {seen[real]}, through a link; remove one of them"
                )
            found[kind].append(entry)
            if kind == "folder":
                todo.append((entry, [*above, real]))
    images = sorted(found["image"])
    captions = _caption_files(images, found["text"])
    others = {*found["other"], *found["text"]} - {*captions.values()}
    left_out = sorted(p.relative_to(path).as_posix() + "/" * p.is_dir() for p in others)
    if not images:
        held = [*left_out, *(p.relative_to(path).as_posix() for p in found["table"])]
        more = f", but {', '.join(held[:6])}" if held else ""
        raise ValueError(f"data {str(path)!r}: no images in it{more}")
    return Folder(
        path=path,
        images=images,
        tables=sorted(found["table"]),
        texts=[captions.get(_stem(p)) for p in images],
        left_out=left_out,
    )


def read_captions(folder: Folder) -> list[Caption]:
    """A caption for each image of a folder, or none at all.

    Raises:
        ValueError: if only some images have a caption, one is empty or cannot be read, or a table
            lists other images; names the file and the line.
    """
    there = [t for t in folder.texts if t]
    if folder.tables and there:
        raise ValueError(f"{there[0]}: a caption next to {folder.tables[0]}; remove one of them")
    if folder.tables:
        rows = _table_captions(folder)
        found = [rows.get(_key(folder.name(p))) for p in folder.images]
    else:
        found = [Caption(text=_text(t), where=str(t)) if t else None for t in folder.texts]
        if not there:
            return []
    for image, caption in zip(folder.images, found, strict=True):
        if caption is None:
            raise ValueError(
                f"{image}: has no caption, but others have one; add one or remove the image"
            )
        if not caption.text:
            raise ValueError(f"{caption.where}: has no caption; write one or remove the image")
    return [c for c in found if c]


def _entries(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as e:
        raise ValueError(f"{folder}: cannot be read ({e.strerror or e})") from e
    alike: dict[str, str] = {}
    for name in names:
        other = alike.setdefault(_key(name), name)
        if other != name:
            raise ValueError(
                f"{folder / name}: {other!r} and {name!r} look the same, their Unicode differs; "
                "rename one of them"
            )
    return [folder / name for name in names]


def _kind(path: Path) -> str:
    """The kind of something in a folder: "folder", "table", "text", "image" or "other"."""
    if path.name.startswith(".") or path.name.lower() in _SYSTEM:
        return "other"
    try:
        mode = path.stat().st_mode
    except OSError as e:
        what = "a link to nothing" if path.is_symlink() else "cannot be read"
        raise ValueError(f"{path}: {what} ({e.strerror or e}); restore or remove it") from e
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: neither a file nor a folder; remove it")
    suffix, table = path.suffix.lower(), path.stem.lower() == "metadata"
    if table and suffix in _TABLES:
        return "table"
    if suffix in _TEXTS:
        return "text"
    if is_image(path):
        return "image"
    if table:
        raise ValueError(f"{path}: not read; save it as metadata.csv or metadata.jsonl")
    return "other"


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(path: Path) -> tuple[Path, str]:
    return path.parent, _key(path.stem)


def _caption_files(images: list[Path], texts: list[Path]) -> dict[tuple[Path, str], Path]:
    """The texts that have the name of an image, by folder and name."""
    stems = {_stem(p) for p in images}
    found: dict[tuple[Path, str], Path] = {}
    for text in sorted(texts):
        if _stem(text) in stems:
            other = found.setdefault(_stem(text), text)
            if other != text:
                raise ValueError(f"{text}: {other} holds a caption too; remove one of them")
    return found


def _table_captions(folder: Folder) -> dict[str, Caption]:
    """The captions in tables, by the name of the image relative to the folder."""
    known = {_key(folder.name(p)) for p in folder.images}
    found: dict[str, Caption] = {}
    for table in folder.tables:
        for where, row in _rows(table):
            name, text = row.get("file_name"), row.get("text", 0)
            if not isinstance(name, str) or not isinstance(text, str | None):
                held = ", ".join(f"{k!r}" for k in row)
                raise ValueError(f"{where}: holds {held}; texts 'file_name' and 'text' are needed")
            key = _key(normpath(join(folder.name(table.parent), name)))
            if key not in known:
                raise ValueError(f"{where}: no image {short(name)} there; add it, or take this out")
            if key in found:
                raise ValueError(
                    f"{where}: {short(name)} has an earlier caption; remove one of them"
                )
            found[key] = Caption(text=(text or "").strip(), where=where)
    return found


def _rows(table: Path) -> Iterator[tuple[str, JsonObject]]:
    """The lines of a table, and where they are."""
    try:
        text = table.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{table}: not a text in UTF-8 ({e})") from e
    if table.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text), strict=True, skipinitialspace=True)
        try:
            for row in reader:
                yield f"{table}, line {reader.line_num}", {str(k): v for k, v in row.items()}
        except csv.Error as e:
            raise ValueError(f"{table}, line {reader.line_num}: not CSV ({e})") from e
        return
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{table}, line {n}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{where}: not JSON ({e})") from e
        if not isinstance(row, dict):
            raise ValueError(f"{where}: not an object with 'file_name' and 'text'")
        yield where, row


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ValueError(f"{path}: over {MOST_BYTES} bytes, too long for a caption; shorten it")
        return raw.decode("utf-8-sig").strip()
    except OSError as e:
        raise ValueError(f"{path}: cannot be read ({e.strerror or e})") from e
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not a text in UTF-8 ({e})") from e
