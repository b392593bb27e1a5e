"""Pictures that are read: of any kind, upright, on white, in 8 bits; or refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowturbo.images import is_image, read_image


def middle(path: Path, image: Image.Image, **options) -> list[int]:
    """The RGB of the middle of ``image`` as it is read."""
    image.save(path, **options)
    with warnings.catch_warnings(action="error"):
        return read_image(path, 4)[:, 2, 2].tolist()


def test_colours_of_print_are_turned_into_rgb(tmp_path):
    assert middle(tmp_path / "a.tif", Image.new("CMYK", (9, 9), (0, 255, 255, 0))) == [255, 0, 0]
    red, *others = middle(tmp_path / "a.jpg", Image.new("CMYK", (9, 9), (0, 255, 255, 0)))
    assert red > 245
    assert max(others) < 10


def test_the_first_frame_of_animated_pictures_is_read(tmp_path):
    frames = [Image.new("RGB", (9, 9), c) for c in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp", "a.apng", "a.tif"):
        lossless = {"lossless": True} if name == "a.webp" else {}
        shown = middle(
            tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **lossless
        )
        assert shown == [255, 0, 0]


def test_palettes_may_hold_transparent_colours(tmp_path):
    image = Image.new("P", (9, 9), 1)
    image.putpalette([0, 0, 0, 0, 0, 255])
    assert middle(tmp_path / "a.png", image) == [0, 0, 255]
    assert middle(tmp_path / "a.png", image, transparency=b"\xff\x00") == [255, 255, 255]
    assert middle(tmp_path / "a.gif", image, transparency=1) == [255, 255, 255]


def test_16_bits_are_scaled_and_32_refused(tmp_path):
    levels = np.full((9, 9), 25700)
    for name in ("a.png", "a.tif", "a.ppm"):
        assert middle(tmp_path / name, Image.fromarray(levels.astype(np.uint16))) == [100] * 3
    for dtype in (np.int32, np.float32):
        with pytest.raises(ValueError, match=r"a.tif: not a readable image \(pixels of 32 bits"):
            middle(tmp_path / "a.tif", Image.fromarray((levels // 257).astype(dtype)))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_the_smallest_pictures_are_scaled(tmp_path, size):
    assert middle(tmp_path / "a.png", Image.new("RGB", size, "lime")) == [0, 255, 0]


def test_what_unpacks_into_too_much_is_refused(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png: not a readable image .*200000000 pixels"):
        read_image(tmp_path / "a.png", 4)


def test_a_picture_is_known_by_its_name_or_content(tmp_path):
    for name, content in (("a.png", b""), ("b.JPE", b"no"), ("c", b"\x89PNG\r\n\x1a\n")):
        (tmp_path / name).write_bytes(content)
    Image.new("L", (4, 4)).save(tmp_path / "d.png_", "PNG")
    found = {p.name: is_image(p) for p in sorted(tmp_path.iterdir())}
    assert found == {"a.png": True, "b.JPE": True, "c": False, "d.png_": True}
