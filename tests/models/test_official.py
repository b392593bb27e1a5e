"""Checkpoints of others: what they are wrapped in, and what is said where they do not fit."""

from __future__ import annotations

import argparse
import collections
import math
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import flowturbo as ft
from flowturbo.models.checkpoint import convert, read_tensors
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner


def _prefixed(prefix):
    return lambda state: {prefix + name: p for name, p in state.items()}


ARGUMENTS = argparse.Namespace(model="SiT-XL/2", lr=1e-4, sample=None)
WRAPPED = {
    "as it is": lambda s: s,
    "of the official trainer": lambda s: {
        "model": _prefixed("module.")(s), "ema": s, "opt": {"state": {}}, "args": ARGUMENTS,
    },
    "parallel": _prefixed("module."),
    "compiled": _prefixed("_orig_mod."),
    "parallel, compiled": _prefixed("module._orig_mod."),
    "compiled, parallel": _prefixed("_orig_mod.module."),
    "compiled blocks": lambda s: {k.replace("attn.", "attn._orig_mod."): p for k, p in s.items()},
    "one in another": lambda s: {"state_dict": {"ema": _prefixed("module.")(s)}},
    "empty average": lambda s: {"ema": {}, "model": s},
    "ordered": collections.OrderedDict,
    "with gradients": lambda s: {k: torch.nn.Parameter(p) for k, p in s.items()},
    "in bfloat16": lambda s: {k: p.bfloat16() for k, p in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_weights_are_found_in_what_they_are_wrapped_in(tiny, tmp_path, kind):
    state = {k: p.bfloat16().float() for k, p in tiny.state_dict().items()}
    torch.save(WRAPPED[kind](state), tmp_path / "sit.pt")
    convert(tmp_path / "sit.pt", tmp_path / "out", tiny.config, dtype=torch.float32)
    found = ft.load(tmp_path / "out").network.state_dict()
    assert all(torch.equal(found[name], p) for name, p in state.items())


def test_safetensors_are_known_by_their_content(tiny, tmp_path):
    save_file(_prefixed("module.")(tiny.state_dict()), tmp_path / "sit.bin")
    assert read_tensors(tmp_path / "sit.bin").keys() == tiny.state_dict().keys()
    torch.save(tiny.state_dict(), tmp_path / "sit.safetensors")
    assert read_tensors(tmp_path / "sit.safetensors").keys() == tiny.state_dict().keys()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_namespace_is_the_one_extra_type_and_no_code_is_run(tmp_path, legacy):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for found in (Evil(), argparse.Namespace(path=Evil()), argparse.Namespace(path=Path("/"))):
        torch.save(
            {"ema": {}, "args": found}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy
        )
        with pytest.raises(ValueError, match=r"plain tensors \(it holds a [\w.]+\); save") as e:
            read_tensors(tmp_path / "a.pt")
        assert "\n" not in str(e.value)
        assert "\x1b" not in str(e.value)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        read_tensors(tmp_path / "a.pkl")
    assert not (tmp_path / "ran").exists()


TENSORS = {
    "complex64": lambda p: p.to(torch.complex64),
    "int32": lambda p: p.to(torch.int32),
    "bool": lambda p: p.to(torch.bool),
    "float8_e4m3fn": lambda p: p.to(torch.float8_e4m3fn),
    "sparse_coo": lambda p: p.to_sparse(),
    "quint8": lambda p: torch.quantize_per_tensor(p, 0.1, 0, torch.quint8),
    "nested": lambda p: torch.nested.nested_tensor([p[0], p[0]]),
    "has no values": lambda p: p.to("meta"),
    "NaN": lambda p: p * torch.nan,
    "too large for torch.float32": lambda p: p.double() + 1e300,
    "wants": lambda p: p[:0],
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_than_real_dense_weights_are_refused(tiny, tmp_path, kind):
    state = tiny.state_dict()
    state["blocks.0.mlp.fc1.weight"] = TENSORS[kind](state["blocks.0.mlp.fc1.weight"])
    torch.save(state, tmp_path / "sit.pt")
    with pytest.raises(ValueError, match=rf"sit.pt: blocks.0.mlp.fc1.weight .*{kind}") as e:
        convert(tmp_path / "sit.pt", tmp_path / "out", tiny.config)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


def test_a_complex_network_is_not_saved(tiny, tmp_path):
    tiny.pos_embed.data = tiny.pos_embed.data.to(torch.complex64)
    with pytest.raises(ValueError, match=r"pos_embed is torch.complex64; weights must be"):
        ft.models.checkpoint.save_folder(tmp_path / "m", tiny, {})
    assert not (tmp_path / "m").exists()


def _empty(config, images=1):
    """A checkpoint with the names and shapes of a network and one number for each tensor."""
    with torch.device("meta"):
        network = SiT(config, images=images)
    return {k: torch.zeros(1).expand(p.shape) for k, p in network.state_dict().items()}


XL = SiTConfig.named("XL/2")
FITS = [
    ({"size": 64}, "pass --size 64$"),
    ({"classes": 10}, "pass --classes 10$"),
    ({"name": "S/4", "size": 64, "classes": 10}, "pass -a S/4 --size 64 --classes 10$"),
    ({"name": "B/2"}, "pass -a B/2$"),
    ({"name": "B/2", "depth": 3}, "it has width=768, depth=3: convert it from Python"),
    ({"channels": 16}, "it has channels=16: convert it from Python"),
    ({"learn_sigma": False}, "it has learn_sigma=False: convert it from Python"),
    ({"classes": 0, "vocabulary": 9}, "not have the names and shapes of a class-conditional SiT$"),
]


@pytest.mark.parametrize(("made", "fix"), FITS)
def test_what_does_not_fit_is_told_by_the_option_to_change(tmp_path, made, fix):
    config = SiTConfig.named(**{"name": "XL/2", **made})
    torch.save({"ema": _empty(config)}, tmp_path / "sit.pt")
    with pytest.raises(ValueError, match=fix) as e:
        convert(tmp_path / "sit.pt", tmp_path / "out", XL)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


def test_a_refiner_is_told_from_a_model(tmp_path):
    small = SiTConfig.named("S/2", depth=1, learn_sigma=True)
    torch.save(_empty(small, images=2), tmp_path / "refiner.pt")
    with pytest.raises(ValueError, match=r"pass -a S/2 --refiner$"):
        convert(tmp_path / "refiner.pt", tmp_path / "out", XL)
    with pytest.raises(ValueError, match=r"pass -a S/2$"):
        PaperRefiner.from_official(tmp_path / "refiner.pt", XL)
    torch.save(_empty(SiTConfig.named("S/2", size=64)), tmp_path / "sit.pt")
    with pytest.raises(ValueError, match=r"a whole SiT, .* leave out --refiner and pass .*64"):
        PaperRefiner.from_official(tmp_path / "sit.pt", XL)


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "text": lambda data: b"hello, world",
    "nulls": lambda data: bytes(len(data)),
    "a flipped bit": lambda data: data.replace(b"ctorch._utils", b"ctorch._utilz"),
    "a page": lambda data: b"<!DOCTYPE html><title>Not found</title>",
    "a pointer": lambda data: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused_in_one_line(tiny, tmp_path, kind):
    torch.save(tiny.state_dict(), tmp_path / "sit.pt")
    (tmp_path / "sit.pt").write_bytes(DAMAGE[kind]((tmp_path / "sit.pt").read_bytes()))
    with pytest.raises(ValueError, match=r"sit\.pt: not a checkpoint of plain tensors") as e:
        convert(tmp_path / "sit.pt", tmp_path / "out", tiny.config)
    assert "\n" not in str(e.value)


def test_an_archive_that_unpacks_to_more_than_its_size_is_not_unpacked(tiny, tmp_path):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"b\.pt: it unpacks to more than its size"):
        read_tensors(tmp_path / "b.pt")


def test_a_checkpoint_that_holds_itself_or_a_name_twice(tmp_path):
    itself: dict = {}
    itself["ema"] = itself
    torch.save(itself, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="entry 'ema' is not a tensor"):
        read_tensors(tmp_path / "a.pt")
    torch.save({"a": torch.ones(1), "module.a": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="'a' is there twice"):
        read_tensors(tmp_path / "a.pt")


def test_a_tensor_larger_than_its_file_is_refused_by_its_shape(tiny, tmp_path):
    state = tiny.state_dict() | {"pos_embed": torch.zeros(1).expand(10**6, 10**6)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"pos_embed is \(1000000, 1000000\), the config wants"):
        convert(tmp_path / "a.pt", tmp_path / "out", tiny.config)
    assert math.prod(state["pos_embed"].shape) == 10**12


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda p: p.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="is not a regular file"):
        read_tensors(tmp_path / "a.pt")
