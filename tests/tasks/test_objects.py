"""Objects from a click: shapes whose pixels are known, and what a bundled model has drawn."""

from __future__ import annotations

import sys
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageDraw

import flowturbo as ft
from flowturbo.tasks.objects import object_mask

SHAPES = {
    "disc": ("ellipse", (0.1, 0.1, 0.4, 0.4), (200, 30, 30)),
    "square": ("rectangle", (0.55, 0.5, 0.85, 0.9), (30, 60, 200)),
    "at the border": ("rectangle", (0.0, 0.6, 0.3, 1.0), (20, 140, 60)),
}


def scene(width, height, noise):
    """Three shapes on a ramp of grey, with noise, and the pixels of each."""
    ramp = np.linspace(140, 240, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    image, pixels = Image.fromarray(ramp.astype(np.uint8)), {}
    for name, (kind, box, colour) in SHAPES.items():
        alone = Image.new("L", image.size)
        for canvas, fill in ((image, colour), (alone, 255)):
            at = [round(b * height) for b in box]
            getattr(ImageDraw.Draw(canvas), kind)(at, fill=fill)
        pixels[name] = np.array(alone) > 0
    array = np.array(image) + np.random.default_rng(0).normal(0, noise, (height, width, 3))
    return Image.fromarray(array.clip(0, 255).round().astype(np.uint8)), pixels


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("size", "noise"), [((40, 32), 2), ((300, 200), 15), ((1100, 700), 15)])
def test_a_click_covers_its_object_and_no_other(name, size, noise):
    image, pixels = scene(*size, noise)
    y, x = (int(n.mean()) for n in np.nonzero(pixels[name]))
    found = np.array(object_mask(image, (x, y))) > 0
    assert found[pixels[name]].mean() > 0.995
    assert found.sum() < 1.5 * pixels[name].sum()
    assert not any(found[pixels[other]].any() for other in pixels if other != name)


def test_the_same_click_finds_the_same_object():
    image, _ = scene(300, 200, 15)
    assert len({object_mask(image, (50, 50)).tobytes() for _ in range(3)}) == 1


@pytest.mark.parametrize(("size", "noise"), [((40, 32), 2), ((300, 200), 15)])
def test_a_click_on_the_background_finds_nothing(size, noise):
    image, _ = scene(*size, noise)
    with pytest.raises(ValueError, match="there is no object"):
        object_mask(image, (int(0.48 * size[1]), int(0.45 * size[1])))


def test_what_an_object_encloses_is_part_of_it():
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((12, 12, 52, 52), outline="navy", width=5)
    found = np.array(object_mask(image, (14, 32)))
    assert found[32, 32] == 255
    assert found[2, 2] == 0


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_in_a_few_pixels_there_is_an_object_or_none(side):
    image = Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, 9, 3), np.uint8))
    found = None
    with suppress(ValueError):
        found = object_mask(image, (0, 0))
    assert found is None or found.getpixel((0, 0)) == 255


def test_objects_of_a_model_are_removed_without_a_trace():
    """On white paper a removed object leaves white paper, its soft edge included."""
    model = ft.load("emoji")
    names = ["red apple", "strawberry", "green apple", "orange book"]
    for image in ft.generate(model, names, style="flat", plan="light", seed=11):
        (bare,) = ft.remove(model, image, click=(16, 18))
        drawn = (np.array(image).min(2) < 200).sum()
        left = (np.array(bare).min(2) < 200).sum()
        assert drawn > 300
        assert left <= 0.01 * drawn


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'flowturbo\[edit\]'"):
        object_mask(Image.new("RGB", (9, 9)), (4, 4))
