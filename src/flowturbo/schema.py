"""What is read from a file, checked against a schema before anything is built from it.

A schema is a pydantic model derived from `Schema`: strict, so that ``"3"`` is no number and ``3.5``
no count, and without NaN or infinity. `read_json` and `check` turn the first thing that is wrong
into one line that names the file, the key, the value, what is allowed and what to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["MOST_BYTES", "Schema", "check", "read_json"]

MOST_BYTES = 64 * 2**20  # of a JSON file; the largest card of the bundled models has 0.2 MB

S = TypeVar("S", bound="Schema")


class Schema(BaseModel):
    """Base of all schemas; entries that a schema does not name are kept and not looked at."""

    model_config = ConfigDict(
        strict=True, extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def read_json(path: str | Path, schema: type[S], *, most_bytes: int = MOST_BYTES) -> S:
    """The JSON file ``path`` as a ``schema``.

    Raises:
        ValueError: if it is missing, larger than ``most_bytes``, not JSON in UTF-8, nested too
            deeply, or not of the schema; names the file, the key and the value.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise ValueError(f"{path}: {size} bytes, at most {most_bytes} are read")
        made = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ValueError(f"{path}: cannot be read ({e.strerror or e})") from e
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f"{path}: not JSON ({e}); restore the file") from e
    return check(made, schema, str(path))


def check(value: Any, schema: type[S], where: str) -> S:
    """``value`` as a ``schema``; ``where`` names its source in the ``ValueError`` otherwise."""
    try:
        return schema.model_validate(value)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        found = "" if first["type"] == "missing" else f"{_short(first['input'])}: "
        more = f" (and {e.error_count() - 1} more)" if e.error_count() > 1 else ""
        name = f"{key}: " if key else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {name}{found}{message}{more}; restore the file") from e


def _short(value: Any, most: int = 60) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**most else "a number"
    return text if len(text) <= most else f"{text[:most]}..."
