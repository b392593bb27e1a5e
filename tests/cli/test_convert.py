"""`flowturbo convert`: what does not fit is refused with the options that do."""

from __future__ import annotations

import argparse

import pytest
import torch

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.models import sit_config
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner


@pytest.fixture
def small(monkeypatch):
    """Networks of the size "S" that are small enough to be filled."""
    monkeypatch.setitem(sit_config.SIZES, "S", (32, 2, 2))
    return SiTConfig.named("S/2", size=8, classes=3)


def _run(*arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(["convert", *map(str, arguments)])
    return end.value.code or 0, capsys.readouterr().err


def test_the_options_that_are_named_convert_it(small, tmp_path, capsys):
    network, source, out = SiT(small), tmp_path / "0005000.pt", tmp_path / "out"
    state = {f"module.{name}": p for name, p in network.state_dict().items()}
    torch.save({"ema": state, "args": argparse.Namespace(model="SiT-S/2")}, source)
    code, error = _run(source, "-o", out, capsys=capsys)
    fix = "-a S/2 --size 8 --classes 3"
    assert code == 2
    assert f"{source}: another architecture" in error
    assert error.endswith(f"; pass {fix}\n")
    assert not out.exists()
    assert _run(source, "-o", out, *fix.split(), capsys=capsys) == (0, "")
    assert ft.load(out).card["source"] == "0005000.pt"
    torch.save(PaperRefiner.from_model(network).network.state_dict(), source)
    code, error = _run(source, "-o", tmp_path / "other", *fix.split(), capsys=capsys)
    assert code == 2
    assert error.endswith("; pass --refiner\n")
    code, error = _run(source, "-o", out, "-a", "B/2", "--refiner", capsys=capsys)
    assert error.endswith(f"; pass {fix}\n")
    assert _run(source, "-o", out, "--refiner", *fix.split(), capsys=capsys) == (0, "")
    assert ft.load_refiner(out, ft.load(out)).kind == "paper"
