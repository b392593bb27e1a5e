"""Two figures for the documentation: a sheet of names by styles, and nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drawn import Source, draw, pairs_to_draw
from measure import nearest
from names import HELD_NAMES, STYLES
from PIL import Image, ImageDraw, ImageFont
from real import Pictures

from flowturbo.files import atomic_write

__all__ = ["save_nearest", "save_sheet"]

CELL, GAP, LABEL = 128, 12, 70
STEP = CELL + GAP
INK, HELD = "#222222", "#e8590c"
SHOWN = 10


def page(columns: int, rows: int, height: int, left: int = 0) -> tuple[Any, Any]:
    """A white page and its pen; ``height`` is that of a row."""
    size = (left + columns * STEP + GAP, rows * height + GAP)
    image = Image.new("RGB", size, "white")
    return image, ImageDraw.Draw(image)


def write(pen: Any, at: tuple[float, float], text: str, anchor: str, size: int = 15) -> None:
    pen.text(at, text, INK, ImageFont.load_default(size), anchor)


def paste(image: Any, pen: Any, at: tuple[int, int], picture: Any, held: bool = False) -> None:
    x, y = at
    image.paste(Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.NEAREST), at)
    pen.rectangle(
        (x - 3, y - 3, x + CELL + 2, y + CELL + 2),
        outline=HELD if held else "#e4e4e4",
        width=3 if held else 1,
    )


def save_sheet(path: Path, real: Pictures, source: Source, out: Path) -> None:
    """The names of `HELD_NAMES` in every style; pairs never trained on are framed."""
    pairs = pairs_to_draw(real.about, real.names, real.trained)["image_grid"]
    pictures, columns = draw(source, "image_grid", pairs, out), len(HELD_NAMES)
    image, pen = page(columns, len(STYLES), STEP, LABEL)
    image = Image.new("RGB", (image.width, image.height + 60), "white")
    pen = ImageDraw.Draw(image)
    for j, name in enumerate(HELD_NAMES):
        write(pen, (LABEL + GAP + j * STEP + CELL / 2, 18), name, "mm")
    for i, pair in enumerate(pairs):
        row, column = divmod(i, columns)
        at = (LABEL + GAP + column * STEP, 36 + row * STEP)
        if not column:
            write(pen, (LABEL, at[1] + CELL / 2), list(STYLES)[row], "rm")
        paste(image, pen, at, pictures[i], list(pair) in real.about["held"])
    y = image.height - 18
    pen.rectangle((LABEL + GAP, y - 8, LABEL + GAP + 16, y + 8), outline=HELD, width=3)
    write(pen, (LABEL + GAP + 26, y), "this name in this style was never trained on", "lm")
    save(image, path)


def save_nearest(path: Path, real: Pictures, source: Source, out: Path) -> None:
    """Ten drawn pictures of trained pairs and ten of others, evenly spaced in their sets, each
    above the training picture nearest in features."""
    todo = pairs_to_draw(real.about, real.names, real.trained)
    images, features, pairs = real.part(~real.held)
    band = 2 * STEP + 88
    image, pen = page(SHOWN, 2, band, LABEL)
    for row, name in enumerate(("seen", "held out")):
        drawn, top = draw(source, name, todo[name], out), row * band
        for column in range(SHOWN):
            i = len(set(todo[name])) * column // SHOWN
            far, at = nearest(real.see(name, drawn)[i : i + 1], features)
            x = LABEL + GAP + column * STEP
            paste(image, pen, (x, top + 52), drawn[i], name == "held out")
            paste(image, pen, (x, top + 52 + STEP), images[int(at)])
            caption(pen, x, top + 26, real, todo[name][i])
            caption(pen, x, top + 62 + 2 * STEP, real, pairs[int(at)], f"{float(far):.1f}")
        for k, label in enumerate(("drawn", "nearest")):
            write(pen, (LABEL, top + 52 + k * STEP + CELL / 2), label, "rm")
    save(image, path)


def caption(pen: Any, x: int, y: int, real: Pictures, pair: Sequence[int], more: str = "") -> None:
    """A name, shortened to the width of a picture, and below it the style and ``more``."""
    font, name = ImageFont.load_default(12), real.about["concepts"][pair[0]]["name"]
    while font.getlength(name) > STEP - 4:
        name = name.rstrip("…")[:-1].rstrip() + "…"
    lines = (name, ", ".join(filter(None, (real.about["styles"][pair[1]], more))))
    for k, line in enumerate(lines):
        pen.text((x + CELL / 2, y + 15 * (k - 0.5)), line, INK, font, "mm")


def save(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG", optimize=True)
