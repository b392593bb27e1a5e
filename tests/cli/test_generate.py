"""`flowturbo generate` and its neighbours: what they write, and every kind of bad input."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import flowturbo as ft
from flowturbo.cli import main
from flowturbo.models import zoo
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner

DIGITS = ["generate", "--model", "digits"]


def flowturbo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in arguments])
    return e.value.code


def refused(capsys, *arguments) -> str:
    """The one line of a refusal."""
    assert flowturbo(*arguments) != 0
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("flowturbo: error: ")
    return lines[0]


def test_contact_sheet_with_metadata(tmp_path, capsys):
    out = tmp_path / "sevens.png"
    assert flowturbo(*DIGITS, "7", "-n", 3, "--seed", 5, "--plan", "AB2:3@1.6", "-o", out) == 0
    line = capsys.readouterr().out
    assert "3 images, 3 model evaluations (6 passes) each" in line
    assert "images/s" in line
    sheet = Image.open(out)
    assert sheet.width > 3 * 128
    model = ft.load("digits")
    assert sheet.text == {
        "condition": "7",
        "seed": "5-7",
        "plan": "AB2:3@1.6",
        "guidance": str(model.defaults["guidance"]),
        "model": f"digits {model.fingerprint}",
        "version": f"flowturbo {ft.__version__}",
    }
    assert os.listdir(tmp_path) == ["sevens.png"]


def test_single_files_and_several_prompts(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert flowturbo(*DIGITS, "7", "3", "-n", 2, "--plan", "E2", "-o", out, "--scale", 1) == 0
    names = ["0000-7-seed0.png", "0001-7-seed1.png", "0002-3-seed2.png", "0003-3-seed3.png"]
    assert sorted(p.name for p in out.glob("*.png")) == names
    again = ft.generate(ft.load("digits"), ["3"], plan="E2", seed=3)[0]
    difference = np.asarray(Image.open(out / names[3]), int) - np.asarray(again, int)
    assert abs(difference).max() <= 1


def test_plan_from_a_file(tmp_path, capsys):
    ft.Plan.parse("H1P1").save(tmp_path / "p.json")
    out = tmp_path / "a.png"
    assert flowturbo(*DIGITS, "1", "--plan", tmp_path / "p.json", "-o", out) == 0
    assert "3 model evaluations" in capsys.readouterr().out


def test_plans_that_do_not_lead_from_noise_to_data_draw_nothing(tmp_path, capsys):
    plans = (ft.Plan.euler(2, direction="backward"), ft.Plan.parse("AB2:4").restrict(0.5))
    for plan, out in ((p, o) for p in plans for o in ("sheet.png", "folder")):
        plan.save(tmp_path / "plan.json")
        given = ["--plan", tmp_path / "plan.json", "-o", tmp_path / out]
        assert "images are generated from noise" in refused(capsys, *DIGITS, "7", *given)
        assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_low_precision(tmp_path):
    out = tmp_path / "a.png"
    assert flowturbo(*DIGITS, "1", "--plan", "E2", "--dtype", "bfloat16", "-o", out) == 0


BAD = {
    "unknown model": (["7", "-m", "digit"], "did you mean 'digits'"),
    "class 12 of 10": (["12"], "label '12': model 'digits' has 10 labels"),
    "no pictures": (["7", "-n", "0"], "-n 0: must be at least 1"),
    "not a number": (["7", "-n", "x"], "Invalid value for '-n'"),
    "no such block": (["7", "--plan", "H1Q5"], "'Q5'"),
    "refiner too early": (["7", "--plan", "E1R1"], "for the refiner at 1 distinct times"),
    "no such plan file": (["7", "--plan", "no.json"], "no such file"),
    "negative seed": (["7", "--seed", "-1"], "seed=-1"),
    "device": (["7", "--device", "warp"], "device='warp'"),
    "dtype": (["7", "--dtype", "int4"], "dtype='int4'"),
    "no guidance": (["7", "--guidance", "nan"], "guidance=nan"),
    "unknown option": (["7", "--bogus"], "No such option: --bogus"),
    "no prompt": ([], "Missing argument"),
    "too many": (["7", "-n", "10000000000"], "at most 1000000 at a time"),
    "too large": (["7", "--scale", "1000000"], "over 500000000 pixels"),
    "no such user": (["7", "-m", "~nobody-here/m"], "~nobody-here"),
    "extreme shift": (["7", "--plan", "AB2:8@1e-300"], "use one nearer 1"),
    "other format": (["7", "-o", "a.gif"], "written as a .png grid"),
    "unwritable": (["7", "-o", "/proc/none/a.png"], "cannot write /proc/none/a.png"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[kind]
    assert message in refused(capsys, *DIGITS, *arguments)
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, *DIGITS, "7", "-o", tmp_path / "file" / "a.png")


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(zoo.find("digits"), tmp_path / "model"))


def test_a_model_without_the_refiner_that_a_plan_needs(copy, capsys, tmp_path):
    for file in copy.glob("refiner.*"):
        file.unlink()
    out = tmp_path / "a.png"
    line = refused(capsys, "generate", "7", "-m", copy, "--plan", "H1P5R3", "-o", out)
    assert "came without a refiner: give one with --refiner" in line
    assert not out.exists()


def test_nan_weights(copy, capsys, tmp_path):
    tensors = load_file(copy / "model.safetensors")
    tensors["final_layer.linear.bias"][0] = torch.nan
    save_file(tensors, copy / "model.safetensors")
    out = tmp_path / "a.png"
    line = refused(capsys, "generate", "7", "-m", copy, "-o", out)
    assert "final_layer.linear.bias has weights that are NaN" in line
    assert not out.exists()


def test_models_lists_shows_and_prints_cards(capsys):
    assert flowturbo("models") == 0
    assert "digits" in capsys.readouterr().out
    assert flowturbo("models", "digits") == 0
    assert "MNIST" in capsys.readouterr().out
    assert flowturbo("models", "digits", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["data"]["licence"]
    assert card == ft.load("digits").card
    assert "no such model" in refused(capsys, "models", "none")


def test_convert(tmp_path, capsys, copy):
    torch.save(load_file(copy / "model.safetensors"), tmp_path / "sit.pt")
    line = refused(capsys, "convert", tmp_path / "sit.pt", "-o", tmp_path / "out")
    assert "another architecture" in line
    assert not (tmp_path / "out").exists()


def test_convert_a_refiner(tmp_path, monkeypatch):
    config = dict(size=4, width=16, depth=1, heads=2, classes=3, learn_sigma=True)
    monkeypatch.setattr(SiTConfig, "named", lambda name, **changes: SiTConfig(**config))
    save_folder(tmp_path / "sit", SiT(SiTConfig(**config)), {})
    made = PaperRefiner.from_model(ft.load(tmp_path / "sit"))
    torch.save({"ema": made.network.state_dict()}, tmp_path / "refiner.pt")
    into = ["--refiner", "-o", tmp_path / "sit"]
    assert flowturbo("convert", tmp_path / "refiner.pt", *into) == 0
    assert ft.load_refiner(tmp_path / "sit", ft.load(tmp_path / "sit")).kind == "paper"


def test_train(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(8) % 2)
    small = ["--size", 8, "--width", 16, "--depth", 1, "--heads", 2, "--batch", 4, "--steps", 4]
    quick = ["--no-compile", "--no-bf16", "--preview-every", 0]
    out = tmp_path / "run"
    assert flowturbo("train", "--data", tmp_path / "data.npz", "-o", out, *small, *quick) == 0
    assert flowturbo("generate", "1", "-m", out, "--plan", "E2", "-o", tmp_path / "a.png") == 0
    assert "4 steps, 8 images" in capsys.readouterr().out
    line = refused(capsys, "train", "--data", tmp_path / "none", "-o", out, *small)
    assert "no such folder" in line


def test_version_and_help(capsys):
    assert flowturbo("--version") == 0
    assert capsys.readouterr().out.strip() == f"flowturbo {ft.__version__}"
    for command in ("generate", "train", "train-refiner", "analyze", "models", "convert"):
        assert flowturbo(command, "--help") == 0
        assert f"Example: flowturbo {command}" in capsys.readouterr().out


def test_a_folder_may_have_dots_in_its_name(tmp_path):
    (tmp_path / "v1.2").mkdir()
    assert flowturbo(*DIGITS, "7", "--plan", "E1", "-o", tmp_path / "v1.2") == 0
    assert [p.name for p in (tmp_path / "v1.2").glob("*.png")] == ["0000-7-seed0.png"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "to").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "to" / "a.png")
    assert flowturbo(*DIGITS, "7", "--plan", "E1", "-o", link) == 0
    assert link.is_symlink()
    assert os.listdir(tmp_path / "to") == ["a.png"]
    assert Image.open(link).text["condition"] == "7"


def test_models_prints_a_card_as_it_is(tmp_path, capsys, copy):
    card = json.loads((copy / "card.json").read_text())
    del card["name"]
    (copy / "card.json").write_text(json.dumps({**card, "description": "[red] and [/x]"}))
    assert flowturbo("models", copy) == 0
    assert "[red] and [/x]" in capsys.readouterr().out


def test_a_full_disk_under_the_compiler_is_one_line(monkeypatch, capsys, tmp_path):
    def full(*arguments, **options):
        error = RuntimeError("InductorError: OSError: [Errno 28] No space left on device")
        error.inner_exception = OSError(28, "No space left on device", "/tmp/torchinductor")
        raise error

    monkeypatch.setattr("flowturbo.cli.export.export", full)
    line = refused(capsys, "export", "-m", "digits", "-o", tmp_path / "a.pt2")
    assert "cannot write /tmp/torchinductor: No space left on device; free some" in line


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 8 GB")])
def test_out_of_memory_is_one_line(monkeypatch, capsys, tmp_path, error):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr("flowturbo.cli.generate.generate", full)
    line = refused(capsys, *DIGITS, "7", "-o", tmp_path / "a.png")
    assert "out of memory: lower --batch" in line
