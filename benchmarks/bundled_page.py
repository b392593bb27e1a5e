"""Bundled plans compared with schedulers, from the records of `bundled.py`, as markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from passes_page import conditions, shown
from ratios import paired, table

ANY, COMMON = "any names", "common names"
ABOUT = (
    "Each bundled plan, with its refiner, and the best scheduler of diffusers at as many passes of "
    "the network: of all, at its best shift and grid, chosen on the test noise samples themselves. "
    "Names are drawn as the model knows them, many of them rare; common ones are those that people "
    "ask for first, a list of 48 in every style."
)
Record = dict[str, Any]


def section(records: Iterable[Record]) -> str:
    """The table of ``records``, of a model each."""
    rows, about = [], []
    for record in records:
        for prompts, part in record.items():
            model = part["conditions"]["model"]
            for name, entry in part["plans"].items():
                ratio, low, high = paired(entry["plan"], entry["scheduler"])
                rows.append([
                    model, prompts if len(record) > 1 else "all", f"`{name}`",
                    f"{entry['passes']}", shown(entry["plan"]), shown(entry["scheduler"]),
                    f"{ratio:.3f} ({low:.3f} to {high:.3f})",
                ])  # fmt: skip
            about.append(f"`{model}`, {prompts}: {conditions(part)}")
    head = ["model", "prompts", "plan", "passes", "RMSE of the plan", "of the best scheduler",
            "ratio (95 %)"]  # fmt: skip
    return "\n\n".join([ABOUT, table(head, rows), *about])
