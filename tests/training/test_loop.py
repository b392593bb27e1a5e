"""Training: it learns, it resumes to the bit after a kill, it refuses what does not fit."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import toy_run
from safetensors.torch import load_file

import flowturbo as ft
from flowturbo.models.sit import SiTConfig
from flowturbo.training import ArrayData, TrainConfig, devices, load_data, train
from flowturbo.training.objectives import draw_times, drop_condition, flow_loss
from flowturbo.training.optimizers import optimizers

SCRIPT = """
import sys, torch
from flowturbo.models.sit import SiTConfig
from flowturbo.training import ArrayData, TrainConfig, train
torch.set_num_threads(1)
images = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(1))
data = ArrayData(images.byte(), torch.arange(40) % 4, {"kind": "class", "labels": list("abcd")})
network = SiTConfig(size=8, channels=1, patch=4, width=16, depth=1, heads=2, classes=4)
train(
    network, data, sys.argv[1],
    TrainConfig(steps=60, batch=8, compile=False, bf16=False, save_every=10, preview_every=0,
                optimizer=sys.argv[2], warmup=5),
    report=lambda progress: None,
)
"""


def _start(out: Path, optimizer: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), optimizer],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    optimizer = "muon" if hasattr(torch.optim, "Muon") else "adamw"  # the former has both
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _start(whole, optimizer).wait(120) == 0
    process = _start(killed, optimizer)
    until = time.monotonic() + 60
    while not list(killed.glob("checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert next(killed.glob("checkpoints/step-*")).name < "step-00000060"
    again = _start(killed, optimizer)
    assert again.wait(120) == 0, again.stderr.read().decode()
    a, b = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [
        [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    ]
    a, b = ([(x["step"], x["loss"]) for x in log] for log in logs)
    assert a == b
    assert [step for step, _ in a] == [10, 20, 30, 40, 50, 60]


def _toy(classes: int = 2) -> ArrayData:
    """Two kinds of picture: all dark, all bright."""
    levels = torch.tensor([32, 224]).repeat(20)
    images = levels[:, None, None, None].expand(-1, 1, 4, 4).byte()
    condition = {"kind": "class", "labels": ["dark", "bright"][:classes]}
    return ArrayData(images, (levels > 128).long(), condition)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    architecture = SiTConfig(size=4, channels=1, patch=2, width=32, depth=1, heads=2, classes=2)
    config = TrainConfig(
        steps=200, batch=64, lr=3e-3, warmup=20, ema=0.95, bf16=False, compile=False,
        save_every=200, preview_every=200,
    )  # fmt: skip
    return train(architecture, _toy(), tmp_path_factory.mktemp("toy") / "run", config)


def test_a_trained_model_draws_what_it_was_asked_for(run):
    model = ft.load(run)
    cond = model.condition(["dark", "bright"] * 8)
    x1 = ft.sample(ft.Plan.parse("RK4:6"), model, ft.noise.draw(range(16), model.shape), cond)
    wanted = torch.tensor([32, 224]).repeat(8) / 127.5 - 1
    assert (x1.mean((1, 2, 3)) - wanted).abs().max() < 0.25


def test_a_run_leaves_model_card_log_plot_and_preview(run):
    card = json.loads((run / "card.json").read_text())
    assert card["condition"]["labels"] == ["dark", "bright"]
    assert card["training"]["steps"] == 200
    assert Image.open(run / "loss.png").width > 300
    assert Image.open(run / "previews" / "step-00000200.png").text["step"] == "200"
    assert len((run / "log.jsonl").read_text().splitlines()) == 4


def test_another_configuration_in_the_same_folder_is_refused(run):
    architecture = SiTConfig(size=4, channels=1, patch=2, width=32, depth=2, heads=2, classes=2)
    with pytest.raises(ValueError, match=r"depth=1 there, 2 now.*another folder"):
        train(architecture, _toy(), run, TrainConfig(steps=200, batch=64))


def test_a_run_that_left_nothing_to_resume_is_replaced(tmp_path):
    def killed(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path, report=killed)
    assert (tmp_path / "config.json").is_file()
    toy_run(tmp_path, lr=0.01)
    assert json.loads((tmp_path / "config.json").read_text())["training"]["lr"] == 0.01
    with pytest.raises(ValueError, match=r"lr=0.01 there, 0.02 now"):
        toy_run(tmp_path, lr=0.02)


def test_muon_is_the_same_in_float32_but_for_rounding(monkeypatch):
    network = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(16, 8)])})
    results = []
    for there in (True, False):
        monkeypatch.setattr("flowturbo.training.optimizers.has_bf16", lambda there=there: there)
        made = copy.deepcopy(network)
        used = optimizers(made, TrainConfig(optimizer="muon"))[1]
        weight = made["blocks"][0].weight
        weight.grad = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
        before = weight.detach().clone()
        used.step()
        results.append(weight.detach() - before)
    assert results[0].abs().max() > 1e-5
    torch.testing.assert_close(*results, rtol=0.1, atol=2e-5)
    assert not torch.equal(*results)


def test_wrong_shapes_and_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the data are"):
        train(SiTConfig(size=8, channels=1, width=16, depth=1, heads=2), _toy(), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    for bad in (dict(steps=0), dict(lr=0), dict(ema=1.0), dict(optimizer="sgd"), dict(tail=0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainConfig(**bad)


def test_learning_rate_schedules():
    config = TrainConfig(steps=100, lr=1.0, warmup=10, tail=0.5)
    assert [config.lr_at(s) for s in (0, 9, 40)] == [0.1, 1.0, 1.0]
    assert config.lr_at(75) == pytest.approx(0.5)
    assert TrainConfig(steps=100, lr=1.0, warmup=200).lr_at(4) == 0.5  # a tenth of a short run
    cosine = TrainConfig(steps=110, lr=1.0, warmup=10, schedule="cosine")
    assert cosine.lr_at(60) == pytest.approx(0.5)


def test_flow_loss_is_zero_for_the_true_velocity_and_one_away():
    x0, x1, t = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.rand(4)
    assert flow_loss(lambda x, t, c: x1 - x0, x0, x1, t, None) == 0
    assert flow_loss(lambda x, t, c: x1 - x0 + 1, x0, x1, t, None) == pytest.approx(1)


def test_times_and_dropout_follow_their_distributions():
    generator = torch.Generator().manual_seed(0)
    uniform = draw_times(4000, "uniform", generator).sort().values
    assert (uniform - (torch.arange(4000) + 0.5) / 4000).abs().max() < 1e-3
    normal = torch.logit(draw_times(4000, "logit-normal", generator))
    assert normal.mean().abs() < 0.02
    assert abs(normal.std() - 1) < 0.02
    cond, null = torch.zeros(4000, 3), torch.ones(4000, 3)
    dropped = drop_condition(cond, null, 0.1, generator)
    assert abs(dropped.mean() - 0.1) < 0.02
    assert ((dropped.sum(1) == 0) | (dropped.sum(1) == 3)).all()


def test_npz(tmp_path):
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 2, 1]))
    data = load_data(tmp_path / "a.npz", 6)
    assert data.shape == (1, 6, 6)
    assert data.condition == {"kind": "class", "labels": ["0", "1", "2"]}
    assert torch.equal(data.images[:, 0, 1:5, 1:5], torch.from_numpy(images))
    x, cond = data.batch(50, torch.Generator().manual_seed(0))
    assert x.min() >= -1
    assert x.max() <= 1
    assert set(cond.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="do not fit size=2"):
        load_data(tmp_path / "a.npz", 2)
    (tmp_path / "b.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read"):
        load_data(tmp_path / "b.npz", 6)
    np.savez(tmp_path / "c.npz", pictures=images)
    with pytest.raises(ValueError, match="needs 'images'"):
        load_data(tmp_path / "c.npz", 6)


def _pictures(folder: Path) -> None:
    for name, colour in (("cats/1.png", "red"), ("dogs/2.png", "blue"), ("dogs/3.png", "lime")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), colour).save(folder / name)


def test_folder_of_folders_gives_labels(tmp_path):
    _pictures(tmp_path)
    data = load_data(tmp_path, 4)
    assert data.shape == (3, 4, 4)
    assert data.condition == {"kind": "class", "labels": ["cats", "dogs"]}
    assert data.cond.tolist() == [0, 1, 1]
    assert data.images[0, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("beside", [True, False])
def test_folder_with_captions(tmp_path, beside):
    _pictures(tmp_path)
    captions = {"cats/1.png": "a red cat", "dogs/2.png": "a blue dog", "dogs/3.png": "a lime dog"}
    if beside:
        for name, text in captions.items():
            (tmp_path / name).with_suffix(".txt").write_text(text)
    else:
        lines = [json.dumps({"file_name": k, "text": v}) for k, v in captions.items()]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    data = load_data(tmp_path, 4)
    assert data.condition["kind"] == "text"
    assert data.cond.ndim == 2
    if beside:
        (tmp_path / "dogs/3.txt").unlink()
    else:
        (tmp_path / "metadata.jsonl").write_text(lines[0])
    with pytest.raises(ValueError, match="no caption"):
        load_data(tmp_path, 4)


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load_data(tmp_path / "none", 4)
    with pytest.raises(ValueError, match="no images"):
        load_data(tmp_path, 4)
    (tmp_path / "x.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"not a readable image"):
        load_data(tmp_path, 4)


def _one(folder: Path, image: Image.Image, **options) -> list[int]:
    """The RGB of the middle of ``image`` as it is trained on."""
    image.save(folder / "a.png", **options)
    return load_data(folder, 4).images[0, :, 2, 2].tolist()


def test_transparent_pictures_are_put_on_white(tmp_path):
    assert _one(tmp_path, Image.new("RGBA", (9, 9), (255, 0, 0, 0))) == [255, 255, 255]
    assert _one(tmp_path, Image.new("RGBA", (9, 9), (255, 0, 0, 255))) == [255, 0, 0]
    assert _one(tmp_path, Image.new("LA", (9, 9), (0, 0))) == [255, 255, 255]
    assert _one(tmp_path, Image.new("P", (9, 9), 0), transparency=0) == [255, 255, 255]


def test_pictures_of_other_depths(tmp_path):
    assert _one(tmp_path, Image.fromarray(np.full((9, 9), 25700, np.uint16))) == [100, 100, 100]
    assert _one(tmp_path, Image.new("1", (1, 1), 1)) == [255, 255, 255]
    assert _one(tmp_path, Image.new("L", (3, 90), 7)) == [7, 7, 7]


def test_pictures_are_turned_as_exif_says(tmp_path):
    upper = np.zeros((16, 16, 3), np.uint8)
    upper[:8] = 255
    exif = Image.Exif()
    exif[0x112] = 6  # turn it right
    Image.fromarray(upper).save(tmp_path / "a.png", exif=exif)
    image = load_data(tmp_path, 16).images[0, 0]
    assert (image[:, 8:] == 255).all()
    assert (image[:, :8] == 0).all()


def test_a_picture_too_large_to_open_is_named(tmp_path, monkeypatch):
    Image.new("1", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a.png: not a readable image"):
        load_data(tmp_path, 4)


def test_pictures_beside_folders_of_labels_are_refused(tmp_path):
    _pictures(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"stray.png: next to folders of labels"):
        load_data(tmp_path, 4)


def test_captions_that_cannot_be_read_name_the_file(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a.txt: not a text in UTF-8"):
        load_data(tmp_path, 4)
    (tmp_path / "a.txt").write_text(" ".join(f"word{i}" for i in range(40)))
    assert load_data(tmp_path, 4).condition["tokenizer"]["length"] == 40
    (tmp_path / "a.txt").write_text(" ".join(f"w{i}" for i in range(140)))
    with pytest.raises(ValueError, match=r"a.txt: a caption of 140 tokens, .*; at most 128"):
        load_data(tmp_path, 4)
    (tmp_path / "a.txt").unlink()
    table = tmp_path / "metadata.jsonl"
    table.write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"metadata.jsonl: not a text in UTF-8"):
        load_data(tmp_path, 4)
    table.write_text('{"file_name": "a.png", "text": null}')
    with pytest.raises(ValueError, match=r"has no caption"):
        load_data(tmp_path, 4)
    table.write_text('{"file_name": "a.png", "text": "a\u2028cat"}\r\n', "utf-8-sig")
    assert load_data(tmp_path, 4).condition["tokenizer"]["vocabulary"] == ["a", "cat"]


@pytest.mark.parametrize(
    "labels", [[0, 1.5], ["a", "b"], [0, -1], [0], [0, 10**9], [0, float("nan")]]
)
def test_labels_that_are_no_numbers_of_classes(tmp_path, labels):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=labels)
    with pytest.raises(ValueError, match=r"a.npz: .*label.*number"):
        load_data(tmp_path / "a.npz", 4)


@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (0, 4, 4), (2, 4, 4, 0)])
def test_arrays_that_are_no_pictures(tmp_path, shape):
    labels = np.zeros(shape[0], int)
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8), labels=labels)
    with pytest.raises(ValueError, match=r"a.npz: (images|needs)"):
        load_data(tmp_path / "a.npz", 4)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "clip"}'])
def test_a_config_of_something_else_is_kept(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    network = SiTConfig(size=4, channels=1, width=8, depth=1, heads=1, patch=2, classes=2)
    data = ArrayData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"config.json: not of such a run"):
        train(network, data, tmp_path, TrainConfig(steps=1))
    assert (tmp_path / "config.json").read_text() == text


def test_a_run_killed_while_it_exports_is_exported_when_resumed(tmp_path, monkeypatch):
    network = SiTConfig(size=4, channels=1, width=8, depth=1, heads=1, patch=2)
    data = ArrayData(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    config = TrainConfig(steps=2, batch=2, bf16=False, compile=False, preview_every=0)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("flowturbo.training.flow.save_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            train(network, data, tmp_path, config)
    train(network, data, tmp_path, config)
    assert ft.load(tmp_path).card["training"]["step"] == 2


def test_each_seed_and_step_draws_its_own(tmp_path):
    drawn = []

    class Watched(ArrayData):
        def batch(self, n, generator):
            drawn.append(bytes(generator.get_state().numpy()))
            return super().batch(n, generator)

    network = SiTConfig(size=4, channels=1, width=8, depth=1, heads=1, patch=2)
    data = Watched(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    for seed in (0, 1, 256):
        config = TrainConfig(steps=2, batch=2, bf16=False, compile=False, seed=seed)
        train(network, data, tmp_path / str(seed), config)
    assert len(drawn) == len(set(drawn)) == 6


@pytest.mark.parametrize("there", [True, False])
def test_bfloat16_only_where_the_cpu_computes_in_it(monkeypatch, there):
    monkeypatch.setattr(devices, "has_bf16", lambda: there)
    for asked in (True, False):
        with devices.autocast(torch.device("cpu"), asked):
            product = torch.eye(2) @ torch.eye(2)
        assert product.dtype == (torch.bfloat16 if there and asked else torch.float32)
