"""Training on latents: encoded once, kept by images and autoencoder, named on the card."""

from __future__ import annotations

import autoencoders
import pytest
import torch
from PIL import Image

import flowturbo as ft
from flowturbo.models.autoencoder import Autoencoder, AutoencoderConfig
from flowturbo.models.codec import Latents, Pixels
from flowturbo.models.codec_entry import latent_codec
from flowturbo.models.sit import SiTConfig
from flowturbo.training import ArrayData, LatentData, TrainConfig, as_states, latents, train

QUICK = TrainConfig(steps=2, batch=2, compile=False, bf16=False, save_every=2, preview_every=2)


@pytest.fixture
def codec(tmp_path):
    return latent_codec(autoencoders.folder(tmp_path / "vae", autoencoders.kl()))


def images(n=7, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, channels, 8, 8), generator=generator).byte()
    return ArrayData(pixels, torch.arange(n) % 2, {"kind": "class", "labels": ["a", "b"]})


def count(codec) -> list[int]:
    """How many images the autoencoder is shown at a time, from now on."""
    seen: list[int] = []
    codec.network.vae.encoder.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
    return seen


def test_batches_are_the_latents_of_the_images_drawn(codec, tmp_path):
    data = images()
    states = as_states(data, codec, tmp_path / "latents")
    assert states.shape == (4, 4, 4)
    assert len(states) == 7
    assert states.condition == data.condition
    assert torch.equal(states.examples(4), data.examples(4))
    x, cond = states.batch(5, torch.Generator().manual_seed(3))
    pixels, same = data.batch(5, torch.Generator().manual_seed(3))
    assert torch.equal(cond, same)
    assert x.dtype == torch.float32
    assert torch.allclose(x, codec.encode((pixels + 1) / 2), atol=1e-2)
    assert as_states(data, Pixels(), tmp_path) is data


def test_an_interrupted_encoding_goes_on_and_is_not_done_twice(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "CHUNK", 3)
    whole = LatentData(images(), codec, tmp_path / "whole").latents
    read, states = latents.LatentData._encode, LatentData(images(), codec, tmp_path / "cut")

    def killed(self, part, bar):
        if len(part) == 1:  # the last
            raise KeyboardInterrupt
        return read(self, part, bar)

    monkeypatch.setattr(latents.LatentData, "_encode", killed)
    with pytest.raises(KeyboardInterrupt):
        _ = states.latents
    monkeypatch.setattr(latents.LatentData, "_encode", read)
    seen = count(codec)
    again = LatentData(images(), codec, tmp_path / "cut")
    assert torch.equal(again.latents, whole)
    assert seen == [1]
    assert torch.equal(LatentData(images(), codec, tmp_path / "cut").latents, whole)
    assert seen == [1]


def test_other_images_or_another_autoencoder_have_latents_of_their_own(codec, tmp_path):
    other = latent_codec(
        autoencoders.folder(tmp_path / "other", autoencoders.kl(scaling_factor=0.5))
    )
    made = [
        LatentData(images(), codec, tmp_path / "x"),
        LatentData(images(seed=1), codec, tmp_path / "x"),
        LatentData(images(), other, tmp_path / "x"),
    ]
    assert len({d.digest() for d in made}) == 3
    assert not torch.equal(made[0].latents, made[1].latents)
    assert not torch.allclose(made[0].latents.float(), made[2].latents.float(), atol=0.01)
    assert made[0].digest() == LatentData(images(), codec, tmp_path / "y").digest()


def test_grey_images_are_encoded_in_colour_and_others_refused(codec, tmp_path):
    grey = images(channels=1)
    states = LatentData(grey, codec, tmp_path / "x")
    colour = ArrayData(grey.images.expand(-1, 3, -1, -1).contiguous(), grey.cond, grey.condition)
    assert torch.equal(states.latents, LatentData(colour, codec, tmp_path / "y").latents)
    odd = ArrayData(torch.zeros(2, 3, 7, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images of 3x7x8: .* multiples of 2"):
        LatentData(odd, codec, tmp_path / "x")
    vae = autoencoders.kl(in_channels=1, out_channels=1)
    one = latent_codec(autoencoders.folder(tmp_path / "grey", vae))
    with pytest.raises(ValueError, match=r"images of 3x8x8: .* encodes 1 channels"):
        LatentData(images(), one, tmp_path / "x")


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:-5] + b"?" + b[-4:]])
def test_damaged_latents_are_told_and_made_again(codec, tmp_path, damage):
    whole = LatentData(images(), codec, tmp_path / "x").latents
    (file,) = (tmp_path / "x").glob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=f"{file.name}: damaged"):
        assert torch.equal(LatentData(images(), codec, tmp_path / "x").latents, whole)
    assert torch.equal(LatentData(images(), codec, tmp_path / "x").latents, whole)


def test_the_model_draws_pictures_of_what_it_was_trained_on(codec, tmp_path):
    data = LatentData(images(), codec, tmp_path / "run" / "latents")
    network = SiTConfig(size=4, channels=4, patch=2, width=16, depth=1, heads=2, classes=2)
    out = train(network, data, tmp_path / "run", QUICK, report=lambda progress: None)
    model = ft.load(out)
    assert model.card["codec"] == codec.entry
    assert model.codec.fingerprint == codec.fingerprint
    assert ft.generate(model, ["a"], plan="E2")[0].size == (8, 8)
    sheet = Image.open(out / "previews" / "step-00000002.png")
    assert sheet.width == 2 * (10 * (8 + 2) + 2)


def test_an_autoencoder_of_our_own_goes_with_the_model(tmp_path):
    torch.manual_seed(0)
    own = Autoencoder(AutoencoderConfig(latent_channels=2, widths=[4, 4], blocks=[1, 1]))
    entry = {"kind": "autoencoder", "weights": "autoencoder.safetensors"}
    codec = Latents("own", {**entry, "config": own.config.model_dump()}, own.eval())
    data = LatentData(images(), codec, tmp_path / "cache")
    network = SiTConfig(size=4, channels=2, patch=2, width=16, depth=1, heads=2, classes=2)
    out = train(network, data, tmp_path / "run", QUICK, report=lambda progress: None)
    moved = ft.load(out.rename(tmp_path / "moved"))
    z = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        assert torch.allclose(moved.decode(z), codec.decode(z), atol=1e-2)


def test_latents_do_not_depend_on_the_precision_that_the_network_is_trained_in(codec, tmp_path):
    exact = LatentData(images(), codec, tmp_path / "x").latents
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LatentData(images(), codec, tmp_path / "y").latents, exact)


def test_processes_of_a_run_share_the_encoding(codec, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "CHUNK", 2)
    whole = LatentData(images(), codec, tmp_path / "whole").latents
    seen, first = count(codec), LatentData(images(), codec, tmp_path / "shared")

    class Second:
        """The second of two; the first does its part while this one waits."""

        is_available = is_initialized = staticmethod(lambda: True)
        get_rank, get_world_size = staticmethod(lambda: 1), staticmethod(lambda: 2)

        @staticmethod
        def barrier():
            monkeypatch.setattr(Second, "get_rank", staticmethod(lambda: 0))
            monkeypatch.setattr(Second, "barrier", staticmethod(lambda: None))
            assert seen == [2, 1]  # of 2 + 2 + 2 + 1
            _ = first.latents

    monkeypatch.setattr(latents, "distributed", Second)
    assert torch.equal(LatentData(images(), codec, tmp_path / "shared").latents, whole)
    assert seen == [2, 1, 2, 2]
