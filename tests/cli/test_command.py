"""What every command refuses before it begins: options, paths, outputs that are inputs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowturbo.cli import main
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig

# of each command a call that would work, without its output
CALLS = {
    "generate": ["-m", "m", "1", "--plan", "E1"],
    "edit": ["i.png", "1", "--from", "0", "-m", "m"],
    "img2img": ["i.png", "1", "-m", "m"],
    "inpaint": ["i.png", "1", "--mask", "i.png", "-m", "m"],
    "remove": ["i.png", "--box", "0", "0", "2", "2", "-m", "m"],
    "train": ["--data", "images", "--size", "8", "--steps", "1"],
    "train-refiner": ["-m", "m", "--iterations", "1"],
    "tune": ["-m", "m", "--nfe", "2"],
    "evaluate": ["-m", "m", "-n", "10"],
    "benchmark": ["-m", "m", "--no-baselines"],
    "analyze": ["-m", "m"],
    "export": ["-m", "m"],
    "convert": ["c.pt"],
}
SUFFIX = {**dict.fromkeys(("generate", "edit", "img2img", "inpaint", "remove"), ".png"),
          "tune": ".json", "evaluate": ".json", "benchmark": ".json",
          "export": ".pt2"}  # fmt: skip


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command that is refused, in a folder with a model, and returns its one line."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=8, channels=1, patch=4, width=16, depth=1, heads=2, classes=2))
    save_folder("m", network, {"condition": {"kind": "class", "labels": ["0", "1"]}})
    Image.new("RGB", (8, 8), "white").save("i.png")
    Path("images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("images/a.png")
    Path("loop").symlink_to("loop")
    for name in ("file", "c.pt"):
        Path(name).write_text("x")

    def run(*arguments):
        before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
        with pytest.raises(SystemExit) as e:
            main([*arguments])
        said, errors = capsys.readouterr()
        assert e.value.code in (1, 2), errors
        assert said == ""
        assert errors.count("\n") == 1
        assert errors[:-1].isprintable()
        assert errors.startswith("flowturbo: error: ")
        assert len(errors) < 1100
        assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
        return errors

    return run


def outputs(command: str) -> dict[str, tuple[str, str]]:
    """Outputs that no command writes, and what it says of them."""
    suffix = SUFFIX.get(command, "")
    Path(f"device{suffix}").symlink_to("/dev/full")
    if suffix:
        Path(f"loop{suffix}").symlink_to(f"loop{suffix}")
    found = {
        "": "must not be empty",
        "  ": "must not be empty",
        "a\0b": "NUL",
        "x" * 300 + suffix: "at most 255 bytes",
        f"device{suffix}": "not a regular file" if suffix else "is not a folder",
        f"loop{suffix}": "leads to itself",
        f"file/x{suffix}": "cannot write",
        f"/proc/none/x{suffix}": "cannot write",
    }
    if suffix:
        Path(f"folder{suffix}").mkdir()
        if command != "generate":
            found |= {"x.txt": "is written as", f"folder{suffix}": "not a regular file"}
    else:
        found |= {"file": "is not a folder", "/dev/null": "is not a folder"}
    return found


@pytest.mark.parametrize("command", CALLS)
def test_outputs_that_cannot_be_written(refused, command):
    for out, message in outputs(command).items():
        assert message in refused(command, *CALLS[command], "-o", out)


REPLACED = {
    "the model": ["generate", "-m", "m", "1", "-o", "m"],
    "its card by a plan": ["tune", "-m", "m", "-o", "m/card.json"],
    "its card by a record": ["evaluate", "-m", "m", "-o", "m/card.json"],
    "its refiner's card": ["tune", "-m", "m", "--refiner", "r", "-o", "r/refiner.json"],
    "the weights converted": ["convert", "m/model.safetensors", "-o", "m"],
    "the plan": ["benchmark", "-m", "m", "--plan", "p.json", "-o", "p.json"],
    "the image": ["edit", "i.png", "1", "--from", "0", "-m", "m", "-o", "i.png"],
    "the mask": ["inpaint", "j.png", "1", "--mask", "i.png", "-m", "m", "-o", "i.png"],
    "the plan, by a link": ["benchmark", "-m", "m", "--plan", "p.json", "-o", "link.json"],
    "the pictures": ["train", "--data", "images", "-o", "images"],
}


@pytest.mark.parametrize("kind", REPLACED)
def test_outputs_that_are_inputs(refused, kind):
    Path("r").mkdir()
    Path("r/refiner.json").write_text("{}")
    Path("p.json").write_text("{}")
    Path("link.json").symlink_to("p.json")
    line = refused(*REPLACED[kind])
    assert "write to another place" in line or "write elsewhere" in line


def test_a_prompt_may_be_called_like_its_folder(tmp_path, monkeypatch, capsys, text_model):
    monkeypatch.chdir(tmp_path)
    for said in ("1 image, ", "1 image (1 existed already), "):
        with pytest.raises(SystemExit) as e:
            main(["generate", "-m", str(text_model), "tiger", "--plan", "E1", "-o", "tiger"])
        assert e.value.code == 0
        assert capsys.readouterr().out.startswith(said)


BAD = {
    "misspelt option": (["generate", "1", "--guidence", "2"], "Possible options: --", "--guidance"),
    "misspelt command": (["generte"], "Did you mean 'generate'"),
    "fraction": (["generate", "1", "--seed", "1.5"], "--seed", "'1.5'"),
    "exponent": (["generate", "1", "-n", "1e3"], "-n", "'1e3'"),
    "word": (["tune", "-m", "m", "--nfe=six"], "--nfe", "'six'"),
    "negative": (["generate", "-m", "m", "1", "-n", "-1"], "-n -1: must be at least 1"),
    "device": (["generate", "-m", "m", "1", "--device", "gpu"], "device='gpu'", "try cuda"),
    "dtype": (["export", "-m", "m", "--dtype", "int32"], "dtype='int32'", "float16"),
    "empty model": (["tune", "--model", ""], "--model '': must not be empty"),
    "empty plan": (["generate", "-m", "m", "1", "--plan="], "--plan '': must not be empty"),
    "empty name": (["models", ""], "NAME '': must not be empty"),
    "endless name": (["generate", "-m", "x" * 10_000, "1"], "at most 255 bytes"),
    "endless link": (["train", "--data", "loop", "-o", "r"], "--data 'loop'", "leads to itself"),
    "folder is a file": (
        ["tune", "-m", "m", "--cache-dir", "file"],
        "--cache-dir file",
        "not a folder",
    ),
    "no refiner": (["generate", "-m", "m", "1", "--refiner", "m"], "no refiner.json"),
    "refiner needed": (["generate", "-m", "m", "1", "--plan", "E2R1"], "give one with --refiner"),
    "range": (["tune", "-m", "m", "--guidance", "4-1"], "--guidance '4-1'"),
    "no scale": (["tune", "-m", "m", "--guidance", "nan"], "--guidance 'nan'"),
    "prompts": (["evaluate", "-m", "m", "--prompts", "images"], "--prompts images: cannot be read"),
    "no prompt": (["generate", "-m", "m"], "Missing argument", '"" is any'),
    "markup": (["generate", "-m", "m", "[red]1[/]"], "label '[red]1[/]'"),
    "escapes": (["generate", "-m", "m", "\x1b[31m\n\0"], r"label '\x1b[31m\n\x00'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_that_names_it(refused, kind):
    arguments, *messages = BAD[kind]
    line = refused(*arguments)
    for message in messages:
        assert message in line


def test_a_model_without_a_condition_needs_no_prompt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_folder("m", SiT(SiTConfig(size=8, channels=1, patch=4, width=16, depth=1, heads=2)), {})
    with pytest.raises(SystemExit) as e:
        main(["generate", "-m", "m", "-n", "2", "--plan", "E1", "-o", "a"])
    assert e.value.code == 0
    names = sorted(p.name for p in Path("a").glob("*.png"))
    assert names == [f"000{i}-unconditional-seed{i}.png" for i in range(2)]


def test_a_refiner_that_is_not_used_is_told(tmp_path, monkeypatch, capsys, digits):
    out = str(tmp_path / "a.png")
    with pytest.raises(SystemExit) as e:
        main(["generate", "-m", "digits", "7", "--plan", "E2", "--refiner", "digits", "-o", out])
    assert e.value.code == 0
    told = capsys.readouterr().err
    assert told == "flowturbo: warning: --refiner digits: not used, plan E2 has no R\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_protected_file_is_not_replaced(refused):
    Path("p.json").write_text("{}")
    Path("p.json").chmod(0o444)
    assert "write-protected" in refused("tune", "-m", "m", "-o", "p.json")


def test_an_interrupt_that_a_library_turns_into_an_error_is_one(refused, monkeypatch, capsys):
    """torch's functions may raise an error of their own in place of KeyboardInterrupt."""

    def load(*arguments, **options):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise TypeError("could not determine the shape") from None

    monkeypatch.setattr("flowturbo.cli.evaluate.load", load)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "-m", "m", "-n", "10", "--cache-dir", "kept"])
    assert end.value.code == 130
    said = capsys.readouterr().err
    assert said.startswith("flowturbo: stopped; the work done so far is in kept")
    assert len(said.splitlines()) == 1
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, ignored)
