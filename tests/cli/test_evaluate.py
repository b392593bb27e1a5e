"""`flowturbo evaluate`: a record, a table, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest

from flowturbo.cli import evaluate as command
from flowturbo.cli import main

FEW = ["-n", "10", "--steps", "8", "--repeats", "0", "--no-features", "--device", "cpu"]


def _run(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *map(str, arguments)])
    return end.value.code or 0


def test_records_side_by_side(text_model, tmp_path, capsys):
    one, two, prompts = tmp_path / "one.json", tmp_path / "two.json", tmp_path / "prompts.txt"
    prompts.write_text("red apple\n\ntiger\n", encoding="utf-8")
    shared = ["-m", text_model, *FEW, "--prompts", prompts, "--cache-dir", tmp_path / "kept"]
    assert _run(*shared, "--plan", "E3", "-o", one) == 0
    assert _run(*shared, "--plan", "AB2:2", "-g", "2", "-o", two, "--compare-with", one) == 0
    shown = capsys.readouterr().out
    assert "E3" in shown.split("->")[-2]
    assert "AB2:2" in shown
    assert "reference" in shown
    record = json.loads(two.read_text("utf-8"))
    assert record["conditions"]["plan"] == "AB2:2"
    assert record["evaluations"] == {"model": 2, "conditional": 0, "refiner": 0}
    again = two.read_bytes()
    assert _run(*shared, "--plan", "AB2:2", "-g", "2", "-o", two) == 0
    assert two.read_bytes() == again


def test_bad_input_is_one_line(text_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    (tmp_path / "not.json").write_text("{}", encoding="utf-8")
    for arguments, message in (
        (["-n", "3"], "num_images=3: must be a whole number from 10"),
        (["-o", "record.txt"], "-o record.txt: a record is written as .json"),
        (["--compare-with", tmp_path / "not.json"], "not a record of `flowturbo evaluate`"),
        (["--compare-with", tmp_path / "none.json"], "none.json"),
        (["--prompts", tmp_path / "none.txt"], "none.txt"),
        (["--fid"], "torch_fidelity is missing"),
        (["--plan", "H0"], "H0"),
    ):
        assert _run("-m", text_model, *FEW, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_records_of_other_images_are_refused_before_any_is_generated(
    text_model, tmp_path, monkeypatch, capsys
):
    one = tmp_path / "one.json"
    assert _run("-m", text_model, *FEW, "--plan", "E2", "-o", one) == 0
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("tiger\n", encoding="utf-8")
    assert (
        _run("-m", text_model, *FEW, "--prompts", prompts, "--plan", "E3", "--compare-with", one)
        == 2
    )
    shown = capsys.readouterr()
    assert "E3" in shown.out  # what was measured is not lost
    assert "records of prompts=" in shown.err
    never = lambda *_, **__: pytest.fail("generated")
    monkeypatch.setattr(command, "evaluate", never)
    for other, key in ((["-n", "11"], "images"), (["--steps", "9"], "steps"), (["-g", "3"],
                       "guidance")):  # fmt: skip
        assert _run("-m", text_model, *FEW, *other, "--compare-with", one) == 2
        assert f"records of {key}=" in capsys.readouterr().err
