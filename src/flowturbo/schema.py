"""The content of files, checked against a schema before anything is built from it.

A schema is a pydantic model derived from `Schema`: strict, so that ``"3"`` is not a number and
``3.5`` not a count, and without NaN or infinity. `read_json` and `check` turn the first error into
one line that names the file, the key, the value, what is allowed and what to do.

Sizes are checked before anything is parsed: JSON that would take more than `MOST_MEMORY` is
refused, and so is an archive that unpacks to more than its own size.
"""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from flowturbo.files import open_regular, printable

__all__ = [
    "MOST_BYTES",
    "Format",
    "Schema",
    "check",
    "load_json",
    "open_archive",
    "parse_json",
    "read_bytes",
    "read_json",
]

MOST_BYTES = 16 * 2**20  # of a JSON file; the largest card of the bundled models has 0.2 MB
MOST_MEMORY = 180 * 2**20  # bytes that it may take while it is parsed
DEEPEST = 64  # brackets within brackets

Json: TypeAlias = Any
"""A value in JSON."""

S = TypeVar("S", bound="Schema")


def _first(version: int) -> int:
    if version != 1:
        raise ValueError("this library reads version 1; update it, or write the file again")
    return version


Format = Annotated[int, AfterValidator(_first)]
"""The version of a file format; each format has only one so far."""


class Schema(BaseModel):
    """Base of all schemas; entries that a schema does not name are kept without checks."""

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


def load_json(path: str | Path, *, most_bytes: int = MOST_BYTES) -> Json:
    """The content of the JSON file ``path``; raises as `read_json`."""
    try:
        content = read_bytes(path, most_bytes)
    except OSError as e:
        raise ValueError(str(e)) from e
    return parse_json(content, printable(str(path)))


def read_bytes(path: str | os.PathLike[str], most_bytes: int = MOST_BYTES) -> bytes:
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


def parse_json(content: bytes | str, where: str, fix: str = "restore the file") -> Json:
    """``content`` as JSON, stricter than Python; ``where`` names its source in messages.

    Raises:
        ValueError: if it is not JSON in UTF-8, repeats a key of an object, contains NaN, a number
            that is not finite, half of a surrogate pair, brackets nested deeper than `DEEPEST`, or
            more values than fit in `MOST_MEMORY`.
    """
    try:
        raw = content.encode() if isinstance(content, str) else content
        if _memory(raw) > MOST_MEMORY:
            raise ValueError("too many values")
        made = json.loads(
            raw.decode(), object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite
        )
        _check_depth(made)
        if re.search(rb"\\u[dD][89a-fA-F]", raw):  # a pair is one character, a half is none
            json.dumps(made, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"{where}: not JSON (nested too deep); {fix}") from None
    except ValueError as e:  # of JSON, of Unicode, of numbers with thousands of digits
        reason = getattr(e, "reason", e)
        raise ValueError(f"{where}: not JSON ({reason}); {fix}") from e
    return made


def check(value: object, schema: type[S], where: str, fix: str = "restore the file") -> S:
    """``value`` as a ``schema``; else a ``ValueError`` that names ``where``, its source."""
    try:
        return schema.model_validate(value)
    except ValidationError as e:
        errors = "; ".join(map(_described, e.errors(include_url=False)[:2]))
        more = f" (and {e.error_count() - 2} more)" if e.error_count() > 2 else ""
        raise ValueError(f"{where}: {errors}{more}; {fix}") from None


@contextmanager
def open_archive(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """The zip archive ``path``, as `torch.save` and AOTInductor write them: nothing compressed.

    Raises:
        OSError: as `flowturbo.files.open_regular`.
        ValueError: if it is not such an archive, unpacks to more than its own size, or contains
            names that lead elsewhere. An error while it is open becomes one that names ``path``.
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
        except Exception as e:  # zipfile has a dozen errors for a damaged archive
            reason = str(e) or type(e).__name__
            raise ValueError(f"{printable(str(path))}: damaged ({reason})") from e


def _memory(raw: bytes) -> int:
    """The most memory that JSON can take: its text twice, numbers, strings and containers."""
    text = len(raw) * (2 if raw.isascii() else 5)
    each = {b",": 40, b'"': 40, b"[": 72, b"{": 120}
    return text + sum(raw.count(mark) * size for mark, size in each.items())


def _check_depth(made: object) -> None:
    level, depth = [made], 0
    while level := [value for value in level if isinstance(value, (dict, list))]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST}")
        level = [v for o in level for v in (o.values() if isinstance(o, dict) else o)]


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
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


_MESSAGES = {
    "dict_type": "must be an object",
    "extra_forbidden": "is not known",
    "list_type": "must be a list",
    "missing": "is missing",
    "model_type": "must be an object",
}


def _described(error: ErrorDetails) -> str:
    """An error: the key, the value, what is allowed."""
    key = ".".join(printable(str(part)[:60]) for part in error["loc"])
    value = _short(error["input"]) if key and error["type"] != "missing" else ""
    message = error["msg"].removeprefix("Value error, ")
    return ": ".join(part for part in (key, value, _MESSAGES.get(error["type"], message)) if part)


def _short(value: object, most: int = 60) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**most else "a number"
    return text if len(text) <= most else f"{text[:most]}..."
