"""Tensors to image files and back: PIL images, image grids, PNG files with metadata."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from torch import Tensor

from flowturbo.files import atomic_write, printable

__all__ = [
    "EDITED",
    "GENERATED",
    "crop_box",
    "encoded",
    "image_grid",
    "is_image",
    "on_page",
    "read_image",
    "read_metadata",
    "save_png",
    "to_pil",
    "upright",
]

# formats that Pillow identifies, but leaves to other programs
_FOREIGN = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# formats that Pillow does not read, or reads only a thumbnail of
_OTHERS = {".emf", ".eps", ".heic", ".heif", ".hif", ".jxl", ".svg", ".svgz", ".wmf", ".xcf"}
_OTHERS |= {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"}

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's digital source type of media made by an algorithm that was trained on media."""
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
"""The same of an image with parts that such an algorithm made."""


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images (B, 1 or 3, H, W) in [0, 1] to PIL images, grey or RGB, rounded to 8 bits."""
    array = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in np.asarray(array)]


def image_grid(
    images: Sequence[Image.Image], columns: int | None = None, *, scale: int = 1, gap: int = 2
) -> Image.Image:
    """A grid of images of one size on white, row by row.

    Args:
        images: at least one.
        columns: images in a row; about a square by default.
        scale: whole-number enlargement, pixels kept sharp.
        gap: white pixels around each image, before enlargement.
    """
    if not images:
        raise ValueError("images=[]: a grid needs at least one")
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    columns = min(columns, len(images))
    width, height = images[0].size
    rows = -(-len(images) // columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    grid = Image.new(images[0].mode, size, "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        grid.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return grid.resize((size[0] * scale, size[1] * scale), Image.Resampling.NEAREST)


def save_png(
    image: Image.Image, path: str | Path, metadata: Mapping[str, str], *, sweep: bool = True
) -> None:
    """Write a PNG with text metadata, made `printable`; the file is complete or not written at all.

    Args:
        image: grey or RGB.
        path: where to write.
        metadata: texts by name.
        sweep: as for `flowturbo.files.atomic_write`.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_write(path, sweep=sweep) as temporary:
        image.save(temporary, format="PNG", pnginfo=_png_text(metadata))


def encoded(
    image: Image.Image,
    kind: str,
    metadata: Mapping[str, str],
    quality: int = 100,
    source_type: str = GENERATED,
) -> bytes:
    """An image as the bytes of a file that states its origin.

    A PNG has ``metadata`` as text, JPEG and WebP have it in EXIF, as the description, and all have
    an XMP packet with the IPTC's digital source type.

    Args:
        image: grey or RGB.
        kind: "png", "jpeg" or "webp".
        metadata: texts by name, made `printable`; "Software" goes into its own field of EXIF.
        quality: of JPEG and WebP, 0 to 100.
        source_type: `GENERATED` or `EDITED`.
    """
    made, xmp = io.BytesIO(), _xmp(source_type)
    if kind == "png":
        info = _png_text(metadata)
        info.add_itxt("XML:com.adobe.xmp", xmp)
        image.save(made, format="PNG", pnginfo=info)
        return made.getvalue()
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = printable(metadata.get("Software", ""))
    about = {key: printable(value) for key, value in metadata.items()}
    exif[ExifTags.Base.ImageDescription] = json.dumps(about)
    image.save(made, format=kind.upper(), quality=quality, exif=exif, xmp=xmp.encode())
    return made.getvalue()


def _xmp(source_type: str) -> str:
    """An XMP packet with the digital source type."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'Iptc4xmpExt:DigitalSourceType="{source_type}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )


def _png_text(metadata: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, printable(value))
    return info


def read_metadata(path: str | Path) -> dict[str, str] | None:
    """The text in a PNG file; None if the file is damaged, or no PNG."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return {str(k): str(v) for k, v in image.text.items()}  # type: ignore[attr-defined]
    except Exception:  # damaged files end in most of them
        return None


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its suffix or, if that is unknown, by its content.

    Raises:
        ValueError: if its suffix is that of a format that is not read, such as HEIC.
    """
    formats, suffix = _formats(), path.suffix.lower()
    if Image.registered_extensions().get(suffix) in formats:
        return True
    if suffix in _OTHERS:
        raise ValueError(f"{path}: images in {suffix} are not read; convert it to PNG or JPEG")
    signed = [f for f in formats if Image.OPEN[f][1] is not None]  # others take almost anything
    try:
        with _quiet():
            Image.open(path, formats=signed).close()
    except Exception:
        return False
    return True


def read_image(path: Path, size: int | tuple[int, int]) -> Tensor:
    """An image file as (3, H, W) uint8; the first frame of an animated one.

    It is rotated by its EXIF orientation, cropped to the shape of ``size`` (a side, or H and W)
    around its centre, put on white where it is transparent, and scaled.

    Raises:
        ValueError: if it is damaged, is too large to open (see
            ``PIL.Image.MAX_IMAGE_PIXELS``), or has pixels of no known range; names the file.
    """
    height, width = (size, size) if isinstance(size, int) else size
    try:
        with _quiet(), Image.open(path, formats=_formats()) as image:
            kind = image.format
            ImageOps.exif_transpose(image, in_place=True)
            cut = image.crop(crop_box(image, height, width))
        made = _rgb(cut, kind).resize((width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(made)).permute(2, 0, 1)
    except Exception as e:  # damaged files end in most of them
        raise _unreadable(path, e) from e


def upright(source: Image.Image | str | Path) -> Image.Image:
    """An image or its file, RGB, as `read_image` reads it but in its own size.

    Raises:
        ValueError: as `read_image`.
    """
    return on_page(source, "white")


def on_page(source: Image.Image | str | Path, page: str) -> Image.Image:
    """As `upright`, on a ``page`` of another colour where it is transparent."""
    try:
        with _quiet():
            if isinstance(source, Image.Image):
                return _rgb(ImageOps.exif_transpose(source), source.format, page)
            with Image.open(source, formats=_formats()) as image:
                kind = image.format
                ImageOps.exif_transpose(image, in_place=True)
                return _rgb(image, kind, page)
    except Exception as e:  # damaged files end in most of them
        raise _unreadable(source, e) from e


def crop_box(image: Image.Image, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest part of that shape around the centre."""
    across = min(image.width, max(1, image.height * width // height))
    down = min(image.height, max(1, image.width * height // width))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    return left, top, left + across, top + down


def _unreadable(source: object, error: Exception) -> ValueError:
    name = f"an image of mode {source.mode}" if isinstance(source, Image.Image) else source
    return ValueError(f"{name}: not a readable image ({str(error) or type(error).__name__})")


def _quiet() -> warnings.catch_warnings[None]:
    """A context without Pillow's warnings about odd metadata; damaged pixels raise."""
    return warnings.catch_warnings(action="ignore")


def _formats() -> list[str]:
    """The formats that Pillow reads by itself or by registered plugins."""
    Image.init()
    return [f for f in Image.OPEN if f not in _FOREIGN]


def _rgb(image: Image.Image, kind: str | None, page: str = "white") -> Image.Image:
    """RGB, on ``page`` where it is transparent; 16 bits are scaled, which PIL would clip."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        levels = (np.asarray(image) // 257).clip(0, 255).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits have no fixed range; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, page), image).convert("RGB")
