"""Data: what is read of folders and arrays, and that nothing is lost or changed without a word."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowturbo.training import ArrayData, load_data
from flowturbo.training.data import load_images

LABELS = {"kind": "class", "labels": ["cat", "dog"]}


def _data(**changes: object) -> ArrayData:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    given = {"images": images, "cond": torch.tensor([0, 1]), "condition": LABELS}
    return ArrayData(**(given | changes))


def test_digest_names_all_that_decides_a_run() -> None:
    data = _data()
    changed = data.images.clone()
    changed[1, 2, 3, 4] ^= 1
    others = [
        _data(images=changed),
        _data(images=data.images.flip(0)),
        _data(images=data.images.reshape(2, 3, 5, 4)),
        _data(cond=torch.tensor([1, 0])),
        _data(condition={"kind": "class", "labels": ["cat", "cow"]}),
        _data(cond=None, condition=None),
    ]
    digests = {d.digest() for d in [data, *others]}
    assert len(digests) == 1 + len(others)
    assert all(len(d) == 16 and int(d, 16) >= 0 for d in digests)


def test_digest_is_of_the_content_alone() -> None:
    same = _data(condition={"labels": ["cat", "dog"], "kind": "class"})
    strided = _data(images=_data().images.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1))
    assert _data().digest() == same.digest() == strided.digest() == "2923721f99257943"


@pytest.mark.parametrize("cond", [[0, 2], [-1, 0], [0.0, 1.0], [[0], [1]], None])
def test_classes_that_are_no_indices_of_labels_are_refused(cond: object) -> None:
    with pytest.raises(ValueError, match="cond: "):
        _data(cond=None if cond is None else torch.tensor(cond))


def saved(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def claimed(path: Path, shape: tuple[int, ...], data: bytes = b"", **head: Any) -> Path:
    """An .npz file whose "images" claim to be of ``shape``."""
    file = io.BytesIO()
    made = {"descr": "|u1", "fortran_order": False, "shape": shape, **head}
    np.lib.format.write_array_header_1_0(file, made)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("images.npy", file.getvalue() + data)
    return path


ZEROS = np.zeros((2, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": ZEROS.astype(np.float32)}, r"needs 'images' .* uint8; holds .* float32"),
        ({"images": np.full((2, 4, 4), np.nan)}, r"needs 'images' .* uint8; holds .* float64"),
        ({"images": ZEROS.astype(np.int64)}, r"needs 'images' .* uint8; holds .* int64"),
        ({"images": ZEROS[0]}, r"needs 'images' .*; holds 'images' \(4, 4\)"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"of 4 channels; they are \(N, H, W, C\)"),
        ({"images": np.array([{}, {}])}, r"'images' holds Python objects"),
        ({"images": ZEROS, "labels": np.array([0, None])}, r"'labels' holds Python objects"),
        ({"images": ZEROS, "labels": np.eye(2)}, r"'labels' \(2, 2\) float64 must be \(2,\)"),
        ({"images": ZEROS, "labels": [0, 10**7]}, r"label 10000000; .* below 1000000"),
        ({"images": ZEROS, "labels": [0, np.inf]}, r"label inf; number them from 0"),
        ({"x_train": ZEROS, "y_train": [0, 1]}, r"needs 'images' .*; holds x_train, y_train"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, arrays: Any, message: str) -> None:
    path = saved(tmp_path / "a.npz", **arrays)
    for call in (load_data, load_images):
        with pytest.raises(ValueError, match=rf"a.npz.*{message}"):
            call(path, 4)


def test_what_else_is_in_an_npz_file_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "A.NPZ.npz", images=np.asfortranarray(ZEROS), captions=["a", "b"])
    path = path.rename(tmp_path / "a.NPZ")
    assert load_data(path, 4).describe() == "2 images, no captions or labels; left out: captions"
    path = saved(tmp_path / "b.npz", images=ZEROS, labels=[0, 3])
    assert load_data(path, 4).describe() == (
        "2 images, 4 classes: 0, 1, 2, 3 (2 of them without images)"
    )


@pytest.mark.parametrize(
    ("shape", "data", "head", "message"),
    [
        ((10**9, 32, 32), b"", {}, "should hold"),
        ((10**9, 32, 32), b"\0" * 4096, {"fortran_order": True}, "should hold"),
        ((2, 4, 4), b"\0" * 31, {}, "should hold"),
        ((2, 4, 4), b"\0" * 33, {}, "should hold"),
        ((-1, 4, 4), b"", {}, "should hold"),
        ((2, 4, 4), b"cos\nsystem\n", {"descr": "|O"}, "Python objects"),
    ],
)
def test_heads_that_do_not_tell_the_truth(
    tmp_path: Path, shape: Any, data: bytes, head: Any, message: str
) -> None:
    path = claimed(tmp_path / "a.npz", shape, data, **head)
    with pytest.raises(ValueError, match=rf"a.npz': cannot be read as .npz \('images' .*{message}"):
        load_data(path, 32)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    path = saved(tmp_path / "a.npz", images=ZEROS)
    for data in (tmp_path, path):
        with pytest.raises(
            ValueError, match=r"images? of 10000000 x 10000000 take .* this machine"
        ):
            load_data(data, 10**7)
    monkeypatch.setattr(os, "sysconf", lambda name: 31 if "PHYS" in name else 1)
    with pytest.raises(ValueError, match=r"'images' \(2, 4, 4\) take 0.0 GB of memory"):
        load_data(path, 4)


@pytest.mark.parametrize("size", [0, -1, 2.5, "32", None, (4,), (4, 0)])
def test_a_size_is_a_whole_number(tmp_path: Path, size: Any) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"size=.*: must be a whole number from 1"):
        load_data(tmp_path, size)


NPZ = io.BytesIO()
np.savez_compressed(NPZ, images=np.arange(32, dtype=np.uint8).reshape(2, 4, 4), labels=[0, 1])


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4), st.floats(0.1, 1))
@settings(max_examples=150, deadline=None)
def test_damaged_arrays_are_read_or_named(changes: Any, share: float) -> None:
    raw = bytearray(NPZ.getvalue())
    for at, byte in changes:
        raw[int(at * (len(raw) - 1))] = byte
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "a.npz")
        path.write_bytes(raw[: int(share * len(raw))])
        try:
            data = load_data(path, 4)
        except ValueError as e:
            told = str(e)
        else:
            told = f"{path}" if len(data) + 2 * len(data.left_out) >= 2 else ""
        assert str(path) in told
