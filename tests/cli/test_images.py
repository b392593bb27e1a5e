"""`flowturbo generate` into a folder: written as drawn, stopped at any moment, gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interruption import KILLS, interrupted
from PIL import Image

from flowturbo.cli import generate as command
from flowturbo.cli import main
from flowturbo.files import exclusive
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig

FEW = ["1", "-n", "5", "--batch", "2", "--plan", "E2", "--scale", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=8, channels=1, patch=4, width=16, depth=1, heads=2, classes=2))
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3)
    folder = tmp_path_factory.mktemp("model")
    save_folder(folder, network, {"condition": {"kind": "class", "labels": ["0", "1"]}})
    return folder


@pytest.fixture
def run(model, tmp_path, monkeypatch, capsys):
    """Runs `generate` in an empty folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as e:
            main(["generate", "-m", str(model), *map(str, arguments)])
        return e.value.code, *capsys.readouterr()

    return run


def pictures(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).glob("[!.]*.png"))}


def stop_after(monkeypatch, batches: int, error: BaseException) -> list[int]:
    """From now on ``error`` is raised after so many batches; the seeds of those drawn."""
    real, drawn = command.generate, []

    def stopped(*arguments, **options):
        if len(drawn) == batches:
            raise error
        drawn.append(options["seed"])
        return real(*arguments, **options)

    monkeypatch.setattr(command, "generate", stopped)
    return drawn


def test_interrupted_it_keeps_what_is_drawn_and_goes_on_to_the_same_bytes(run, monkeypatch):
    assert run(*FEW, "-o", "whole")[0] == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        status, said, errors = run(*FEW, "-o", "some")
    assert (status, said) == (130, "")
    assert errors == "flowturbo: stopped; 4 images are in some; the same command resumes\n"
    assert len(pictures("some")) == 4
    drawn = stop_after(monkeypatch, 9, KeyboardInterrupt())
    status, said, errors = run(*FEW, "-o", "some")
    assert (status, errors) == (0, "")
    assert said.startswith("5 images (4 existed already), 2 model evaluations each, ")
    assert drawn == [4]
    assert pictures("some") == pictures("whole")
    assert run(*FEW, "-o", "some")[1].startswith("5 images (5 existed already)")
    assert drawn == [4]


def test_more_of_one_prompt_are_those_of_one_run(run):
    assert run(*FEW, "-n", 7, "-o", "whole")[0] == 0
    assert run(*FEW, "-o", "some")[0] == 0
    assert run(*FEW, "-n", 7, "-o", "some")[1].startswith("7 images (4 existed already)")
    assert pictures("some") == pictures("whole")


def test_a_damaged_picture_is_drawn_again(run):
    assert run(*FEW, "-o", "a")[0] == 0
    whole = pictures("a")
    name = "0001-1-seed1.png"
    for damaged in (whole[name][:-20], b"", b"x" + whole[name][1:], flipped(whole[name])):
        Path("a", name).write_bytes(damaged)
        assert run(*FEW, "-o", "a")[0] == 0
        assert pictures("a") == whole


def flipped(data: bytes) -> bytes:
    i = data.index(b"IDAT") + 12
    return data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]


OTHER = {
    "guidance": ["--guidance", "2"], "plan": ["--plan", "E3"], "seed": ["--seed", "1"],
    "prompts": ["0"], "scale": ["--scale", "2"], "batch": ["--batch", "3"],
    "negative": ["--negative", "0"], "dtype": ["--dtype", "bfloat16"],
}  # fmt: skip


@pytest.mark.parametrize("key", OTHER)
def test_other_options_are_refused_by_name(run, key):
    assert run(*FEW, "-o", "a")[0] == 0
    before = pictures("a")
    status, said, errors = run(*FEW, *OTHER[key], "-o", "a")
    assert (status, said) == (2, "")
    assert f"{key}=" in errors
    assert errors.count("\n") == 1
    assert pictures("a") == before


def test_pictures_of_others_are_not_replaced(run):
    Path("a").mkdir()
    Image.new("L", (8, 8)).save("a/0001-1-seed1.png")
    before = pictures("a")
    status, _, errors = run(*FEW, "-o", "a")
    assert status == 2
    assert "a/0001-1-seed1.png was generated with" in errors
    assert pictures("a") == before


def test_one_run_at_a_time(run):
    with exclusive("a"):
        status, _, errors = run(*FEW, "-o", "a")
    assert status == 2
    assert "a is in use by another run" in errors
    assert pictures("a") == {}


def test_a_refused_scale_of_guidance_does_not_claim_the_folder(run):
    status, _, errors = run(*FEW, "--guidance", "1e38", "-o", "a")
    assert status == 2
    assert "not finite" in errors
    assert run(*FEW, "-o", "a")[0] == 0


def test_a_sheet_that_is_interrupted_says_how_to_keep_pictures(run, monkeypatch):
    stop_after(monkeypatch, 1, KeyboardInterrupt())
    status, _, errors = run(*FEW, "-o", "a.png")
    assert status == 130
    assert errors.startswith("flowturbo: stopped; nothing was written; with a folder (-o FOLDER)")
    assert os.listdir() == []


def test_a_full_disk_keeps_what_is_written(model, tmp_path):
    """The first picture fits, and the options; the larger second does not."""
    script = """
import resource, sys
from flowturbo.cli import images, main
save, saved = images.save_png, []
def full(*arguments, **options):
    if saved:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
    saved.append(save(*arguments, **options))
images.save_png = full
main(sys.argv[1:])
"""
    arguments = ["generate", "-m", str(model), *FEW, "-o", "a"]
    shown = dict(cwd=tmp_path, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", script, *arguments], **shown)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot write a/0001-1-seed1.png: File too large" in line
    assert line.endswith("1 images are in a; the same command resumes")
    assert sorted(os.listdir(tmp_path / "a")) == [".lock", "0000-1-seed0.png", "options.json"]
    assert json.loads((tmp_path / "a" / "options.json").read_text())["generate"]["seed"] == 0


def test_a_disk_too_full_for_a_sheet_is_told_before_drawing(run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    drawn = stop_after(monkeypatch, 9, KeyboardInterrupt())
    status, _, errors = run(*FEW, "-o", "a.png")
    assert status == 1
    assert "the images need" in errors
    assert drawn == []
    assert os.listdir() == []


def many(model, out, n: int) -> list:
    return ["generate", "-m", model, "1", "-n", n, "--batch", 2, "--plan", "E8", "-o", out]


def check_stopped(model, folder, n: int, **stops: int) -> None:
    """Killed, interrupted and run twice, a folder ends as one that was drawn at once."""
    every = {how: (many(model, folder / how, n), times) for how, times in stops.items()}
    found = interrupted(many(model, folder / "once", n), every)
    whole = pictures(folder / "once")
    assert len(whole) == n
    for how, ends in found.items():
        assert pictures(folder / how) == whole
        said = [text for code, text in ends.stopped if code not in (0, -9)]
        told = "in use by another run" if how == "twice" else "flowturbo: stopped"
        assert all(told in text for text in said), said
        assert how == "twice" or ends.killed


def test_stopped_at_any_moment(model, tmp_path):
    check_stopped(model, tmp_path, 40, SIGKILL=3, SIGINT=3, twice=1)


@pytest.mark.slow
def test_stopped_at_many_moments(model, tmp_path):
    check_stopped(model, tmp_path, 200, **dict.fromkeys(("SIGKILL", "SIGINT", "twice"), KILLS))
