"""The image of samples in the README: the same noise samples by four samplers.

    python benchmarks/readme_picture.py

draws `docs/images/readme-samplers.png` with the bundled model `emoji`: Euler and UniPC at 8
evaluations on the uniform grid, our plan `light` at 6, and the reference solution. The distance of
every image from the reference solution (RMSE in the unit of the state) is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import flowturbo as ft
from flowturbo.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ("red apple", "tiger", "sunflower", "sailboat")
STYLE, GUIDANCE, SEED = "noto", 2.0, 0
ROWS = {  # label, then plan: notation, or the name of a bundled one
    "Euler\n8 evaluations": "E8",
    "UniPC\n8 evaluations": "UNIPC2:8",
    "tuned (ours)\n6 evaluations": "light",
    "reference\nsolution": "AB4RK:105@0.5",
}
CELL, GAP, LABEL, TOP = 160, 12, 190, 44
INK, EDGE = "#222222", "#dddddd"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ROOT / "docs" / "images" / "readme-samplers.png"
    parser.add_argument("--out", "-o", type=Path, default=default)
    options = parser.parse_args()
    model = ft.load("emoji")
    drawn = {
        label: ft.generate(model, PROMPTS, style=STYLE, plan=plan, guidance=GUIDANCE, seed=SEED)
        for label, plan in ROWS.items()
    }
    step = CELL + GAP
    size = (LABEL + len(PROMPTS) * step, TOP + len(ROWS) * step)
    image = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(22)
    for column, name in enumerate(PROMPTS):
        pen.text((LABEL + column * step + CELL / 2, TOP / 2), name, INK, font, "mm")
    exact = [np.asarray(picture, float) / 127.5 for picture in drawn[[*ROWS][-1]]]
    for row, (label, pictures) in enumerate(drawn.items()):
        at = TOP + row * step
        pen.multiline_text((LABEL - 16, at + CELL / 2), label, INK, font, "rm", align="right")
        for column, picture in enumerate(pictures):
            large = picture.resize((CELL, CELL), Image.Resampling.NEAREST)
            corner = (LABEL + column * step, at)
            image.paste(large, corner)
            pen.rectangle((*corner, corner[0] + CELL - 1, at + CELL - 1), outline=EDGE)
        off = [np.asarray(p, float) / 127.5 - e for p, e in zip(pictures, exact, strict=True)]
        print(f"{label!r}: {[round(float(np.sqrt((d**2).mean())), 3) for d in off]}")
    with atomic_write(options.out) as temporary:
        image.save(temporary, format="PNG")
    print(f"-> {options.out}")


if __name__ == "__main__":
    main()
