"""Our own autoencoder: its shapes, its normalisation, and its place in a model's folder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import flowturbo as ft
from flowturbo.models.autoencoder import (
    WEIGHTS,
    Autoencoder,
    AutoencoderConfig,
    load_autoencoder,
    save_autoencoder,
)
from flowturbo.models.checkpoint import CARD, save_folder
from flowturbo.models.sit import SiT, SiTConfig

SMALL = AutoencoderConfig(latent_channels=2, widths=[4, 6, 8], blocks=[0, 1, 1], groups=2)


def images(n=6, side=16):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = Autoencoder(SMALL).eval().requires_grad_(False)
    made.standardise([images()[:4] * 2 - 1, images()[4:] * 2 - 1])
    return made


@pytest.fixture
def folder(tmp_path, network):
    """A model of latents with its autoencoder in its folder."""
    sit = SiT(SiTConfig(size=4, channels=2, patch=2, width=16, depth=1, heads=2))
    entry = save_autoencoder(tmp_path / "m", network, dtype=torch.float32)
    save_folder(tmp_path / "m", sit, {"codec": entry})
    return tmp_path / "m"


@pytest.mark.parametrize("groups", [0, 4])
@pytest.mark.parametrize(("widths", "factor"), [([8], 1), ([4, 8], 2), ([8, 4, 8], 4)])
def test_shapes_follow_from_the_config(widths, factor, groups):
    config = AutoencoderConfig(
        channels=1, latent_channels=3, widths=widths, blocks=[1] * len(widths), groups=groups
    )
    network = Autoencoder(config)
    assert network.factor == factor
    z = network.encode(torch.zeros(2, 1, 8, 12))
    assert z.shape == (2, 3, 8 // factor, 12 // factor)
    assert network.decode(z).shape == (2, 1, 8, 12)


def test_it_learns_to_reproduce_images():
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig(latent_channels=4, widths=[8, 16], blocks=[1, 1]))
    x = images(4, 8).round() * 2 - 1
    x = torch.nn.functional.interpolate(x[..., :4, :4], scale_factor=2)  # 3 numbers a latent
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    losses = []
    for _ in range(25):
        loss = (network.decode(network.encode(x)) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_latents_are_standardised_and_decode_undoes_it(network):
    z = network.encode(images() * 2 - 1)
    assert z.mean((0, 2, 3)).abs().max() < 1e-5
    assert (z.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    raw = network.encoder(images() * 2 - 1)
    assert torch.allclose(network.decode(z), network.decoder(raw), atol=1e-5)


def test_a_channel_that_is_the_same_everywhere_is_not_standardised(network):
    network.encoder[-1].weight[0] = 0
    with pytest.raises(ValueError, match="is the same in all images"):
        network.standardise([images()])


def test_a_model_decodes_with_the_autoencoder_in_its_folder(folder, network, tmp_path):
    model = ft.load(folder)
    assert model.card["codec"]["config"] == SMALL.model_dump()
    assert model.image_shape == (3, 16, 16)
    assert model.limits is None
    z = torch.randn(3, 2, 4, 4)
    exact = (network.decode(z) / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(model.decode(z), exact, atol=1e-5)
    assert torch.allclose(model.encode(images()), network.encode(images() * 2 - 1), atol=1e-5)
    moved = ft.load(folder.rename(tmp_path / "elsewhere"), dtype=torch.bfloat16)
    assert moved.codec.network.mean.dtype == torch.bfloat16
    assert (moved.decode(z) - exact).abs().max() < 0.1
    with pytest.raises(ValueError, match="the autoencoder it came with; leave vae out"):
        ft.load(tmp_path / "elsewhere", vae=tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widths": [4, 6, 8, 10]}, "3 blocks for 4 widths"),
        ({"groups": 4}, "must be multiples of groups=4"),
        ({"channels": 2}, "channels: 2"),
        ({"widths": []}, "widths"),
        ({"widths": [10**9] * 3}, "widths"),
        ({"blocks": [1, 1, -1]}, "blocks"),
        ({"latent_channels": "2"}, "latent_channels"),
        ({"depth": 3}, "depth"),
        ({"latent_channels": 3}, "is .*, the config wants"),
        ({"blocks": [1, 1, 1]}, "another architecture"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(folder, config, message):
    card = json.loads((folder / CARD).read_text())
    card["codec"]["config"] |= config
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match=message) as e:
        _ = ft.load(folder).codec
    assert len(str(e.value).splitlines()) == 1


def test_weights_that_are_missing_or_wrong_are_named(folder, tmp_path):
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "std": tensors["std"] * 0}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: a standard deviation is not above 0"):
        ft.load(folder).decode(torch.zeros(1, 2, 4, 4))
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: no such file, and the card names it"):
        ft.load(folder).decode(torch.zeros(1, 2, 4, 4))
    sit = SiT(SiTConfig(size=4, channels=5, patch=2, width=16, depth=1, heads=2))
    entry = save_autoencoder(tmp_path / "n", Autoencoder(SMALL))
    save_folder(tmp_path / "n", sit, {"codec": entry})
    with pytest.raises(ValueError, match=r"latents of 2 channels, and model 'n' generates 5x4x4"):
        _ = ft.load(tmp_path / "n").codec


def test_half_precision_on_disk_is_near(network, tmp_path):
    save_autoencoder(tmp_path, network)
    again = load_autoencoder(tmp_path / WEIGHTS, SMALL.model_dump(), "cpu", torch.float32)
    z = torch.randn(2, 2, 4, 4)
    assert torch.allclose(again.decode(z), network.decode(z), atol=1e-2)
