"""What commands print: narrow and ASCII terminals, closed pipes, full disks, user text."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings

import pytest
from rich.table import Table

from flowturbo.cli import main, output
from flowturbo.cli.command import Command
from flowturbo.cli.output import say, show


class Narrow(io.TextIOWrapper):
    """A stream in an encoding, kept in memory."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as e:
        main([*arguments])
    return e.value.code


@pytest.fixture
def table() -> Table:
    made = Table("plan", "error", "conditions", title="Plans of [red]m[/] at guidance 2")
    made.add_row("fitted 6", "0.0404 [0.0385, 0.0425]", "guidance 2, float32, :apple:")
    made.add_row("AB2:6@1.6", "", "\x1b[31mguidance 2, float32")
    return made


@pytest.mark.parametrize("width", [10, 20, 40, 60, 200])
def test_tables_can_be_read_at_any_width(table, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    show(table)
    shown = capsys.readouterr().out
    assert all(len(line) <= width for line in shown.splitlines())
    assert "…" not in shown
    assert "\x1b" not in shown
    if width >= 20:
        for word in ("[red]m[/]", "0.0404", "AB2:6@1.6", "float32", ":apple:", "\\x1b[31m"):
            assert word in shown
    assert ("plan: fitted 6" in shown) == (width <= 60) or width == 10  # words are not broken


def test_cards_can_be_read_at_20_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    assert run("models") == 0
    shown = capsys.readouterr().out
    assert "name: digits" in shown
    assert "size: 32x32x1" in shown
    assert all(len(line) <= 20 for line in shown.splitlines() if "flowturbo" not in line)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding(encoding, monkeypatch):
    stream = Narrow(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert run("models", "emoji", "--json") == 0
    assert json.loads(stream.text())["name"] == "emoji"
    assert run("models", "emoji") == 0
    assert run("models") == 0


def test_ctrl_c_before_a_command_begins_is_one_line(monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Command, "make_context", interrupted)
    assert run("models") == 130
    assert capsys.readouterr().err == "flowturbo: stopped\n"


def test_a_picture_with_a_name_that_cannot_be_printed(tmp_path):
    out = tmp_path / "b\xe4d \U0001f34e.png"
    script = "from flowturbo.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "generate", "-m", "digits", "7", "--plan", "E1", "-o", out],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rb"b\xe4d \U0001f34e.png" in done.stdout
    assert out.is_file()


class Broken(io.TextIOBase):
    """A stream whose reader has gone, or whose disk is full."""

    encoding = "utf-8"

    def __init__(self, error: OSError) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_a_closed_pipe_ends_the_output_quietly(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(32, "Broken pipe")))
    assert run("models") == 0
    assert run("models", "digits", "--json") == 0
    assert capsys.readouterr().err == ""


def test_a_full_disk_under_the_output_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    assert run("models") == 1
    line = "flowturbo: error: standard output cannot be written: No space left on device\n"
    assert capsys.readouterr().err == line


def test_no_output_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run("models", "digits") == 0
    assert run("models", "none") == 2


def test_into_a_pipe_that_closes(tmp_path):
    """As the shell does it, with the buffer that python flushes when it ends."""
    command = [sys.executable, "-m", "flowturbo", "models", "emoji", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(10) == b'{\n "format'
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_warning_that_is_an_error_is_one_line(text_model, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = str(tmp_path / "a.png")
        assert run("generate", "-m", str(text_model), "red aple", "-o", out) == 1
    error = capsys.readouterr().err
    assert error.startswith("flowturbo: error: a warning, and warnings are errors here: prompt")
    assert error.count("\n") == 1


def test_no_colour(monkeypatch, table):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    table.columns[0].style = "bold red"
    for no_color, escapes in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr(sys, "stdout", Terminal())
        show(table)
        assert ("\x1b[" in sys.stdout.getvalue()) == escapes


def test_lines_are_printable(capsys):
    say("a\x1b[31m\udcff\n[red]b[/]")
    assert capsys.readouterr().out == "a\\x1b[31m\\udcff\\n[red]b[/]\n"
    output.tell("a\nb")
    assert capsys.readouterr().err == "flowturbo: a b\n"
