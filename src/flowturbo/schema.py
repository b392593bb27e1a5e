"""What is read from a file, checked against a schema before anything is built from it.

A schema is a pydantic model derived from `Schema`: strict, so that ``"3"`` is no number and ``3.5``
no count, and without NaN or infinity. `read_json` and `check` turn the first thing that is wrong
into one line that names the file, the key, the value, what is allowed and what to do.

Sizes are looked at before anything is read: `MOST_BYTES` and `MOST_VALUES` of JSON take less than
200 MB of memory, whatever they hold, and `open_archive` opens no archive that is larger unpacked.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flowturbo.files import open_regular, printable

__all__ = [
    "MOST_BYTES",
    "Schema",
    "check",
    "load_json",
    "open_archive",
    "parse_json",
    "read_bytes",
    "read_json",
]

MOST_BYTES = 16 * 2**20  # of a JSON file; the largest card of the bundled models has 0.2 MB
MOST_VALUES = 1_000_000  # in it
DEEPEST = 64  # brackets within brackets

S = TypeVar("S", bound="Schema")


class Schema(BaseModel):
    """Base of all schemas; entries that a schema does not name are kept and not looked at."""

    model_config = ConfigDict(
        strict=True, extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def read_json(path: str | Path, schema: type[S], *, most_bytes: int = MOST_BYTES) -> S:
    """The JSON file ``path`` as a ``schema``.

    Raises:
        ValueError: if it is missing, larger than ``most_bytes``, not JSON as `parse_json` reads
            it, or not of the schema; names the file, the key and the value.
    """
    return check(load_json(path, most_bytes=most_bytes), schema, printable(str(path)))


def load_json(path: str | Path, *, most_bytes: int = MOST_BYTES) -> Any:
    """What the JSON file ``path`` holds; raises as `read_json`."""
    try:
        content = read_bytes(path, most_bytes)
    except OSError as e:
        raise ValueError(str(e)) from e
    return parse_json(content, printable(str(path)))


def read_bytes(path: str | Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `flowturbo.files.open_regular`.
        ValueError: if it is larger than ``most_bytes``.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{printable(str(path))}: larger than {most_bytes} bytes; not read")
    return content


def parse_json(content: bytes | str, where: str) -> Any:
    """``content`` as JSON, stricter than Python is; ``where`` names its source.

    Raises:
        ValueError: if it is not JSON in UTF-8, gives a key of an object twice, holds NaN or a
            number that is not finite, half of a surrogate pair, more than `MOST_VALUES` values, or
            brackets nested deeper than `DEEPEST`.
    """
    try:
        raw = content.encode() if isinstance(content, str) else content
        if sum(map(raw.count, (b",", b"[", b"{"))) > MOST_VALUES:
            raise ValueError(f"over {MOST_VALUES} values")
        made = json.loads(
            raw.decode(), object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite
        )
        _check_depth(made)
        if re.search(rb"\\u[dD][89a-fA-F]", raw):  # a pair is one character, a half is none
            json.dumps(made, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"{where}: not JSON (nested too deep); restore the file") from None
    except ValueError as e:  # of JSON, of Unicode, of numbers with thousands of digits
        reason = e.reason if isinstance(e, UnicodeError) else e
        raise ValueError(f"{where}: not JSON ({reason}); restore the file") from e
    return made


def check(value: Any, schema: type[S], where: str) -> S:
    """``value`` as a ``schema``; ``where`` names its source in the ``ValueError`` otherwise."""
    try:
        return schema.model_validate(value)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        key = ".".join(map(_key, first["loc"]))
        found = "" if first["type"] == "missing" else f"{_short(first['input'])}: "
        more = f" (and {e.error_count() - 1} more)" if e.error_count() > 1 else ""
        name = f"{key}: " if key else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {name}{found}{message}{more}; restore the file") from e


@contextmanager
def open_archive(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """The zip archive ``path``, as `torch.save` and AOTInductor write them: nothing compressed.

    Raises:
        OSError: as `flowturbo.files.open_regular`.
        ValueError: if it is no such archive, unpacks to more than its own size, or holds names
            that lead elsewhere. An error while it is open becomes one that names ``path``.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                if sum(entry.file_size for entry in entries) > size:
                    raise ValueError("it unpacks to more than its size")
                for entry in entries:
                    if entry.filename.startswith("/") or ".." in entry.filename.split("/"):
                        raise ValueError(f"{printable(entry.filename[:60])!r} leads out of it")
                yield archive
        except (OSError, ValueError) as e:
            raise ValueError(f"{printable(str(path))}: {e}") from e
        except Exception as e:  # zipfile has a dozen words for a damaged archive
            reason = str(e) or type(e).__name__
            raise ValueError(f"{printable(str(path))}: damaged ({reason})") from e


def _check_depth(made: Any) -> None:
    level, depth = [made], 0
    while level := [value for value in level if isinstance(value, (dict, list))]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST}")
        level = [v for o in level for v in (o.values() if isinstance(o, dict) else o)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is given twice")
    return made


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not allowed")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not finite")
    return value


def _key(part: int | str) -> str:
    return printable(str(part)[:60])


def _short(value: Any, most: int = 60) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**most else "a number"
    return text if len(text) <= most else f"{text[:most]}..."
