"""Codecs: what diffusers' pipelines decode, pixels, and every autoencoder that does not fit."""

from __future__ import annotations

import json
import sys

import autoencoders
import diffusers
import pytest
import torch
from integrations import pipelines
from safetensors.torch import load_file, save_file

import flowturbo as ft
from flowturbo.models import codec as codecs
from flowturbo.models.checkpoint import CARD, save_folder
from flowturbo.models.codec import Latents, Pixels
from flowturbo.models.codec_entry import latent_codec, latent_entry
from flowturbo.models.sit import SiT, SiTConfig

STATE = (4, 8, 8)


@pytest.fixture
def kl(tmp_path):
    return autoencoders.folder(tmp_path / "kl", autoencoders.kl())


@pytest.fixture
def latent(tmp_path, kl):
    """The folder of a model of latents of ``kl``."""
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=8, channels=4, patch=4, width=16, depth=1, heads=2, classes=3))
    condition = {"kind": "class", "labels": ["a", "b", "c"]}
    save_folder(tmp_path / "m", network, {"codec": latent_entry(kl), "condition": condition})
    return tmp_path / "m"


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def change(path, **entries):
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, **entries}))


@pytest.mark.parametrize(
    ("family", "vae"),
    [
        ("U-Net", autoencoders.kl()),
        ("U-Net", autoencoders.kl(scaling_factor=0.7)),
        ("SD3", autoencoders.kl(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)),
        ("U-Net", autoencoders.tiny()),
        ("SD3", autoencoders.tiny(latent_channels=16, scaling_factor=0.5, shift_factor=0.3)),
    ],
    ids=["KL", "KL scaled", "KL shifted", "Tiny", "Tiny shifted"],
)
def test_decodes_as_the_pipelines_of_diffusers_do(family, vae, tmp_path):
    cell = pipelines.CELLS[family]
    pipe = cell.build(
        diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
        if family == "U-Net"
        else pipelines.EULER()
    )
    pipe.register_modules(vae=vae)
    latents, images = (cell.call(pipe, 2, output_type=kind) for kind in ("latent", "pt"))
    made = latent_codec(autoencoders.folder(tmp_path, vae)).decode(latents)
    assert made.std() > 0.02
    assert torch.allclose(made, images, atol=1e-5)


def test_channels_with_means_and_deviations_decode_as_in_sdxl(tmp_path):
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.5, 0.5, 2.0, 1.0]
    vae = autoencoders.kl(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    codec, z = latent_codec(autoencoders.folder(tmp_path, vae)), states(2, *STATE)
    m, s = (torch.tensor(a).view(1, 4, 1, 1) for a in (mean, std))
    told = vae.decode(z * s / 0.5 + m).sample  # pipeline_stable_diffusion_xl.py
    assert torch.allclose(codec.decode(z), (told / 2 + 0.5).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("make", [autoencoders.kl, autoencoders.tiny])
def test_encodes_to_what_a_pipeline_would_decode(make, tmp_path):
    vae = make(scaling_factor=0.5, shift_factor=0.2)
    codec = latent_codec(autoencoders.folder(tmp_path, vae))
    images = torch.rand(3, 3, 16, 16)
    latents = codec.encode(images)
    assert latents.shape == (3, *STATE)
    assert torch.equal(latents, codec.encode(images))
    found = vae.encode(images * 2 - 1)
    told = found.latents if hasattr(found, "latents") else found.latent_dist.mean
    assert torch.allclose(latents, (told - 0.2) * 0.5, atol=1e-6)


def test_a_large_batch_is_decoded_in_parts(kl, monkeypatch):
    codec, z = latent_codec(kl), states(5, *STATE)
    whole, seen = codec.decode(z), []
    monkeypatch.setattr(codecs, "MOST_PIXELS", 2 * 16 * 16)
    codec.network.vae.decoder.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
    assert torch.allclose(codec.decode(z), whole, atol=1e-6)
    assert seen == [2, 2, 1]
    assert codec.decode(z[:0]).shape == (0, 3, 16, 16)
    assert codec.encode(whole[:0]).shape == (0, *STATE)


@pytest.mark.parametrize(
    ("vae", "dtype", "computes"),
    [
        (autoencoders.kl(), torch.float16, torch.float32),  # force_upcast is True
        (autoencoders.kl(force_upcast=False), torch.float16, torch.float16),
        (autoencoders.kl(), torch.bfloat16, torch.bfloat16),
        (autoencoders.tiny(), torch.float16, torch.float16),
    ],
)
def test_the_precision_is_the_models_unless_its_config_asks_for_more(
    vae, dtype, computes, tmp_path
):
    codec = latent_codec(autoencoders.folder(tmp_path, vae), dtype=dtype)
    assert codec.network.vae.dtype == computes
    made = codec.decode(states(2, *STATE))
    assert made.dtype == torch.float32
    exact = latent_codec(tmp_path).decode(states(2, *STATE))
    assert (made - exact).abs().max() < 0.05


def test_pixels_are_scaled_and_clipped():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0]).view(1, 1, 1, 5)
    assert Pixels().decode(x).flatten().tolist() == [0, 0, 0.5, 0.75, 1]
    images = torch.rand(2, 3, 4, 4)
    assert torch.allclose(Pixels().decode(Pixels().encode(images)), images)


def test_a_model_of_latents_decodes_encodes_and_has_no_limits(latent, kl):
    model = ft.load(latent)
    assert model.card["codec"] == {
        "kind": "latent", "autoencoder": str(kl), "channels": 4, "factor": 2,
    }  # fmt: skip
    assert model.limits is None
    assert model.shape == STATE
    assert model.image_shape == (3, 16, 16)
    images = model.decode(states(2, *STATE))
    assert torch.equal(images, latent_codec(kl).decode(states(2, *STATE)))
    assert model.encode(images).shape == (2, *STATE)
    images = ft.generate(model, ["a", "b"], plan="E2")
    assert [image.size for image in images] == [(16, 16)] * 2
    before = model.fingerprint
    assert [name for name, _ in model.named_parameters() if "vae" in name] == []
    assert before == ft.load(latent).fingerprint


def test_the_autoencoder_may_be_in_the_models_folder_or_in_a_pipeline(latent, kl, tmp_path):
    exact = ft.load(latent).decode(states(1, *STATE))
    kl.rename(latent / "vae")  # as in a pipeline of diffusers
    for name in (latent / "vae", latent):
        assert torch.equal(ft.load(latent, vae=name).decode(states(1, *STATE)), exact)
    assert latent_entry(latent / "vae", latent)["autoencoder"] == "vae"
    change(latent / CARD, codec=latent_entry(latent / "vae", latent))
    moved = latent.rename(tmp_path / "moved")
    assert torch.equal(ft.load(moved).decode(states(1, *STATE)), exact)


def test_an_autoencoder_on_the_hub_is_fetched_alone(latent, kl, monkeypatch):
    asked = {}

    def snapshot_download(repo, revision=None, allow_patterns=None):
        asked.update(repo=repo, revision=revision, files=allow_patterns)
        return str(kl)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = ft.load(latent, vae="hf:someone/vae@v1")
    assert model.card["codec"]["autoencoder"] == "hf:someone/vae@v1"
    weights = "diffusion_pytorch_model.safetensors"
    assert asked == {
        "repo": "someone/vae",
        "revision": "v1",
        "files": ["config.json", weights, "vae/config.json", f"vae/{weights}"],
    }


def test_what_cannot_be_fetched_names_the_option(latent, monkeypatch):
    def snapshot_download(repo, **options):
        raise OSError("offline\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    change(latent / CARD, codec={"kind": "latent", "autoencoder": "hf:someone/vae"})
    model = ft.load(latent)
    with pytest.raises(ValueError, match=r"'hf:someone/vae' could not be .*: offline; pass --vae"):
        ft.generate(model, ["a"], callback=lambda step: pytest.fail("sampled"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(latent_channels=16),
            "latents of 16 channels .* model 'm' generates latents of 4x8x8",
        ),
        (
            dict(
                block_out_channels=(4, 4, 4),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
            ),
            "images 4 times as large, and model 'm' .* for images 2 times as large",
        ),
        (dict(out_channels=4), "encodes 3 channels at 1/2 of their size and decodes 4 at 2 times"),
    ],
)
def test_an_autoencoder_of_other_states_is_refused_before_sampling(
    latent, tmp_path, changes, message
):
    other = autoencoders.folder(tmp_path / "other", autoencoders.kl(**changes))
    with pytest.raises(ValueError, match=message):
        ft.load(latent, vae=other)
    autoencoders.folder(tmp_path / "kl", autoencoders.kl(**changes))  # in the place of the card's
    model = ft.load(latent)
    with pytest.raises(ValueError, match=rf"{message}.*; pass --vae FOLDER"):
        ft.generate(model, ["a"], callback=lambda step: pytest.fail("sampled"))


def test_names_of_nothing_are_refused(latent, digits, tmp_path):
    with pytest.raises(ValueError, match="no such folder; on the hub it is written 'hf:some/vae'"):
        ft.load(latent, vae="some/vae")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json in .*empty"):
        ft.load(latent, vae=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"written hf:owner/repo"):
        ft.load(latent, vae="hf:vae")
    with pytest.raises(ValueError, match=r"'digits' generates pixels; leave vae out"):
        ft.load("digits", vae=tmp_path)
    change(latent / CARD, codec={"kind": "latent"})
    with pytest.raises(ValueError, match=r"its card names no autoencoder; pass --vae"):
        ft.load(latent).decode(states(1, *STATE))


def damage_config(text):
    return lambda kl: (kl / "config.json").write_text(text)


def damage_weights(kl):
    path = kl / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def break_weights(kl):
    path = kl / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, path)


def rename_weight(kl):
    path = kl / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["strange"] = tensors.pop(next(iter(tensors)))
    save_file(tensors, path)


def pickle_weights(kl):
    path = kl / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), kl / "diffusion_pytorch_model.bin")
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_config("no"), "not JSON"),
        (damage_config("[]"), "config.json"),
        (damage_config("{}"), "_class_name"),
        (damage_config('{"_class_name": "AutoencoderDC"}'), "of class 'AutoencoderDC'; must be"),
        (damage_config('{"_class_name": "AutoencoderKL", "latent_channels": "4"}'), "latent_chan"),
        (lambda kl: change(kl / "config.json", scaling_factor=0), "scaling_factor"),
        (lambda kl: change(kl / "config.json", latents_mean=["a"]), "latents_mean"),
        (lambda kl: change(kl / "config.json", latents_mean=[0.0] * 3), "latents_mean"),
        (lambda kl: change(kl / "config.json", latents_std=[0.0] * 4), "latents_std"),
        (lambda kl: change(kl / "config.json", block_out_channels=[10**9] * 2), "block_out"),
        (lambda kl: change(kl / "config.json", block_out_channels=[4096] * 2), "holds .* wants"),
        (lambda kl: change(kl / "config.json", layers_per_block=10**9), "layers_per_block"),
        (lambda kl: change(kl / "config.json", norm_num_groups=0), "cannot be loaded"),
        (lambda kl: change(kl / "config.json", act_fn="nothing"), "cannot be loaded"),
        (damage_weights, "cannot be loaded"),
        (break_weights, "NaN"),
        (rename_weight, "weights are of another autoencoder"),
        (pickle_weights, "no diffusion_pytorch_model.safetensors"),
    ],
)
def test_damaged_files_are_one_line(kl, damage, message):
    damage(kl)
    with pytest.raises(ValueError, match=message) as e:
        latent_codec(kl)
    assert len(str(e.value).splitlines()) == 1
    assert str(kl) in str(e.value)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "latent",
        [],
        {},
        {"kind": "video"},
        {"kind": ["latent"]},
        {"kind": "latent", "autoencoder": 5},
        {"kind": "latent", "autoencoder": "vae", "factor": 8.5},
        {"kind": "latent", "autoencoder": "vae", "channels": 0},
        {"kind": "autoencoder"},
        {"kind": "autoencoder", "weights": "../x.safetensors", "config": {}},
        {"kind": "autoencoder", "weights": "x.pt", "config": {}},
        {"kind": "autoencoder", "weights": "x.safetensors", "config": 5},
    ],
)
def test_an_entry_of_another_form_is_refused_by_the_card(latent, entry):
    change(latent / CARD, codec=entry)
    with pytest.raises(ValueError, match=r"card.json: codec.*; restore the file"):
        ft.load(latent)


def test_without_diffusers_the_extra_is_named(latent, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'flowturbo\[diffusers\]'"):
        ft.load(latent).decode(states(1, *STATE))


def test_states_and_images_of_other_shapes_are_refused(kl):
    codec = latent_codec(kl)
    with pytest.raises(ValueError, match=r"states of 3x8x8: .* decodes 4 channels"):
        codec.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"states of shape \(4, 8, 8\): must be"):
        codec.decode(torch.zeros(4, 8, 8))
    for shape in ((1, 16, 16), (3, 15, 16)):
        with pytest.raises(ValueError, match=r"encodes 3 channels, .* multiples of 2"):
            codec.encode(torch.zeros(1, *shape))


def test_images_that_are_not_finite_are_refused(kl):
    with pytest.raises(ValueError, match=r"not finite in torch.float32"):
        latent_codec(kl).decode(torch.full((1, *STATE), torch.inf))


def test_a_codec_names_what_it_decodes_with(kl, tmp_path):
    other = autoencoders.folder(tmp_path / "other", autoencoders.kl(scaling_factor=0.5))
    marks = [latent_codec(path).fingerprint for path in (kl, kl, other)]
    assert marks[0] == marks[1] != marks[2]
    assert Pixels().fingerprint is None
    assert isinstance(latent_codec(kl), Latents)


def test_attention_under_its_old_names_is_read(tmp_path):
    """As in the files of Stable Diffusion's first autoencoders."""
    vae = autoencoders.kl(mid_block_add_attention=True)
    exact = latent_codec(autoencoders.folder(tmp_path, vae)).decode(states(1, *STATE))
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, p in load_file(path).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        tensors[name] = p
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path)
    assert torch.equal(latent_codec(tmp_path).decode(states(1, *STATE)), exact)
