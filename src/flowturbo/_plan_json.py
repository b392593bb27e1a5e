"""Plans as JSON that a person can read: one row a line, lines short, floats exact."""

from __future__ import annotations

import json
import textwrap
from typing import Any

__all__ = ["VERSION", "dumps", "loads"]

VERSION = 1
REQUIRED = {"name", "times", "evaluators", "weights", "info"}
LISTS = ("times", "told", "evaluators", "previous")  # told and previous only where they differ


def dumps(plan: dict[str, Any]) -> str:
    """The arguments of a plan, ``weights`` as rows of the lower triangle, as JSON."""
    lines = ["{", f'  "version": {VERSION},', f'  "name": {json.dumps(plan["name"])},']
    lines += [_list(f'  "{key}": ', plan[key]) + "," for key in LISTS if key in plan]
    rows = ",\n".join(_list("    ", row) for row in plan["weights"])
    lines += [f'  "weights": [\n{rows}\n  ],']
    info = json.dumps(plan["info"], indent=2).replace("\n", "\n  ")
    return "\n".join([*lines, f'  "info": {info}', "}"]) + "\n"


def _list(head: str, values: list[Any]) -> str:
    text = json.dumps([value or 0 for value in values])
    indent = " " * (len(head) - len(head.lstrip()) + 2)
    return textwrap.fill(
        text, 100, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
    )


def loads(text: str) -> dict[str, Any]:
    """The arguments of a plan, from what ``dumps`` wrote.

    Raises:
        ValueError: one line, if the text is anything else.
    """
    try:
        data = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("brackets nested too deep") from None
    if not isinstance(data, dict):
        raise ValueError(f"a JSON object was expected, not {type(data).__name__}")
    version = data.pop("version", None)
    if version != VERSION:
        raise ValueError(f"version {version!r}: this library reads version {VERSION}")
    missing = sorted(REQUIRED - data.keys())
    unknown = sorted(data.keys() - REQUIRED.union(LISTS))
    if missing or unknown:
        raise ValueError(f"missing keys {missing}, unknown keys {unknown}")
    for key in (*LISTS, "weights"):
        if not isinstance(data.get(key, []), list):
            raise ValueError(f"{key} must be a list")
    rows = data["weights"]
    for k, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != k + 1:
            raise ValueError(f"weights[{k}] must be a list of {k + 1} numbers")
    data["weights"] = [[*row, *[0.0] * (len(rows) - len(row))] for row in rows]
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)
