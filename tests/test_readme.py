"""The README and the pages of docs/ say what is true: their Python runs, their commands stand."""

import re
import sys
from pathlib import Path

import pytest

import flowturbo as ft
from flowturbo.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))]
ENVIRONMENT = "python3.11 -m venv .venv && .venv/bin/pip install -c constraints.txt "
FIRST = (
    ENVIRONMENT
    + '. && .venv/bin/flowturbo generate "red apple" --style noto -n 8 --seed 0 -o apple.png'
)
TESTS = ENVIRONMENT + "-e '.[dev]' && .venv/bin/python -m pytest -n 2 --dist loadfile"


def test_there_is_code_to_run():
    assert {page.name for page in WITH_CODE} >= {
        "README.md",
        "index.md",
        "concepts.md",
        "speed-up-your-model.md",
    }


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_python_runs_in_the_order_of_the_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text("utf-8")
    names = {"__name__": "page"}
    for block in BLOCK.finditer(text):
        above = text[: block.start(1)].count("\n")
        code = compile("\n" * above + block[1], str(page), "exec")
        exec(code, names)


@pytest.mark.parametrize("command", [FIRST, TESTS])
def test_commands_stand_on_a_line_of_their_own(command):
    assert README.splitlines().count(command) == 1


def test_ci_takes_its_commands_from_the_readme():
    for script in ("run", "full"):
        text = (ROOT / ".ci" / script).read_text("utf-8")
        assert "README.md" in text
        assert "pip install -c constraints.txt -e" not in text


def test_table_of_plans_counts_right():
    text = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (`\S.*?) \|.*\| (\d+)(?:, and (\d+) (conditional|of the refiner))? \|$", text, re.M
    )
    assert len(rows) >= 10
    for written, model, others, kind in rows:
        for text in re.findall(r"`(.+?)`", written):
            expected = {"model": int(model), "conditional": 0, "refiner": 0}
            if others:
                expected["conditional" if kind == "conditional" else "refiner"] = int(others)
            assert ft.Plan.parse(text).nfe == expected, text


def shown_commands():
    """(command, options) of each ``flowturbo`` line shown in a bash block."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.M):
            for command in re.findall(r"(?:^|/)flowturbo (.+)$", block, re.MULTILINE):
                name, *rest = command.split()
                yield name, tuple(word for word in rest if word.startswith("-"))


@pytest.mark.parametrize(("command", "options"), sorted(set(shown_commands())))
def test_commands_shown_exist_with_their_options(command, options, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["flowturbo", command, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    words = set(re.findall(r"-[\w-]+", capsys.readouterr().out))
    assert end.value.code in (0, None)
    assert set(options) <= words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_linked_to_exist(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert page.name != "README.md" or links
    assert [link for link in links if not (page.parent / link).exists()] == []
