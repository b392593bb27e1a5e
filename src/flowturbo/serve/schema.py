"""The fields of a request: those of OpenAI's images API, and a few of our own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from flowturbo.plan import notation
from flowturbo.plan.plan import is_file_name

__all__ = ["MOST_IMAGES", "EditRequest", "GenerationRequest", "ImageRequest", "Reference"]

MOST_IMAGES = 10
MOST_STEPS = 200
LARGEST_SIDE = 3840  # pixels
LONGEST_PROMPT = 32_000  # characters
LARGEST_SEED = 2**31 - 1

Text = Annotated[str, StringConstraints(max_length=LONGEST_PROMPT)]


def _size(value: object) -> object:
    if value is None or value == "auto":
        return None
    width, _, height = str(value).partition("x")
    if not (width.isascii() and width.isdecimal() and height.isascii() and height.isdecimal()):
        raise ValueError("must be 'auto', or width and height in pixels such as '256x256'")
    if (
        len(width) > 5
        or len(height) > 5
        or not all(1 <= n <= LARGEST_SIDE for n in (int(width), int(height)))
    ):
        raise ValueError(f"each side must be from 1 to {LARGEST_SIDE} pixels")
    return int(width), int(height)


def _numbers(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value  # of a form


def _format(value: object) -> object:
    if value == "url":
        raise ValueError("only 'b64_json': images are in the answer, and not kept by the server")
    return value


def _background(value: object) -> object:
    if value == "transparent":
        raise ValueError("only 'auto' or 'opaque': this model generates no transparency")
    return value


def _plan(value: object) -> object:
    if is_file_name(value):
        raise ValueError("name a plan of the model, or its notation: no file of the server is read")
    if isinstance(value, str):
        try:
            _, count, *_ = notation.parse(value)
        except ValueError:  # a name, or nothing: the model knows
            return value
        if (len(count) if isinstance(count, str) else count) > MOST_STEPS:
            raise ValueError(f"at most {MOST_STEPS} steps")
    return value


class ImageRequest(BaseModel):
    """Fields that generations and edits share.

    Those from ``seed`` on are not OpenAI's; their names are those that other servers use, if any.
    ``user``, ``safety_identifier`` and ``moderation`` are accepted, and have no effect on the
    image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text | None = None
    prompt: Text
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    size: Annotated[tuple[int, int] | None, BeforeValidator(_size)] = None
    quality: Literal["auto", "low", "medium", "high"] | None = None
    background: Annotated[Literal["auto", "opaque"] | None, BeforeValidator(_background)] = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    response_format: Annotated[Literal["b64_json"] | None, BeforeValidator(_format)] = None
    moderation: Literal["auto", "low"] | None = None
    user: Text | None = None
    safety_identifier: Text | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None
    plan: Annotated[
        Annotated[str, StringConstraints(max_length=200)] | None, BeforeValidator(_plan)
    ] = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    negative_prompt: Text | None = None
    style: Text | None = None
    timeout: Annotated[float, Field(gt=0, le=3600)] | None = None

    @property
    def count(self) -> int:
        """Number of images to generate, for each source."""
        return self.n or 1

    def described(self) -> dict[str, Any]:
        """What the response repeats of it."""
        return {
            "background": "opaque",
            "output_format": self.output_format or "png",
            "quality": self.quality or "auto",
        }


class GenerationRequest(ImageRequest):
    """``POST /v1/images/generations``."""


class Reference(BaseModel):
    """An image in a JSON body."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_url: str


class EditRequest(ImageRequest):
    """``POST /v1/images/edits``; as a form, images are files named ``image`` or ``image[]``.

    With a mask, the masked part is repainted or, with ``task="remove"``, removed; with a box, or a
    click on an object, that is removed; with a ``source_prompt``, what it describes is changed into
    what ``prompt`` describes; otherwise it is image to image.
    """

    images: Annotated[list[Reference], Field(min_length=1, max_length=MOST_IMAGES)] | None = None
    mask: Reference | None = None
    task: Literal["edit", "img2img", "inpaint", "remove"] | None = None
    source_prompt: Text | None = None
    method: Literal["inversion", "flowedit", "sdedit"] | None = None
    keep: Annotated[float, Field(ge=0, le=1)] | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    box: Annotated[
        Annotated[list[int], Field(min_length=4, max_length=4)] | None, BeforeValidator(_numbers)
    ] = None
    click: Annotated[
        Annotated[list[int], Field(min_length=2, max_length=2)] | None, BeforeValidator(_numbers)
    ] = None
    feather: Annotated[float, Field(ge=0, le=1000)] | None = None
    input_fidelity: Literal["low", "high"] | None = None
