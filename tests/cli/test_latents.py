"""Models of latents from the command line: from a checkpoint, or from images, to pictures."""

from __future__ import annotations

import json

import autoencoders
import numpy as np
import pytest
import torch
from PIL import Image

import flowturbo as ft
from flowturbo import noise
from flowturbo.cli import main
from flowturbo.evaluate import features
from flowturbo.guidance import Guidance
from flowturbo.models import sit, sit_config
from flowturbo.models.codec_entry import latent_codec

LAZY = ["--device", "cpu"]


def flowturbo(*arguments) -> int:
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in arguments])
    return e.value.code


def refused(capsys, *arguments) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert flowturbo(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    return lines[0]


class Pooled:
    """Features that cost little: what the pictures look like from afar."""

    name = "pooled"

    def __init__(self, device):
        pass

    def __call__(self, pictures):
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1).cpu()


@pytest.fixture(autouse=True)
def pooled(monkeypatch):
    monkeypatch.setattr(features, "EffNetFeatures", Pooled)


@pytest.fixture
def kl(tmp_path):
    return autoencoders.folder(tmp_path / "kl", autoencoders.kl(force_upcast=False))


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A checkpoint as the official trainer of SiT writes it, and the options to convert it."""
    monkeypatch.setitem(sit_config.SIZES, "S", (16, 1, 2))
    torch.manual_seed(0)
    network = sit.SiT(sit.SiTConfig.named("S/2", size=4, classes=3))
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    path = tmp_path / "0000100.pt"
    torch.save({"model": network.state_dict(), "ema": network.state_dict(), "opt": {}}, path)
    return [path, "-a", "S/2", "--size", 4, "--classes", 3, "--dtype", "float32"]


@pytest.fixture
def converted(official, kl, tmp_path, capsys):
    # an autoencoder at 1/2 where the official is at 1/8: the card names what it was given
    assert flowturbo("convert", *official, "--vae", kl, "-o", tmp_path / "sit") == 0
    return tmp_path / "sit"


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for i in range(8):
            path = tmp_path / "photos" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def record(path):
    return json.loads(path.read_text())


def test_from_a_checkpoint_to_pictures(converted, kl, tmp_path, capsys):
    card = record(converted / "card.json")
    assert card["codec"] == {
        "kind": "latent", "autoencoder": str(kl), "channels": 4, "factor": 2,
    }  # fmt: skip
    out, few = tmp_path / "out", ["-m", converted, *LAZY]
    guided = ["--guidance", 4, "--guidance-channels", 3]
    assert flowturbo("generate", "1", "2", *few, "--plan", "E3", *guided, "-o", out) == 0
    names = ["0000-1-seed0.png", "0001-2-seed1.png"]
    assert sorted(p.name for p in out.glob("*.png")) == names
    shown = Image.open(out / "0001-2-seed1.png")
    codec = latent_codec(kl)
    assert shown.text["autoencoder"] == f"{kl} {codec.fingerprint}"
    assert shown.text["guidance channels"] == "3"
    # by hand: the paper's guidance, and the decoder that pipelines of diffusers call
    model = ft.load(converted)
    field = Guidance(model, 4.0, channels=3)
    x1 = ft.sample("E3", field, noise.draw([0, 1], model.shape), model.condition(["1", "2"]))
    picture = (codec.network.vae.decode(x1 / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    exact = np.asarray((picture[1] * 255).round().byte().permute(1, 2, 0), int)
    scale = shown.width // 8
    assert abs(np.asarray(shown, int)[::scale, ::scale] - exact).max() <= 1

    few += ["--plan", "E2"]
    quick = ["-n", 10, "--steps", 8, "--batch", 5, "--repeats", 1, "--resamples", 0]
    quick += ["--cache-dir", tmp_path / "runs", "--agreement", 0]
    assert flowturbo("evaluate", *few, *quick, "-o", tmp_path / "e.json") == 0
    told = record(tmp_path / "e.json")
    assert told["conditions"]["codec"] == codec.fingerprint
    assert told["perceptual"]["rmse"] > 0
    single = ["--batch", 1, "--no-baselines", "--scopes", "none", "--repeats", 1]
    assert flowturbo("benchmark", *few, *single, "-o", tmp_path / "b.json") == 0
    assert record(tmp_path / "b.json")["parts"]["decode"]["median"] > 0
    capsys.readouterr()


def test_another_autoencoder_is_taken_by_every_command_that_decodes(converted, tmp_path, capsys):
    other = autoencoders.folder(tmp_path / "other", autoencoders.tiny())
    few = ["-m", converted, "--plan", "E2", *LAZY]
    pictures = []
    for i, vae in enumerate([[], ["--vae", other]]):
        assert flowturbo("generate", "1", *few, *vae, "-o", tmp_path / f"{i}.png") == 0
        pictures.append(Image.open(tmp_path / f"{i}.png"))
    assert pictures[1].text["autoencoder"].startswith(f"{other} ")
    assert np.asarray(pictures[0]).tolist() != np.asarray(pictures[1]).tolist()
    quick = ["-n", 10, "--steps", 8, "--repeats", 0, "--resamples", 0, "--agreement", 0]
    quick += ["--cache-dir", tmp_path / "runs"]
    assert flowturbo("evaluate", *few, *quick) == 0
    line = refused(capsys, "evaluate", *few, *quick, "--vae", other)  # its features are others
    assert "codec=" in line


def test_without_its_autoencoder_nothing_is_sampled(converted, kl, tmp_path, capsys, monkeypatch):
    few = ["-m", converted, "--plan", "E2", *LAZY]
    kl.rename(tmp_path / "gone")
    asked = {
        "generate": ["1", "-o", tmp_path / "x.png"],
        "evaluate": ["-n", 10, "--steps", 8, "--repeats", 0, "-o", tmp_path / "x.json"],
    }
    monkeypatch.setattr(sit.SiT, "forward", lambda *a: pytest.fail("sampled"))
    for command, rest in asked.items():
        line = refused(capsys, command, *rest, *few)
        assert (
            f"model 'sit' generates latents; autoencoder '{kl}': no such folder; pass --vae" in line
        )
    wide = autoencoders.folder(tmp_path / "wide", autoencoders.kl(latent_channels=16))
    for command, rest in {**asked, "benchmark": ["--no-baselines"]}.items():
        line = refused(capsys, command, *rest, *few, "--vae", wide)
        assert f"autoencoder '{wide}' decodes latents of 16 channels" in line
        assert "generates latents of 4x4x4" in line
    assert not list(tmp_path.glob("x.*"))


def test_conversion_names_the_official_autoencoder_and_refuses_others(
    official, kl, tmp_path, capsys
):
    assert flowturbo("convert", *official, "-o", tmp_path / "a") == 0
    assert record(tmp_path / "a" / "card.json")["codec"] == {
        "kind": "latent", "autoencoder": "hf:stabilityai/sd-vae-ft-ema",
        "channels": 4, "factor": 8,
    }  # fmt: skip
    wide = autoencoders.folder(tmp_path / "wide", autoencoders.kl(latent_channels=16))
    for vae, message in ((wide, "latents of 16 channels"), (tmp_path / "no", "no such folder")):
        assert message in refused(capsys, "convert", *official, "--vae", vae, "-o", tmp_path / "b")
    line = refused(capsys, "convert", *official, "--refiner", "--vae", kl, "-o", tmp_path / "a")
    assert "belongs to the model" in line
    assert not (tmp_path / "b").exists()


def test_bad_options_are_one_line(converted, kl, photos, tmp_path, capsys):
    draw = ["generate", "1", "-m", converted, "--plan", "E2", "-o", tmp_path / "x.png", *LAZY]
    for channels in (0, 5, -1):
        line = refused(capsys, *draw, "--guidance", 2, "--guidance-channels", channels)
        assert f"guidance_channels={channels}: must be a whole number, 1 to the 4 channels" in line
    line = refused(capsys, "generate", "7", "-m", "digits", "--vae", kl, "-o", tmp_path / "x.png")
    assert "'digits' generates pixels; leave vae out" in line
    train = ["train", "--data", photos, "--out", tmp_path / "run", "--vae"]
    assert "multiples of 2" in refused(capsys, *train, kl, "--size", 9)
    assert "no such folder" in refused(capsys, *train, tmp_path / "no", "--size", 8)
    line = refused(capsys, "train-refiner", "-m", converted, "--vae", kl, "-o", tmp_path / "run")
    assert "leave --vae out" in line
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "x.png").exists()


def test_from_images_to_pictures(photos, kl, tmp_path, capsys, monkeypatch):
    run, refiner, plan = tmp_path / "run", tmp_path / "refiner", tmp_path / "plan.json"
    small = ["--size", 8, "--width", 16, "--depth", 1, "--heads", 2, "--batch", 4]
    quick = ["--no-compile", "--preview-every", 40]
    train = ["train", "--data", photos, "--vae", kl, "--out", run, "--steps", 40, *small, *quick]
    assert flowturbo(*train) == 0
    kept = sorted((run / "latents").iterdir())
    before = [(p, p.stat().st_mtime_ns) for p in kept]
    assert len(kept) == 1
    assert flowturbo(*train) == 0  # nothing is encoded again
    assert [(p, p.stat().st_mtime_ns) for p in sorted((run / "latents").iterdir())] == before
    model = ft.load(run)
    assert model.shape == (4, 4, 4)
    assert model.network.config.patch == 2
    assert model.card["codec"]["autoencoder"] == str(kl)
    assert Image.open(run / "previews" / "step-00000040.png").size == (204, 84)

    few = ["--iterations", 2, "--batch", 4, "--trajectories", 3, "--steps", 4]
    of = ["-m", run, *LAZY]
    assert flowturbo("train-refiner", *of, *few, "--guidance", "2", "-o", refiner) == 0
    tuned = ["--nfe", 3, "--guidance", 2, "--trajectories", 4, "--no-search", "-o", plan]
    assert flowturbo("tune", *of, "--refiner", refiner, *tuned) == 0
    picture = tmp_path / "cat.png"
    drawn = ["--plan", plan, "--refiner", refiner, "--guidance", 2]
    assert flowturbo("generate", "cat", *of, *drawn, "-o", picture, "--scale", 1) == 0
    assert Image.open(picture).size == (12, 12)
    single = ["--batch", 1, "--no-baselines", "--scopes", "none", "--repeats", 1]
    assert flowturbo("benchmark", *of, *drawn, *single, "-o", tmp_path / "b.json") == 0
    assert record(tmp_path / "b.json")["parts"]["decode"]["median"] > 0
    score = ["-n", 10, "--steps", 8, "--repeats", 0, "--resamples", 0, "--agreement", 0]
    assert flowturbo(
        "evaluate", *of, "--plan", plan, "--refiner", refiner, *score, "--guidance", 2,
        "--real-images", photos, "-o", tmp_path / "e.json",
    ) == 0  # fmt: skip
    assert record(tmp_path / "e.json")["frechet"]["plan"] > 0

    papers = ["--paper", "--data", photos, "--iterations", 2, "--batch", 4, "--vae", kl]
    assert flowturbo("train-refiner", *of, *papers, "-o", tmp_path / "paper") == 0
    assert list((tmp_path / "paper" / "refiner-run" / "latents").iterdir())
    assert ft.load_refiner(tmp_path / "paper", model).kind == "paper"
    capsys.readouterr()
