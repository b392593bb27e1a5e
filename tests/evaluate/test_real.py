"""Real images of an evaluation: read and refused like training data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowturbo.evaluate.real import load_real
from flowturbo.training import load_data


def pictures(folder: Path) -> Path:
    for i in range(10):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        suffix = ("png", "tif", "jfif")[i % 3]
        kind = Image.registered_extensions()[f".{suffix}"]
        Image.new("RGB", (6, 6), (i, 20 * i, 90)).save(folder / "ab"[i % 2] / f"{i}.{suffix}", kind)
    return folder


def test_folders_are_read_as_for_training(tmp_path):
    real = load_real(pictures(tmp_path / "data"), (3, 4, 4))
    assert real.images.equal(load_data(tmp_path / "data", 4).images)
    (tmp_path / "link").mkdir()
    (tmp_path / "link/a").symlink_to(tmp_path / "data")
    assert load_real(tmp_path / "link", (3, 4, 4)).about["digest"] == real.about["digest"]


def test_what_is_left_out_is_named(tmp_path):
    (pictures(tmp_path) / ".c.png").write_bytes(b"no")
    with pytest.warns(UserWarning, match=r"left out: .c.png"):
        assert load_real(tmp_path, (3, 4, 4)).about["images"] == 10


def test_damaged_images_are_named(tmp_path):
    (pictures(tmp_path) / "c.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"^real_images: .*c.png: not a readable image"):
        load_real(tmp_path, (3, 4, 4))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((9, 3)), "9 rows of features; at least 10"),
        (np.ones((10, 3), int), r"'features' \(10, 3\) int64; must be \(M, D\) floats"),
        (np.full((10, 3), np.nan), "not finite"),
        (np.full((10, 3), 1e300), "not finite in float32"),
        (np.array([{}] * 10), "holds Python objects"),
    ],
)
def test_features_that_do_not_fit_are_named(tmp_path, features, message):
    np.savez(tmp_path / "a.npz", features=features)
    with pytest.raises(ValueError, match=f"^real_images: .*a.npz.*{message}"):
        load_real(tmp_path / "a.npz", (3, 4, 4))
