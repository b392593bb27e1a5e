"""The mask of an object from one click, by GrabCut (Rother et al. 2004, ACM TOG 23(3)).

GrabCut separates two Gaussian mixtures of colours by a minimum cut. It starts from the border of
the image as background, except for border pixels that are connected to the click by small steps in
colour, so that an object may touch the border. The object is the connected region at the click,
including everything it encloses, and is dilated to include its blurred edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from flowturbo import checks
from flowturbo.checks import shown

__all__ = ["object_mask"]

LARGEST = 512  # side in pixels that is segmented; larger images are scaled down
LARGE = 100  # smaller side from which noise is filtered; in smaller images it would take lines too
STEP = 10  # between the colours of neighbours of one object, of 255
BORDER = 64  # the border and the dilation take this part of a side
GAUSSIANS = 5  # GrabCut's, for each of object and background
ITERATIONS = 5


def object_mask(image: Image.Image, click: Sequence[int]) -> Image.Image:
    """The object at ``click``, (x, y) in pixels from the top left: L, 255 on it, else 0.

    Raises:
        ValueError: if ``click`` is not a pixel of the image, RGB, or there is no object.
        ImportError: without the package of the extra ``flowturbo[edit]``.
    """
    x, y = _checked(click, image)
    try:
        import cv2
    except ImportError as e:
        raise ImportError(
            "opencv-python-headless is missing: click needs `pip install 'flowturbo[edit]'`; or "
            "pass mask or box"
        ) from e
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    (width, height), pixels = small.size, np.array(small)
    x, y = x * width // image.width, y * height // image.height
    smooth = cv2.medianBlur(pixels, 5 if min(small.size) >= LARGE else 1)
    alike = np.zeros((height + 2, width + 2), np.uint8)
    how = 4 | cv2.FLOODFILL_MASK_ONLY | (1 << 8)  # 4 neighbours, mask of 1
    cv2.floodFill(smooth, alike, (x, y), 0, (STEP,) * 3, (STEP,) * 3, how)
    thick = max(1, min(small.size) // BORDER)
    border = np.ones((height, width), bool)
    border[thick:-thick, thick:-thick] = False
    background = border & (alike[1:-1, 1:-1] == 0)
    nothing = ValueError(
        f"click={shown(tuple(click))}: there is no object, its colour is that of the border of the "
        "image; click on another part of the object, or pass mask or box"
    )
    few = min(background.sum(), (~background).sum()) < GAUSSIANS
    if few or background.sum() < border.sum() / 2:
        raise nothing
    labels = np.where(background, cv2.GC_BGD, cv2.GC_PR_FGD).astype(np.uint8)
    cv2.setRNGSeed(0)
    no_box = (0, 0, 0, 0)  # the labels say it
    mixtures = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(pixels, labels, no_box, *mixtures, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    _, parts = cv2.connectedComponents((labels == cv2.GC_PR_FGD).astype(np.uint8))
    if not parts[y, x]:
        raise nothing
    found = (parts == parts[y, x]).astype(np.uint8)
    outlines, _ = cv2.findContours(found, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(found, outlines, -1, 255, cv2.FILLED)
    radius = max(1, max(small.size) // BORDER)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    made = Image.fromarray(cv2.dilate(found, disc))
    return made.resize(image.size, Image.Resampling.NEAREST)


def _checked(click: object, image: Image.Image) -> tuple[int, int]:
    try:
        if not checks.is_list(click):
            raise ValueError
        x, y = (checks.whole("click", n, 0) for n in click)
        if not (x < image.width and y < image.height):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"click={shown(click)}: must be (x, y), whole pixels within the image, "
            f"{image.width} x {image.height}"
        ) from None
    return x, y
