"""`flowturbo models`: the bundled models, and the card of one."""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flowturbo.cli.output import say, say_json, show
from flowturbo.models.checkpoint import WEIGHTS, read_card
from flowturbo.models.conditioning import Conditioning, TextCondition, conditioning_of
from flowturbo.models.model import plans_of
from flowturbo.models.tokenizer import short, words
from flowturbo.models.zoo import bundled, find
from flowturbo.plan import Plan
from flowturbo.types import JsonObject

__all__ = ["run"]


def run(
    name: Annotated[
        str | None,
        typer.Argument(help="A bundled name, a folder, or hf:owner/repo."),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", help="Print all names of one group of the model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """List the bundled models, or show the card of one and what it can generate.

    Example: flowturbo models digits
    """
    if name is not None and not name.strip():
        raise ValueError(f"NAME {name!r}: must not be empty")
    if group is not None and (name is None or as_json):
        raise ValueError(f"--group {short(group)}: give a model with it, and leave out --json")
    if name is None and not as_json:
        show(_overview())
        say("to show the card of one: flowturbo models NAME")
        return
    cards = {n: read_card(find(n)) for n in ([name] if name else bundled())}
    if as_json:
        say_json(cards[name] if name else cards)
        return
    for n, card in cards.items():
        about = conditioning_of(card.get("condition"), n)
        if group is not None:
            for line in _group(about.groups if about else {}, group, n):
                say(line)
            continue
        size = (find(n) / WEIGHTS).stat().st_size / 1e6
        title = f"{card.get('name', n)}: {card.get('description', '')} ({size:.1f} MB)"
        say(title)
        show(_card(card, about, find(n)))
        for line in _next_commands(n, about) if about else ():
            say(line)  # unbroken, to be copied


def _overview() -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "generates", "size", "condition", "default plan", "data licence"):
        table.add_column(column)
    for name in bundled():
        card = read_card(find(name))
        config, about = card["config"], conditioning_of(card.get("condition"))
        table.add_row(
            name,
            card.get("description", ""),
            f"{config['size']}x{config['size']}x{config['channels']}",
            about.kind if about else "none",
            str(card.get("defaults", {}).get("plan", "")),
            card.get("data", {}).get("licence", ""),
        )
    return table


def _card(card: JsonObject, about: Conditioning | None, home: Path) -> Table:
    """The card and its plans in two columns; names and styles in place of a vocabulary."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    rows = {k: _short(v) for k, v in card.items() if k not in ("name", "description", "format")}
    if isinstance(about, TextCondition):
        del rows["condition"]
        rows = {**_prompts(about), **rows}
    rows |= {f"plan {n}": _plan(p) for n, p in plans_of(home).items()}
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def _plan(plan: Plan) -> str:
    """Its evaluations, and its error next to that of the best classical solver."""
    count = f"{plan.nfe['model']} evaluations"
    if plan.nfe["conditional"]:
        count += f", {plan.nfe['conditional']} conditional"
    if plan.nfe["refiner"]:
        count += f", {plan.nfe['refiner']} of the refiner"
    if not {"error", "baseline"} <= plan.info.keys():
        return count
    own, baseline = plan.info["error"], plan.info["baseline"]
    tell = lambda e: f"{e['rmse']:.3f}, median {e['median']:.3f}"
    return f"{count}; error {tell(own)} ({baseline['name']}: {tell(baseline)})"


def _prompts(about: TextCondition) -> dict[str, str]:
    names, groups, tokenizer = about.names, about.groups, about.tokenizer
    rows = {"prompts": f"{len(tokenizer.whole)} known words, at most {tokenizer.length} tokens"}
    if about.styles:
        rows["styles"] = ", ".join(about.styles)
    if names:
        rows["names"] = f"{len(names)}" + f", in {len(groups)} groups:" * bool(groups)
    for group, members in groups.items():
        some = sorted(members[:: -(-len(members) // 6)], key=len)[:4]
        rows[f"  {group}"] = f"{len(members)}: {', '.join(sorted(some))}, ..."
    return rows


def _next_commands(name: str, about: Conditioning) -> list[str]:
    lines, names, name = [], about.names, shlex.quote(name)
    for group in [*about.groups][:1]:
        lines.append(f"all names of a group: flowturbo models {name} --group {_slug(group)}")
    if names:
        style = "".join(f" --style {s}" for s in about.styles[:1])
        example = shlex.quote(str(names[len(names) // 4]))
        lines.append(f"generate: flowturbo generate -m {name} {example}{style} -n 8")
    return lines


def _group(groups: dict[str, list[str]], wanted: str, model: str) -> list[str]:
    """The names of the group that begins with ``wanted``."""
    slugs = {_slug(g): names for g, names in groups.items()}
    if not slugs:
        raise ValueError(f"--group {short(wanted)}: model {model!r} has no groups")
    slug = _slug(wanted)
    found = [slug] if slug in slugs else [s for s in slugs if s.startswith(slug)]
    if len(found) != 1:
        near = get_close_matches(slug, slugs, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"--group {short(wanted)}: {hint}groups: {', '.join(slugs)}")
    return slugs[found[0]]


def _slug(group: str) -> str:
    return "-".join(words(group))


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    if isinstance(value, list):
        more = f" ... ({len(value)} in all)" if len(value) > 24 else ""
        return " ".join(str(v) for v in value[:24]) + more
    return str(value)
