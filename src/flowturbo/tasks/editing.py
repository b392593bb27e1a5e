r"""Editing by prompts: image to image, and changes that keep what the prompts share.

With a source image :math:`x`, its prompt ``c`` and the target prompt ``c'``:

- *sdedit* (Meng et al. 2022, arXiv 2108.01073): noise :math:`x` up to a time ``t``, and sample from
  there with ``c'``. The source prompt is not used.
- *inversion* (as in Hertz et al. 2023, arXiv 2208.01626, on the ODE): follow the model's own
  velocity backward from :math:`x` to ``t`` with ``c``, unguided, and forward again with ``c'``. The
  state at ``t`` knows the image, so shapes and poses stay.
- *flowedit* (Kulikov et al. 2025, arXiv 2412.08629): from :math:`x`, follow the difference of the
  velocities of ``c'`` and ``c`` at states that are noised alike.

``keep`` says in all of them how much of the source stays: at 0 nothing, at 1 everything. It is the
time ``t`` at which the edit begins, on a scale of each method's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from flowturbo import checks, noise
from flowturbo.field import CountCalls, Field
from flowturbo.guidance import Guidance, guided
from flowturbo.models.model import Model
from flowturbo.path import interpolate
from flowturbo.plan import Plan
from flowturbo.refiner.binding import Refiner, needed_refiner
from flowturbo.refiner.resolve import default_guidance, own_refiner
from flowturbo.sampling import Callback, sample
from flowturbo.tasks.generate import check_model
from flowturbo.tasks.sources import Edited, Picture, Size, conditions, finished, read_sources
from flowturbo.types import Condition, Time

__all__ = ["METHODS", "edit", "img2img", "invert"]

METHODS = ("inversion", "flowedit", "sdedit")
PLAN = "AB2:8@1.6"  # of image to image
HALF = "AB2:4@1.6"  # there and back
Prompts = str | int | Sequence[str | int]


def img2img(
    model: Model,
    image: Picture | Sequence[Picture],
    prompt: Prompts,
    *,
    strength: float = 0.6,
    plan: Plan | str = PLAN,
    guidance: float | None = None,
    negative: str | None = None,
    style: str | None = None,
    seed: int = 0,
    refiner: Refiner | None = None,
    size: Size = "input",
    callback: Callback | None = None,
) -> Edited:
    """Image to image: noise an image, and sample from there (SDEdit, arXiv 2108.01073).

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, of any size and mode, or one for each prompt.
        prompt: a prompt or label, or several: one image is edited by each.
        strength: from 0, the image itself, to 1, an image from noise alone. The run begins at time
            ``1 - strength``.
        plan: notation runs whole between that time and data; a table, or a plan of the model by its
            name, is restricted to it, and takes fewer evaluations.
        guidance: scale of classifier-free guidance, 1 is off; by default the card's.
        negative: a prompt to guide away from; by default the unconditional one.
        style: one of ``model.styles``, for all prompts.
        seed: of the first image's noise; image ``i`` has ``seed + i``.
        refiner: for plans with refiner evaluations; by default the one that came with the model.
        size: "input", each in its place in the original, or "model", as the model draws them.
        callback: called after every evaluation, see `flowturbo.sample`.

    Returns:
        A list of PIL images with ``evaluations`` and ``passes``.

    Raises:
        ValueError: if an argument is not as described, an image is not readable, or the model does
            not know a prompt.
    """
    check_model(model)
    start = 1 - checks.number("strength", strength, 0, 1)
    checks.one_of("size", size, ("model", "input"))
    count, cond = conditions(model, "prompt", prompt, style)
    sources = read_sources(model, image, count)
    if start == 1:
        return Edited(sources.placed(finished(model, sources.states), size), 0, 0)
    table = forward(model, plan, start)
    null = None if negative is None else conditions(model, "negative", negative)[1]
    x0 = noise.draw(range(seed, seed + count), model.shape, device=model.device)
    counted = CountCalls(model)
    x1 = sample(
        table,
        counted,
        interpolate(x0, sources.states, start),
        cond,
        guidance=default_guidance(model, guidance),
        negative=null,
        refiner=_refiner(model, table, refiner),
        callback=callback,
    )
    return _edited(sources.placed(finished(model, x1), size), counted, count)


def invert(
    model: Model,
    image: Picture | Sequence[Picture],
    prompt: Prompts = "",
    *,
    plan: str = PLAN,
    until: float = 0.0,
    style: str | None = None,
) -> Tensor:
    """The state at time ``until`` from which the model leads to an image; at 0 its noise.

    The ODE is solved backward without guidance, which is the case that can be undone: guidance
    above 1 in an inversion is amplified. `flowturbo.sample` with a plan from ``until`` leads back.

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, or one for each prompt.
        prompt: what the image shows, or several; by default nothing.
        plan: notation of a solver that runs backward.
        until: from 0, noise, up to, not at, 1.
        style: one of ``model.styles``, for all prompts.

    Returns:
        The states, (N, C, H, W).

    Raises:
        ValueError: if an argument is not as described.
    """
    check_model(model)
    count, cond = conditions(model, "prompt", prompt, style)
    sources = read_sources(model, image, count)
    return sample(backward(plan, until), model, sources.states, cond)


def edit(
    model: Model,
    image: Picture | Sequence[Picture],
    prompt: Prompts,
    source_prompt: Prompts,
    *,
    method: Literal["inversion", "flowedit", "sdedit"] = "inversion",
    keep: float = 0.1,
    plan: str = HALF,
    guidance: float | None = None,
    style: str | None = None,
    source_style: str | None = None,
    exact: bool = False,
    seed: int = 0,
    size: Size = "input",
) -> Edited:
    """Change an image from what ``source_prompt`` says to what ``prompt`` says.

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, or one for each prompt.
        prompt: what the image is to show, or several.
        source_prompt: what it shows, one or as many.
        method: "inversion", the default; "flowedit", with about half the evaluations; "sdedit".
        keep: how much of the image stays, from 0 to 1; see `flowturbo.tasks.editing`.
        plan: notation of a solver, for each direction.
        guidance: scale for ``prompt``, 1 is off; by default the card's. The source prompt is never
            guided by.
        style: one of ``model.styles``, for the prompts.
        source_style: the same for the source prompts; by default ``style``.
        exact: for "inversion", run the reversible solver BELM with as many evaluations as ``plan``:
            to the same prompt, unguided, the image returns to rounding.
        seed: of the first image's noise, for "flowedit" and "sdedit".
        size: "input", each in its place in the original, or "model", as the model draws them.

    Returns:
        A list of PIL images with ``evaluations`` and ``passes``.

    Raises:
        ValueError: if an argument is not as described, an image is not readable, or the model does
            not know a prompt.
    """
    check_model(model)
    checks.one_of("method", method, METHODS)
    checks.one_of("size", size, ("model", "input"))
    start = checks.number("keep", keep, 0, 1)
    if checks.flag("exact", exact) and method != "inversion":
        raise ValueError(f"exact=True, method={method!r}: only an inversion can be exact")
    count, cond = conditions(model, "prompt", prompt, style)
    known, source = conditions(
        model, "source_prompt", source_prompt, style if source_style is None else source_style
    )
    if known not in (1, count):
        raise ValueError(
            f"source_prompt: {known} of them for {count} prompts; pass one, or one for each"
        )
    sources = read_sources(model, image, count)
    if start == 1:
        return Edited(sources.placed(finished(model, sources.states), size), 0, 0)
    if known == 1 and isinstance(source, Tensor):
        source = source.expand(count, *source.shape[1:])
    scale, counted, x = default_guidance(model, guidance), CountCalls(model), sources.states
    seeds = range(seed, seed + count)
    if exact:
        x1 = _there_and_back(
            counted, x, source, cond, scale, len(forward(model, plan, start)), start
        )
    elif method == "inversion":
        x = sample(backward(plan, start), counted, x, source)
        x1 = sample(forward(model, plan, start), counted, x, cond, guidance=scale)
    elif method == "sdedit":
        x0 = noise.draw(seeds, model.shape, device=model.device)
        x = interpolate(x0, x, start)
        x1 = sample(forward(model, plan, start), counted, x, cond, guidance=scale)
    else:
        difference = Difference(counted, x, cond, source, scale, seeds)
        x1 = sample(forward(model, plan, start), difference, x)
    return _edited(sources.placed(finished(model, x1), size), counted, count)


class Difference:
    """FlowEdit's field: the velocity of the target less that of the source, noised alike.

    At time ``t``, with ``z = t*image + (1-t)*n`` of fresh noise ``n`` for each evaluation, it is
    ``v(x + z - image, t, target) - v(z, t, source)`` (Kulikov et al. 2025, algorithm 1).
    """

    def __init__(
        self,
        field: Field,
        image: Tensor,
        target: Condition,
        source: Condition,
        guidance: float,
        seeds: Sequence[int],
    ) -> None:
        self.field, self.image, self.target, self.source = field, image, target, source
        self.guided, self.seeds, self.drawn = guided(field, guidance), seeds, 0

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """The difference at a state ``x`` (B, ...)."""
        seeds = [noise.mixed(seed, self.drawn) for seed in self.seeds]
        n = noise.draw(seeds, self.image.shape[1:], device=x.device)
        self.drawn += 1
        z = interpolate(n, self.image, t)
        at = float(t) if isinstance(self.guided, Guidance) else t
        return self.guided(x + z - self.image, at, self.target) - self.field(z, t, self.source)


class Known:
    """A field whose first velocity is known."""

    def __init__(self, field: Field, first: Tensor) -> None:
        self.field, self.first = field, [first]

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """``first`` the first time, then ``field(x, t, cond)``."""
        at = float(t) if isinstance(self.field, Guidance) else t
        return self.first.pop() if self.first else self.field(x, at, cond)


def _there_and_back(
    field: Field,
    x: Tensor,
    source: Condition,
    target: Condition,
    guidance: float,
    evaluations: int,
    start: float,
) -> Tensor:
    """From data to ``start`` and back by BELM, from the two states that the way there ends with."""
    text, states = f"BELM:{evaluations}", [x]
    there = Plan.parse(text, direction="backward", end=start)
    keep = lambda step: states.append(step.x)
    x0 = sample(there, field, x, source, callback=keep)
    back = Plan.parse(text, start=start)
    first = (states[-2] - x0) / float(back.times[1] - back.times[0])
    return sample(back, Known(guided(field, guidance), first), x0, target)


def forward(model: Model, plan: Plan | str, start: float) -> Plan:
    """``plan`` from ``start`` to data: notation whole, a table restricted."""
    if isinstance(plan, str) and plan in model.plans:
        plan = model.plans[plan]
    if isinstance(plan, str):
        return Plan.parse(plan, start=start)
    return plan.restrict(start)


def backward(plan: str, end: float) -> Plan:
    """The notation ``plan`` from data to ``end``."""
    if not isinstance(plan, str):
        raise ValueError(f"plan={checks.shown(plan)}: must be notation ('AB2:8'), to run backward")
    return Plan.parse(plan, direction="backward", end=end)


def _refiner(model: Model, plan: Plan, refiner: Refiner | None) -> Refiner | None:
    if refiner is None and plan.nfe["refiner"]:
        refiner = own_refiner(model)
    return needed_refiner(plan, refiner)


def _edited(images: list, counted: CountCalls, count: int) -> Edited:  # type: ignore[type-arg]
    return Edited(images, counted.calls, counted.rows // count)
