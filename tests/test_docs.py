"""The documents name what exists."""

from __future__ import annotations

import json
import pkgutil
import re
from collections import defaultdict
from pathlib import Path

import pytest
import typer

import flowturbo as ft
from flowturbo.cli import app

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/\S+?)::(\w+)`", (ROOT / "docs/reliability.md").read_text("utf-8"))


def test_promises_name_tests():
    assert len(NAMED) > 30


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_a_test_that_shows_a_promise_is_there(path, name):
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.M)


# -- docs/paper.md ------------------------------------------------------------------------------

PAPER = (ROOT / "docs/paper.md").read_text("utf-8")
SPANS = sorted(
    set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", PAPER, flags=re.M | re.S)))
)
FILES = [span for span in SPANS if re.fullmatch(r"[\w-]+(/[\w.-]+)+(::\w+)?", span)]
NAMES = [span for span in SPANS if re.fullmatch(r"flowturbo(\.\w+)+", span)]
COMMANDS = [span for span in SPANS if re.match(r"flowturbo \w|python benchmarks/", span)]
MEASURED = "".join((ROOT / f"docs/{page}.md").read_text("utf-8") for page in ("results", "speed"))


def test_the_page_of_the_paper_names_things():
    assert min(len(FILES) / 30, len(NAMES) / 5, len(COMMANDS) / 5) > 1


@pytest.mark.parametrize("named", FILES)
def test_a_file_that_the_page_of_the_paper_names_is_there_and_defines_the_name(named):
    path, _, name = named.partition("::")
    assert (ROOT / path).exists()
    if name:
        defined = rf"^\s*(?:def|class) {name}\b|^{name}\b.*="
        assert re.search(defined, (ROOT / path).read_text("utf-8"), re.M)


@pytest.mark.parametrize("named", NAMES)
def test_a_name_of_the_page_of_the_paper_is_there(named):
    assert pkgutil.resolve_name(named) is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_of_the_paper_has_its_options(command):
    program, name, *words = command.split()
    options = {word for word in words if word.startswith("-")}
    if program == "flowturbo":
        parameters = typer.main.get_command(app).commands[name].params
        known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
        if f"`{command}` |" in PAPER:  # whole, not the part that the text speaks of
            needed = [p for p in parameters if p.required and p.param_type_name == "option"]
            assert all(options & {*p.opts} for p in needed)
    else:
        text = (ROOT / name).read_text("utf-8")
        if "from bench import" in text:
            text += (ROOT / "benchmarks/bench.py").read_text("utf-8")
        known = set(re.findall(r'"(--?\w[\w-]*)"', text))
        assert all((ROOT / word).exists() for word in words if word.startswith("src/"))
    assert options <= known


def test_the_page_of_the_paper_counts_the_evaluations_of_plans():
    rows = re.findall(r"^\| `([HPR\d]+)` \| (\d+) \| (\d+) \| (\d+) \|", PAPER, re.M)
    assert len(rows) == 9
    for text, intervals, model, refiner in rows:
        plan = ft.Plan.parse(text)
        assert plan.nfe == {"model": int(model), "conditional": 0, "refiner": int(refiner)}
        assert len(set(plan.times)) == int(intervals) + 1


def paper_tables():
    """(heads, cells) of each row of the page."""
    heads: list[str] = []
    for line in PAPER.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and heads:
            yield heads, cells
        heads = (heads or cells) if cells else []


def measured(found, errors):
    """The errors in a record, as they are printed, by plan without its grid."""
    for part in found.values() if isinstance(found, dict) else ():
        measured(part, errors)
    if isinstance(found, dict) and {"plan", "rmse"} <= found.keys():
        errors[found["plan"].split("@")[0]].add(f"{found['rmse']:.4f}")


@pytest.mark.parametrize("model", ["digits", "emoji"])
def test_the_page_of_the_paper_has_the_errors_of_plans_in_the_records(model):
    errors: dict[str, set[str]] = defaultdict(set)
    for kind in ("ablations", "method"):
        record = (ROOT / f"benchmarks/records/{kind}-{model}.json").read_text("utf-8")
        measured(json.loads(record), errors)
    shown = [
        (plan[1], cell)
        for heads, cells in paper_tables()
        if (plan := re.match(r"`([\w:]+)`", cells[0]))
        for head, cell in zip(heads, cells, strict=True)
        if head.startswith(f"`{model}`") and re.fullmatch(r"0\.\d{4}", cell)
    ]
    assert len(shown) > 20
    assert [(plan, error) for plan, error in shown if error not in errors[plan]] == []


def test_the_page_of_the_paper_has_the_figures_of_the_records():
    """A figure of ours stands on a page that `benchmarks/make_results` makes of the records."""
    text = [line for line in PAPER.splitlines() if not line.startswith("|")]
    for heads, cells in paper_tables():
        text += [c for h, c in zip(heads, cells, strict=True) if "the paper's" not in h]
    text = [re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv \S+", " ", part) for part in text]
    number = r"[+-]?\d+\.\d+(?: %)?"
    numbers = {n for part in text for n in re.findall(number, part)}
    assert len(numbers) > 50
    assert numbers <= set(re.findall(number, MEASURED))
