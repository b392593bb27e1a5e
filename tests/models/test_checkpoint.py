"""Checkpoints: what is saved comes back, what is damaged is refused in one line."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import flowturbo as ft
from flowturbo.models.checkpoint import CARD, WEIGHTS, convert, load_folder, save_folder
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT

CONDITION = {"kind": "class", "labels": ["a", "b", "c", "d", "e"]}


@pytest.fixture
def folder(tiny: SiT, tmp_path: Path) -> Path:
    save_folder(tmp_path / "tiny", tiny, {"condition": CONDITION})
    return tmp_path / "tiny"


def test_round_trip_in_half_precision(tiny, folder):
    model = ft.load(folder)
    x, cond = torch.randn(2, 2, 8, 8), model.condition(["a", "e"])
    half = {k: p.half().float() for k, p in tiny.state_dict().items()}
    tiny.load_state_dict(half)
    torch.testing.assert_close(model(x, 0.4, cond), tiny(x, 0.4, cond), rtol=0, atol=0)
    assert model.name == "tiny"
    assert model.shape == (2, 8, 8)
    assert not any(p.requires_grad for p in model.parameters())
    assert load_file(folder / WEIGHTS)["pos_embed"].dtype == torch.float16


def test_fingerprint_is_computed_again_only_for_other_weights(tiny, monkeypatch):
    digests, sha256 = [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda: digests.append(1) or sha256())
    model = Model(copy.deepcopy(tiny), {})
    first = model.fingerprint
    assert model.fingerprint == first
    assert len(digests) == 1
    bias = model.network.final_layer.linear.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.add_(1.0)
    second = model.fingerprint
    with torch.no_grad():
        bias.copy_(kept)
    assert first == model.fingerprint != second
    model.network.final_layer.linear.bias = torch.nn.Parameter(kept + 1)
    assert model.fingerprint == second
    with torch.inference_mode():
        model.network.final_layer.linear.bias = torch.nn.Parameter(kept.clone())
    assert model.fingerprint == model.fingerprint == first


def test_fingerprint_follows_the_weights_not_the_precision(folder, tiny):
    first = ft.load(folder)
    assert ft.load(folder, dtype=torch.float16).fingerprint == first.fingerprint
    rounded = ft.load(folder, dtype=torch.bfloat16)
    assert rounded.fingerprint == first.fingerprint
    rounded.network.blocks[0].mlp.fc1.bias.add_(0.5)
    assert rounded.fingerprint != first.fingerprint
    tiny.blocks[0].mlp.fc1.bias.add_(0.5)
    save_folder(folder, tiny, {})
    assert ft.load(folder).fingerprint != first.fingerprint


def _truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def _edit_card(**changes):
    def edit(folder: Path) -> None:
        card = json.loads((folder / CARD).read_text())
        card["config"].update(changes.pop("config", {}))
        (folder / CARD).write_text(json.dumps({**card, **changes}))

    return edit


def _edit_weights(change):
    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return edit


def _cast(tensors, dtype):
    tensors.update({name: p.to(dtype) for name, p in tensors.items()})
    return tensors


def _rewrite(change):
    def edit(folder: Path) -> None:
        (folder / CARD).write_bytes(change((folder / CARD).read_text()))

    return edit


def _replace(path: Path, make) -> None:
    path.unlink()
    make(path)


def _pickle(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / WEIGHTS)


def _only_pickle(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    torch.save({"a": torch.zeros(1)}, folder / "model.pt")


DAMAGE = {
    "truncated": (_truncate, "corrupt or truncated"),
    "not safetensors": (lambda f: (f / WEIGHTS).write_bytes(b"nonsense" * 9), "corrupt"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "corrupt"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no model.safetensors"),
    "no card": (lambda f: (f / CARD).unlink(), "no card.json"),
    "a pipeline": (
        lambda f: (f / CARD).rename(f / "model_index.json"),
        "a pipeline of diffusers, not a model",
    ),
    "card not JSON": (lambda f: (f / CARD).write_text("{"), "card.json: not JSON"),
    "card not text": (lambda f: (f / CARD).write_bytes(b"\xff\xfe"), "not JSON"),
    "card in UTF-16": (_rewrite(lambda s: s.encode("utf-16")), "not JSON"),
    "card with a BOM": (_rewrite(lambda s: s.encode("utf-8-sig")), "not JSON .*BOM"),
    "a key twice": (
        _rewrite(lambda s: s.replace("{", '{"format": 1, ', 1).encode()),
        "given twice",
    ),
    "half a character": (_rewrite(lambda s: s.replace('"a"', '"\\ud800"').encode()), "surrogates"),
    "NaN on the card": (_rewrite(lambda s: s.replace("4.0", "NaN").encode()), "NaN is not allowed"),
    "an endless number": (_rewrite(lambda s: s.replace("4.0", "1e999").encode()), "not finite"),
    "a huge number": (_rewrite(lambda s: s.replace("4.0", "9" * 5000).encode()), "not JSON"),
    "a large number": (_rewrite(lambda s: s.replace("4.0", "9" * 400).encode()), "mlp_ratio"),
    "many values": (lambda f: (f / CARD).write_text("[" + "[]," * 3_000_000), "too many values"),
    "a large card": (lambda f: (f / CARD).write_text(" " * 2**25), "larger than 16777216 bytes"),
    "card a folder": (lambda f: _replace(f / CARD, Path.mkdir), "card.json is not a regular file"),
    "card a pipe": (lambda f: _replace(f / CARD, os.mkfifo), "card.json is not a regular file"),
    "weights a pipe": (lambda f: _replace(f / WEIGHTS, os.mkfifo), "is not a regular file"),
    "card a loop": (lambda f: _replace(f / CARD, lambda p: p.symlink_to(p)), "no card.json"),
    "weights a device": (
        lambda f: _replace(f / WEIGHTS, lambda p: p.symlink_to("/dev/zero")),
        "model.safetensors is not a regular file",
    ),
    "card a list": (lambda f: (f / CARD).write_text("[]"), "card.json: must be an object"),
    "card of the future": (_edit_card(format=99), "format: 99: this library reads version 1"),
    "other architecture": (_edit_card(architecture="unet"), "architecture: 'unet'.* 'sit'"),
    "another path": (_edit_card(path="cosine"), "path: 'cosine'.* 'linear'"),
    "unknown option": (_edit_card(config={"deepth": 2}), "did you mean 'depth'"),
    "deeper": (_edit_card(config={"depth": 3}), "another architecture"),
    "far deeper": (_edit_card(config={"depth": 900}), "32 tensors cannot be of depth=900"),
    "deeper than any": (_edit_card(config={"depth": 20_000}), "depth=20000: .* 1 to 1000"),
    "vast": (_edit_card(config={"size": 2**14, "width": 2**16}), "the config wants"),
    "vaster": (_edit_card(config={"classes": 10**10}), "classes=10000000000: must be"),
    "wider": (_edit_card(config={"width": 64}), "the config wants"),
    "NaN": (_edit_weights(lambda t: t["blocks.0.mlp.fc1.bias"].fill_(torch.nan)), "NaN"),
    "complex": (_edit_weights(lambda t: _cast(t, torch.complex64)), "C64; weights must be"),
    "whole numbers": (_edit_weights(lambda t: _cast(t, torch.int32)), "I32; weights must be"),
    "float8": (_edit_weights(lambda t: _cast(t, torch.float8_e4m3fn)), "F8_E4M3; weights must"),
    "too large for float32": (
        _edit_weights(lambda t: _cast(t, torch.float64)["pos_embed"].fill_(1e300)),
        "too large for torch.float32",
    ),
    "empty tensor": (_edit_weights(lambda t: t.update(pos_embed=torch.zeros(1, 0, 32))), "wants"),
    "vast header": (
        lambda f: (f / WEIGHTS).write_bytes((2**40).to_bytes(8, "little") + b"{" * 99),
        "a header of 1099511627776 bytes",
    ),
    "missing tensor": (_edit_weights(lambda t: t.pop("pos_embed")), "1 tensors missing"),
    "pickle in disguise": (_pickle, "pickle"),
    "pickle": (_only_pickle, "flowturbo convert"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_models_are_refused_in_one_line(folder, kind):
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(ValueError, match=message) as e:
        load_folder(folder)
    assert "\n" not in str(e.value)


def test_a_network_that_is_not_finite_is_not_saved(tiny, tmp_path):
    tiny.pos_embed[0, 0, 0] = 1e6  # beyond half precision
    with pytest.raises(ValueError, match="pos_embed"):
        save_folder(tmp_path / "m", tiny, {})
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"ema": s, "model": {}, "args": 3}])
def test_convert_official_pickle(tiny, tmp_path, wrap):
    torch.save(wrap(tiny.state_dict()), tmp_path / "sit.pt")
    convert(tmp_path / "sit.pt", tmp_path / "out", tiny.config, {"condition": CONDITION})
    x = torch.randn(1, 2, 8, 8)
    torch.testing.assert_close(
        ft.load(tmp_path / "out")(x, 0.5, None), tiny(x, 0.5), rtol=1e-2, atol=1e-2
    )


def test_convert_runs_no_code_and_checks_names(tmp_path, tiny):
    torch.save({"model": Path("/")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        convert(tmp_path / "evil.pt", tmp_path / "out", tiny.config)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="another architecture"):
        convert(tmp_path / "other.pt", tmp_path / "out", tiny.config)
    with pytest.raises(ValueError, match="does not exist"):
        convert(tmp_path / "none.pt", tmp_path / "out", tiny.config)
    assert not (tmp_path / "out").exists()


def test_labels(folder):
    model = ft.load(folder)
    assert model.condition(["a", "4", 2, ""]).tolist() == [0, 4, 2, 5]
    with pytest.raises(ValueError, match="has 5 labels"):
        model.condition(["12"])
    with pytest.raises(ValueError, match="pass a list"):
        model.condition("a")


def test_unknown_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        ft.load("digit")
    with pytest.raises(ValueError, match="hf:owner/repo"):
        ft.load("hf:nobody")
    (tmp_path / "file.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file"):
        ft.load(tmp_path / "file.safetensors")


def test_hub_names_fetch_a_folder(folder, monkeypatch):
    asked = {}

    def snapshot_download(repo, revision=None, **options):
        asked.update(repo=repo, revision=revision)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert ft.load("hf:someone/tiny@v1").shape == (2, 8, 8)
    assert asked == {"repo": "someone/tiny", "revision": "v1"}


def test_hub_failure_is_one_line(monkeypatch):
    def snapshot_download(repo, **options):
        raise OSError("offline\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"could not be fetched from the hub: offline$"):
        ft.load("hf:someone/tiny")


def test_configuration_of_a_latent_model_refuses_to_decode(tiny, tmp_path):
    save_folder(tmp_path / "m", tiny, {"codec": {"kind": "latent", "autoencoder": "sd-vae"}})
    with pytest.raises(ValueError, match=r"'sd-vae': no such folder; pass --vae"):
        ft.load(tmp_path / "m").decode(torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("config", "width", "32"),
        ("config", "width", 32.5),
        ("config", "depth", None),
        ("config", "classes", -1),
        ("config", "mlp_ratio", "4"),
        ("config", "mlp_ratio", -4),
        ("config", "mlp_ratio", True),
        ("config", "time_scale", 1e300),
        (None, "condition", None),
        (None, "name", 3),
        (None, "description", ["a"]),
        (None, "data", "MNIST"),
        (None, "training", 5),
        (None, "defaults", {"guidance": "2"}),
        (None, "defaults", {"guidance": 1e300}),
        (None, "defaults", {"plan": 8}),
        (None, "codec", {"kind": "latent", "autoencoder": 5}),
        ("condition", "kind", "words"),
        ("condition", "labels", [0, 1, 2, 3, 4]),
        ("condition", "styles", "noto"),
        ("condition", "groups", {"A": 3}),
        ("condition", "groups", {"A": []}),
        ("condition", "groups", {"A": [None]}),
        ("condition", "prompts", [1]),
        ("condition", "tokenizer", {"vocabulary": ["a"], "length": "16"}),
        ("condition", "kind", "text"),
        (None, "codec", "pixels"),
        (None, "codec", {}),
        (None, "defaults", []),
        ("condition", "labels", 5),
        ("condition", "labels", ["a", "b"]),
    ],
)
def test_a_card_with_a_wrong_entry_is_refused_by_name(folder, part, key, value):
    card = json.loads((folder / CARD).read_text())
    (card if part is None else card[part])[key] = value
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"card.json: "):
        ft.load(folder)


def test_a_card_nested_too_deep_is_refused(folder):
    (folder / CARD).write_text("[" * 100_000)
    for depth in (100, 900, 100_000):
        (folder / CARD).write_text("[" * depth + "]" * depth)
        with pytest.raises(ValueError, match="nested"):
            ft.load(folder)


@pytest.mark.parametrize("found", [{"a": 1}, {1: torch.ones(1)}, {"a": {"b": torch.ones(1)}}])
def test_a_checkpoint_of_other_things_is_refused(tiny, tmp_path, found):
    torch.save(found, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="is not a tensor with a name"):
        convert(tmp_path / "a.pt", tmp_path / "out", tiny.config)
    assert not (tmp_path / "out").exists()
