"""`flowturbo generate` and `models` with a text model: styles, sheets, prompts of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.cli.options import DEFAULT_MODEL
from flowturbo.models.zoo import bundled


@pytest.fixture
def run(text_model, tmp_path, monkeypatch, capsys):
    """Runs a command with the text model in an empty folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments):
        model = ["-m", text_model] if command == "generate" else [text_model]
        with pytest.raises(SystemExit) as e:
            main([str(a) for a in (command, *model, *arguments)])
        return e.value.code, *capsys.readouterr()

    return run


def test_default_model_is_bundled():
    assert DEFAULT_MODEL in bundled()


def test_style(run, text_model):
    assert run("generate", "red apple", "--style", "noto", "-n", 2, "-o", "a")[0] == 0
    names = [f"000{i}-red-apple-noto-style-seed{i}.png" for i in range(2)]
    assert sorted(p.name for p in Path("a").glob("*.png")) == names
    picture = Image.open(f"a/{names[0]}")
    assert picture.text["condition"] == "red apple, noto style"
    said = ft.generate(ft.load(text_model), ["red apple"], style="noto")[0]
    assert abs(np.asarray(picture.reduce(16), int) - np.asarray(said, int)).max() <= 1


def cells(file: str) -> tuple[int, int]:
    """Columns and rows of a sheet of 8 x 8 pictures at scale 1."""
    width, height = Image.open(file).size
    return (width - 2) // 10, (height - 2) // 10


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (["tiger", "-n", 3], (3, 1)),
        (["tiger", "-n", 20], (8, 3)),
        (["tiger", "pizza", "-n", 3], (3, 2)),
        (["tiger", "pizza", "-n", 10], (10, 2)),
        (["tiger", "pizza", "octopus"], (3, 1)),
        (["tiger", "--style", "fx", "--style", "noto", "-n", 4], (4, 2)),
        (["tiger", "pizza", "octopus", "--style", "fx", "--style", "noto"], (2, 3)),
        (["tiger", "pizza", "-n", 3, "--columns", 6], (6, 1)),
        (["tiger", "pizza", "-n", 20], (8, 5)),
    ],
)
def test_a_row_for_each_prompt(run, arguments, shape):
    assert run("generate", *arguments, "--scale", 1, "-o", "a.png")[0] == 0
    assert cells("a.png") == shape


REFUSED = {
    "unknown style": (["tiger", "--style", "nto"], "did you mean noto? styles: noto, fluent,"),
    "two styles": (["tiger, fx style", "--style", "noto"], "asks for fx itself"),
    "typo": (["aple"], "red apple, green apple"),
    "typo in a style": (["tigre", "--style", "noto"], "closest known: tiger"),
    "one of several": (["tiger", "zzqx", "-n", "2"], "'zzqx': no word of it is known"),
    "long": (["x" * 10_000], "at most 1000"),
    "tokens": (["red apple " * 5], "10 tokens, the model reads 8"),
    "emoji": (["\U0001f9ff"], "no word of it is known"),
    "Chinese": (["苹果"], "no word of it is known"),
    "Arabic": (["تفاحة"], "no word of it is known"),
    "Cyrillic": (["яблоко"], "no word of it is known"),
    "Japanese": (["りんご"], "no word of it is known"),
    "escape": (["\x1b[2Jzzqx\x07\n\x00"], r"'\x1b[2Jzzqx\x07\n\x00'"),
    "surrogate": (["\udcff\u202e"], r"'\udcff\u202e'"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("out", ["a.png", "folder"])
def test_refused_in_one_line_and_leaves_nothing(run, kind, out):
    arguments, message = REFUSED[kind]
    ways = [arguments] if "--style" in arguments else [arguments, ["", "--negative", arguments[-1]]]
    for way in ways if kind != "one of several" else [arguments]:
        status, said, errors = run("generate", *way, "-o", out)
        assert status == 2
        assert said == ""
        assert errors.startswith("flowturbo: error: ")
        assert message in errors
        assert errors.endswith("\n")
        assert errors[:-1].isprintable()
        assert os.listdir() == []


def test_unknown_words_are_told_in_one_line(run):
    status, said, errors = run("generate", "red aple", "-n", 3, "-o", "a.png")
    assert status == 0
    assert "3 images" in said
    assert errors.splitlines() == [
        "flowturbo: warning: prompt words not known: 'aple'; closest known: maple leaf, red apple, "
        "green apple"
    ]


ODD = {
    "\U0001f34e": ("\U0001f34e", "picture"),
    "": ("", "unconditional"),
    "  ": ("  ", "unconditional"),
    "red apple, تفاحة 苹果": ("red apple, تفاحة 苹果", "red-apple-تفاحة-苹果"),
    "../red/apple\x00\n\x85\x1b[0m\udcff": (r"../red/apple\x00\n\x85\x1b[0m\udcff", "red-apple-0m"),
    "\u202ered apple\u200f": (r"\u202ered apple\u200f", "red-apple"),
    "tiger " + "苹" * 200: ("tiger " + "苹" * 200, "tiger-" + "苹" * 34),
}


@pytest.mark.filterwarnings("ignore:prompt words")
@pytest.mark.parametrize("prompt", ODD, ids=lambda p: ascii(p[:20]))
def test_files_and_metadata_of_odd_prompts(run, prompt):
    condition, slug = ODD[prompt]
    assert run("generate", prompt, "--negative", prompt, "-o", "folder")[0] == 0
    assert [p.name for p in Path("folder").glob("*.png")] == [f"0000-{slug}-seed0.png"]
    assert run("generate", prompt, "pizza", "-o", "sheet.png")[0] == 0
    text = Image.open(f"folder/0000-{slug}-seed0.png").text
    assert text["condition"] == text["negative"] == condition
    assert json.loads(Image.open("sheet.png").text["condition"]) == [condition, "pizza"]


def test_what_argv_holds_when_it_is_no_utf8(text_model, tmp_path):
    """Undecodable bytes come in as unpaired surrogates, and do not come out."""
    script = "from flowturbo.cli import main; main()"
    for prompt, status in ((b"red \xff\x1b[1m apple", 0), (b"\xff\x1b[1m", 2)):
        done = subprocess.run(
            [sys.executable, "-c", script, "generate", "-m", str(text_model), prompt],
            cwd=tmp_path, capture_output=True,
        )  # fmt: skip
        assert done.returncode == status
        assert b"Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not {b"\xff", b"\x1b"} & {bytes([c]) for c in done.stderr + done.stdout}


def test_models_shows_what_it_draws(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, said, _ = run("models")
    assert status == 0
    for part in ("noto, fluent, flat, fx", "9, in 3 groups", "Food & Drink", "pizza", "--style"):
        assert part in said
    assert "##s" not in said
    assert all(len(line) <= 80 for line in said.splitlines() if "flowturbo" not in line)


def test_models_lists_a_group(run):
    for group in ("food", "Food & Drink", "food-drink"):
        status, said, _ = run("models", "--group", group)
        assert status == 0
        assert said.splitlines() == ["red apple", "green apple", "pizza"]


@pytest.mark.parametrize("group", ["fod", "", "x\x1b", "z" * 10_000])
def test_models_refuses_other_groups(run, group):
    status, said, errors = run("models", "--group", group)
    assert (status, said) == (2, "")
    assert errors.count("\n") == 1
    assert errors[:-1].isprintable()
    assert "groups: animals-nature, food-drink, other" in errors
    assert len(errors) < 300
    assert ("did you mean food-drink?" in errors) == (group == "fod")
