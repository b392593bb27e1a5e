"""`flowturbo models`: what there is to draw with."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flowturbo.models.checkpoint import WEIGHTS, read_card
from flowturbo.models.zoo import bundled, find

__all__ = ["run"]


def run(
    name: Annotated[
        str | None, typer.Argument(help="A bundled name, a folder, or hf:owner/repo.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The card as it is.")] = False,
) -> None:
    """List the bundled models, or show the card of one.

    Example: flowturbo models digits
    """
    console = Console(soft_wrap=True)
    if name is None and not as_json:
        console.print(_overview())
        console.print("the card of one: flowturbo models NAME")
        return
    cards = {n: read_card(find(n)) for n in ([name] if name else bundled())}
    if as_json:
        print(json.dumps(cards[name] if name else cards, indent=1, ensure_ascii=False))
        return
    for n, card in cards.items():
        size = (find(n) / WEIGHTS).stat().st_size / 1e6
        title = f"{card.get('name', n)}: {card.get('description', '')} ({size:.1f} MB)"
        console.print(title, markup=False, highlight=False)
        for key, value in card.items():
            if key not in ("name", "description", "format"):
                console.print(f"  {key}: {_short(value)}", markup=False, highlight=False)


def _overview() -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "draws", "size", "condition", "default plan", "data licence"):
        table.add_column(column)
    for name in bundled():
        card = read_card(find(name))
        config, condition = card["config"], card.get("condition", {})
        table.add_row(
            name,
            card.get("description", ""),
            f"{config['size']}x{config['size']}x{config['channels']}",
            condition.get("kind", "none"),
            str(card.get("defaults", {}).get("plan", "")),
            card.get("data", {}).get("licence", ""),
        )
    return table


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, list):
        more = f" ... ({len(value)} in all)" if len(value) > 24 else ""
        return " ".join(str(v) for v in value[:24]) + more
    return str(value)
