"""From a request to a task for the engine, and from images to the bytes of a response."""

from __future__ import annotations

import base64
import binascii
import io
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flowturbo._version import __version__
from flowturbo.checks import shown
from flowturbo.field import CountCalls
from flowturbo.images import EDITED, GENERATED, encoded, to_pil
from flowturbo.models.model import Model
from flowturbo.plan import Plan
from flowturbo.refiner.resolve import default_guidance, plan_of_steps, resolve_plan
from flowturbo.sampling import Step
from flowturbo.serve.schema import (
    LARGEST_SEED,
    MOST_IMAGES,
    EditRequest,
    GenerationRequest,
    ImageRequest,
)
from flowturbo.tasks.editing import edit, img2img
from flowturbo.tasks.generate import generate
from flowturbo.tasks.inpainting import inpaint, remove
from flowturbo.tasks.sources import Edited

__all__ = ["Answer", "Work", "data_url", "edit_work", "generation_work", "opened", "preview"]

QUALITIES = {"low": ("fast",), "medium": ("light", "balanced"), "high": ("best",)}
"""Names of plans for each quality; the first that the model has is used."""
EVALUATIONS = {"low": 6, "medium": 8, "high": 16}
"""Evaluations of a second-order plan, for a model without them."""
FIDELITY = {"low": 0.1, "high": 0.4}
TASKS: dict[str, Callable[..., Edited]] = {
    "edit": edit, "img2img": img2img, "inpaint": inpaint, "remove": remove,
}  # fmt: skip
SOFTWARE = f"flowturbo {__version__}"
MOST_PIXELS = 2**25  # of all images in a request, and of all in its response

Partial = Callable[[int, Tensor], None]
"""Called with the number of a partial image, from 0, and its states (B, C, H, W)."""


@dataclass(frozen=True)
class Answer:
    """The result of a request.

    Attributes:
        images: files, as bytes.
        sizes: (width, height) of each.
        seed: of the first.
        plan: its name.
        evaluations: of the model, for each image.
        passes: of the network, for each image.
        usage: tokens, as OpenAI's API counts them.
    """

    images: list[bytes]
    sizes: list[tuple[int, int]]
    seed: int
    plan: str
    evaluations: int
    passes: int
    usage: dict[str, Any]


@dataclass
class Work:
    """A request, ready for the engine.

    Attributes:
        request: the fields.
        images: number of images that it generates.
        sources: images that it edits.
        mask: of the part to paint.
        run: the task, after `decode`.
        partial: set by the caller before it runs, to receive partial images.
    """

    request: ImageRequest
    images: int
    sources: Sequence[Image.Image] = ()
    mask: Image.Image | None = None
    run: Callable[[Model], Answer] = field(init=False)
    partial: Partial | None = None

    def decode(self) -> None:
        """Read the pixels of its images; not before the request runs, since it takes memory.

        Raises:
            ValueError: if a file is damaged.
        """
        named = {f"image[{i}]": image for i, image in enumerate(self.sources)}
        for name, image in (named if self.mask is None else {**named, "mask": self.mask}).items():
            try:
                image.load()
            except Exception as e:  # damaged files end in most of them
                raise _unreadable(name, e) from e


def generation_work(model: Model, request: GenerationRequest) -> Work:
    """The task of a generation.

    Raises:
        ValueError: for anything that the model does not know.
    """
    plan, seed = plan_of(model, request), seed_of(request)
    if request.style is not None:
        model.styled("", request.style)
    _, height, width = model.image_shape
    _check_pixels(request, request.count, width, height)
    work = Work(request, request.count)

    def run(shared: Model) -> Answer:
        counted = CountCalls(shared)
        made = generate(
            counted,  # type: ignore[arg-type]  # passes everything through
            [request.prompt] * request.count,
            plan=plan,
            guidance=request.guidance_scale,
            negative=request.negative_prompt,
            style=request.style,
            seed=seed,
            callback=_partials(work),
        )
        counts = counted.calls, counted.rows // request.count
        return _answer(shared, request, made, seed, plan.name, counts, sources=0)

    work.run = run
    return work


def edit_work(
    model: Model,
    request: EditRequest,
    images: Sequence[Image.Image],
    mask: Image.Image | None = None,
) -> Work:
    """The task of an edit: of every image, as many times as requested.

    Args:
        model: what edits.
        request: the fields.
        images: the sources.
        mask: transparent where to repaint, as in OpenAI's API.

    Raises:
        ValueError: for fields that do not go together, and for anything that the model does not
            know.
    """
    task, total = _task(request, mask), len(images) * request.count
    if total > MOST_IMAGES:
        raise ValueError(
            f"n={request.count}: {request.count} of each of {len(images)} images are {total}; a "
            f"request generates at most {MOST_IMAGES}"
        )
    largest = max((image.size for image in images), key=lambda size: size[0] * size[1])
    _check_pixels(request, total, *largest)
    seed = seed_of(request)
    sources = [image for image in images for _ in range(request.count)]
    plan = _notation(model, request) if task == "edit" else plan_of(model, request)
    given: dict[str, Any] = {  # the tasks' own defaults stand for the rest
        "prompt": request.prompt, "plan": plan, "seed": seed, "style": request.style,
        "guidance": request.guidance_scale,
    }  # fmt: skip
    if task == "edit":
        fidelity = FIDELITY.get(request.input_fidelity or "")
        given["source_prompt"], given["method"] = request.source_prompt, request.method
        given["keep"] = fidelity if request.keep is None else request.keep
    elif task == "img2img":
        given["strength"], given["negative"] = request.strength, request.negative_prompt
    else:
        if mask is not None:
            _check_transparent(mask)
        given["feather"] = request.feather
    if task == "remove":
        given["box"], given["click"] = request.box, request.click
    options = {name: value for name, value in given.items() if value is not None}
    work = Work(request, total, images, mask)

    def run(shared: Model) -> Answer:
        hole = {} if mask is None else {"mask": _painted(mask)}
        made = TASKS[task](shared, sources, callback=_partials(work), **options, **hole)
        name, counts = str(getattr(plan, "name", plan)), (made.evaluations, made.passes)
        return _answer(shared, request, made, seed, name, counts, sources=len(images))

    work.run = run
    return work


def _check_pixels(request: ImageRequest, count: int, width: int, height: int) -> None:
    """Raise ``ValueError`` if ``count`` images of a size are too much for one answer."""
    width, height = request.size or (width, height)
    if count * width * height > MOST_PIXELS:
        raise ValueError(
            f"size: {count} images of {width} x {height} are over {MOST_PIXELS} pixels in all; ask "
            "for fewer or smaller images"
        )


def plan_of(model: Model, request: ImageRequest) -> Plan:
    """The plan of a request: named, of so many steps, or of a quality."""
    _check_one(request)
    if request.num_inference_steps is not None:
        return plan_of_steps(request.num_inference_steps)
    if request.plan is not None:
        return resolve_plan(model, request.plan)
    if request.quality in QUALITIES:
        names = [name for name in QUALITIES[request.quality] if name in model.plans]
        if not names:
            return plan_of_steps(EVALUATIONS[request.quality])
        return resolve_plan(model, names[0])
    return resolve_plan(model, None, request.guidance_scale)


def seed_of(request: ImageRequest) -> int:
    """The seed of a request; a random one by default."""
    if request.seed is None:
        return secrets.randbelow(LARGEST_SEED - MOST_IMAGES)
    return request.seed


def opened(contents: Mapping[str, bytes]) -> dict[str, Image.Image]:
    """The images in contents of files, by name; `Work.decode` reads their pixels.

    Raises:
        ValueError: if one is not an image, or they exceed `MOST_PIXELS`.
    """
    made: dict[str, Image.Image] = {}
    for name, content in contents.items():
        left = MOST_PIXELS - sum(image.width * image.height for image in made.values())
        made[name] = _opened(name, content, left)
    return made


def _opened(name: str, content: bytes, most: int) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "WEBP"])
    except Exception as e:  # damaged files end in most of them
        raise _unreadable(name, e) from e
    if image.width * image.height > most:
        raise ValueError(
            f"{name}: with its {image.width} x {image.height} pixels they are over {MOST_PIXELS} "
            "in all; scale it down"
        )
    return image


def _unreadable(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{name}: is not a readable image; send PNG, JPEG or WebP ({type(error).__name__})"
    )


def data_url(name: str, url: str) -> bytes:
    """The content of a data URL; ``ValueError`` for other URLs, since nothing is fetched."""
    head, _, body = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError(
            f"{name}={shown(url[:40])}: must be 'data:image/png;base64,...'; the server fetches "
            "nothing"
        )
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as e:
        raise ValueError(f"{name}: is not valid base64 ({e})") from e


def preview(model: Model, x1: Tensor, request: ImageRequest) -> list[bytes]:
    """Partial images as files: of predicted clean states (B, C, H, W)."""
    made = to_pil(model.decode(x1.nan_to_num()))
    return [_file(_sized(image, request), request, {"Software": SOFTWARE}) for image in made]


def _task(request: EditRequest, mask: Image.Image | None) -> str:
    """Which task an edit is."""
    pointed = request.box is not None or request.click is not None
    part = mask is not None or pointed
    task = request.task
    if task is None:
        if pointed:
            task = "remove"
        elif mask is not None:
            task = "inpaint"
        else:
            task = "edit" if request.source_prompt is not None else "img2img"
    fields = {
        "source_prompt": ("edit",), "method": ("edit",), "keep": ("edit",),
        "strength": ("img2img",), "feather": ("inpaint", "remove"), "box": ("remove",),
        "click": ("remove",),
        "negative_prompt": ("img2img",), "input_fidelity": ("edit", "img2img", "inpaint"),
    }  # fmt: skip
    for name, tasks in fields.items():
        value = getattr(request, name)
        if value is not None and task not in tasks:
            raise ValueError(
                f"{name}={shown(value)}: is of the task {' or '.join(tasks)}, not {task}; leave it "
                "out, or pass task"
            )
    if part != (task in ("inpaint", "remove")):
        needs = "takes no mask" if part else "needs a mask"
        raise ValueError(f"task={task!r}: {needs}")
    if task == "edit" and request.source_prompt is None:
        raise ValueError("source_prompt=None: task='edit' needs what the image shows")
    if task == "edit" and request.count > 1 and (request.method or "inversion") == "inversion":
        raise ValueError(
            f"n={request.count}: an inversion generates one image; pass n=1, or method"
        )
    return task


def _check_one(request: ImageRequest) -> None:
    """Raise ``ValueError`` if a request has both a plan and a number of steps."""
    if request.plan is not None and request.num_inference_steps is not None:
        raise ValueError(
            f"plan={request.plan!r}, num_inference_steps={request.num_inference_steps}: pass one"
        )


def _notation(model: Model, request: ImageRequest) -> str:
    """The notation of a plan that runs both ways."""
    _check_one(request)
    if request.plan is not None:
        if request.plan in model.plans:
            raise ValueError(
                f"plan={request.plan!r}: an edit runs a plan backward too; pass notation (AB2:4)"
            )
        return request.plan
    steps = request.num_inference_steps or {"low": 3, "high": 8}.get(request.quality or "", 4)
    return f"AB2:{max(2, steps)}@1.6"


def _check_transparent(mask: Image.Image) -> None:
    if "A" not in mask.getbands() and "transparency" not in mask.info:
        raise ValueError("mask: has no transparency; make the part to repaint transparent")


def _painted(mask: Image.Image) -> Image.Image:
    """White where ``mask`` is transparent."""
    return mask.convert("RGBA").getchannel("A").point(lambda a: 255 - a)


def _partials(work: Work) -> Callable[[Step], None] | None:
    """A callback that passes on the requested number of predicted images, evenly spaced."""
    wanted = work.request.partial_images or 0
    if not work.request.stream or not wanted:
        return None

    def see(step: Step) -> None:
        spread = {round((i + 1) * step.total / (wanted + 1)) - 1 for i in range(wanted)}
        at = sorted(k for k in spread if 0 <= k < step.total - 1)
        if step.index in at and work.partial is not None:
            work.partial(at.index(step.index), step.x1)

    return see


def _answer(
    model: Model,
    request: ImageRequest,
    images: Sequence[Image.Image],
    seed: int,
    plan: str,
    counts: tuple[int, int],
    sources: int,
) -> Answer:
    about = {
        "Software": SOFTWARE,
        "model": f"{model.name} {model.fingerprint}",
        "prompt": request.prompt,
        "plan": plan,
        "guidance": str(default_guidance(model, request.guidance_scale)),
    }
    sized = [_sized(image, request) for image in images]
    files = [
        _file(image, request, {**about, "seed": str(seed + i)}) for i, image in enumerate(sized)
    ]
    return Answer(
        files, [i.size for i in sized], seed, plan, *counts,
        usage=_usage(model, request.prompt, len(images), sources),
    )  # fmt: skip


def _sized(image: Image.Image, request: ImageRequest) -> Image.Image:
    if request.size is None or request.size == image.size:
        return image
    return image.resize(request.size, Image.Resampling.LANCZOS)


def _file(image: Image.Image, request: ImageRequest, about: dict[str, str]) -> bytes:
    quality = 100 if request.output_compression is None else request.output_compression
    source_type = EDITED if isinstance(request, EditRequest) else GENERATED
    return encoded(image, request.output_format or "png", about, quality, source_type)


def _usage(model: Model, prompt: str, images: int, sources: int) -> dict[str, Any]:
    """Tokens: those of the prompt, and those of the network for each image."""
    config, (_, height, width) = getattr(model.network, "config", None), model.shape
    each = height * width // getattr(config, "patch", 1) ** 2
    cond = model.condition([prompt]) if model.conditioning else torch.zeros(1)
    text = int(torch.count_nonzero(cond)) if cond.ndim > 1 else 1
    read = {"text_tokens": text, "image_tokens": each * sources}
    taken, made = sum(read.values()), each * images
    return {
        "input_tokens": taken,
        "input_tokens_details": read,
        "output_tokens": made,
        "output_tokens_details": {"image_tokens": made, "text_tokens": 0},
        "total_tokens": taken + made,
    }
