"""`flowturbo train` tells what it trains on, and all of it can be drawn afterwards."""

from __future__ import annotations

from unicodedata import normalize

import pytest
from PIL import Image

import flowturbo as ft
from flowturbo.cli import main

TINY = "--size 4 --patch 2 --width 8 --depth 1 --heads 1 --steps 1 --batch 2 --preview-every 0"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as e:
        main([*map(str, arguments)])
    return int(e.value.code or 0)


def test_what_is_trained_on_is_told_and_can_be_drawn(tmp_path, capsys):
    nfd = normalize("NFD", "café")
    for label in ("A", "a", nfd, "dog/big one"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / label / "1.png")
    (tmp_path / "data/.DS_Store").write_bytes(b"")
    flags = [*TINY.split(), "--no-compile", "--no-bf16"]
    assert run("train", "--data", tmp_path / "data", "-o", tmp_path / "run", *flags) == 0
    told = capsys.readouterr().out.splitlines()[0]
    assert told == "4 images, 4 classes: A, a, café, dog/big one; left out: .DS_Store"
    model = ft.load(tmp_path / "run")
    assert model.condition(["A", "a", nfd, "café", "dog/big one"]).tolist() == [0, 1, 2, 2, 3]
    assert len(ft.generate(model, model.names, plan="E1", guidance=1.0)) == 4


def test_a_run_does_not_write_into_its_data(tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    assert run("train", "--data", tmp_path, "-o", tmp_path / "run", *TINY.split()) == 2
    assert "in the data" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["1.png"]
