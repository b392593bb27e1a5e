r"""Editing by prompts: image to image, and edits that keep what the prompts have in common.

With a source image :math:`x`, its prompt ``c`` and the target prompt ``c'``:

- *sdedit* (Meng et al. 2022, arXiv 2108.01073): noise :math:`x` up to a time ``t``, and sample from
  there with ``c'``. The source prompt is not used.
- *inversion* (as in Hertz et al. 2023, arXiv 2208.01626, on the ODE): follow the model's own
  velocity backward from :math:`x` to ``t`` with ``c``, unguided, and forward again with ``c'``. The
  state at ``t`` determines the image, so shapes and poses stay.
- *flowedit* (Kulikov et al. 2025, arXiv 2412.08629): from :math:`x`, follow the difference of the
  velocities of ``c'`` and ``c`` at states with the same noise.

In all of them, ``keep`` is how much of the source stays: at 1 everything, at 0 only what an
inversion preserves. The edit begins at time ``t = keep``, or at ``keep ** 1.1`` with flowedit,
which would stay nearer to the source if it began at the same time; with this power it stays about
as near as an inversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from flowturbo import checks
from flowturbo.field import CountCalls, Field
from flowturbo.guidance import guided
from flowturbo.models.model import Model
from flowturbo.models.prompts import as_prompt
from flowturbo.path import interpolate
from flowturbo.plan import Plan, as_plan, notation
from flowturbo.plan.plan import is_file_name
from flowturbo.refiner.binding import Refiner, warn_on_mismatch
from flowturbo.refiner.resolve import resolve_plan, resolve_refiner
from flowturbo.sampling import Callback, Step, sample
from flowturbo.tasks.fields import Difference, Known
from flowturbo.tasks.generate import check_whole, condition_of, decoded
from flowturbo.tasks.sources import Edited, ImageInput, Job, Prompts, Size, job, prompt_texts
from flowturbo.types import Condition

__all__ = [
    "HALF",
    "METHODS",
    "NOTHING",
    "begins_at",
    "edit",
    "forward",
    "full_plan",
    "img2img",
    "inversion",
    "invert",
]

METHODS = ("inversion", "flowedit", "sdedit")
PLAN = "AB2:8@1.6"  # of image to image
HALF = "AB2:4@1.6"  # in each direction
FLOWEDIT_POWER = 1.1  # measured by benchmarks/editing.py
NOTHING = 1e-6  # of the path: nothing is done over less


@checks.known_keywords
def img2img(
    model: Model,
    image: ImageInput | Sequence[ImageInput],
    prompt: Prompts,
    *,
    strength: float = 0.6,
    plan: Plan | str | None = PLAN,
    guidance: float | None = None,
    negative: str | None = None,
    style: str | None = None,
    seed: int = 0,
    refiner: Refiner | None = None,
    size: Size = "input",
    callback: Callback | None = None,
) -> Edited:
    """Image to image: add noise to an image, and sample from there (SDEdit, arXiv 2108.01073).

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, of any size and mode, or several.
        prompt: a prompt or label, or several; a single prompt is used for all images, and a single
            image for all prompts.
        strength: from 0 (the image itself) to 1 (an image from pure noise). The run begins at time
            ``1 - strength``.
        plan: notation is run in full between that time and data; a table, or a plan of the model by
            its name, is restricted to that range, and takes fewer evaluations. None is the card's.
        guidance: scale of classifier-free guidance, 1 is off; by default the card's.
        negative: a prompt to guide away from; by default the unconditional one.
        style: one of ``model.styles``, for all prompts.
        seed: of the first image's noise; image ``i`` has ``seed + i``.
        refiner: for plans with refiner evaluations; by default the one that came with the model.
        size: "input", put back into the original image, or "model", the size of the model's images.
        callback: called after every evaluation, see `flowturbo.sample`.

    Returns:
        A list of PIL images with ``evaluations`` and ``passes``.

    Raises:
        ValueError: if an argument is not as described, an image is not readable, or the model does
            not know a prompt.
    """
    work = job(model, image, prompt, style=style, guidance=guidance, seed=seed, size=size)
    start = 1 - checks.number("strength", strength, 0, 1)
    table = forward(model, plan, start, guidance)
    null = None
    if negative is not None:
        null = condition_of(model, [as_prompt("negative", negative)])
    if start > 1 - NOTHING:
        return work.parts.unchanged()
    counted = CountCalls(model)
    x1 = sample(
        table,
        counted,
        interpolate(work.noise(), work.states, float(table.times[0])),
        work.cond,
        guidance=work.guidance,
        negative=null,
        refiner=resolve_refiner(model, table, refiner),
        callback=callback,
    )
    return _finished(work, x1, table, counted)


@checks.known_keywords
def invert(
    model: Model,
    image: ImageInput | Sequence[ImageInput],
    prompt: Prompts = "",
    *,
    plan: Plan | str = PLAN,
    until: float = 0.0,
    style: str | None = None,
) -> Tensor:
    """The state at time ``until`` from which the model leads to an image; at 0 its noise.

    The ODE is solved backward without guidance, since only then can the inversion be undone: the
    effect of guidance above 1 in an inversion is amplified. `flowturbo.sample` with a plan from
    ``until`` leads back.

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, or several.
        prompt: what the image shows, or several; by default nothing.
        plan: notation of a solver that runs backward, without R, or a plan (or its file) that leads
            from data to ``until``, such as `flowturbo.tune` fits with ``direction="round trip"``.
        until: from 0 (noise) to below 1.
        style: one of ``model.styles``, for all prompts.

    Returns:
        The states, (N, C, H, W).

    Raises:
        ValueError: if an argument is not as described.
    """
    work = job(model, image, prompt, style=style, guidance=1.0, seed=0, size="model")
    end = checks.number("until", until, 0, 1)
    if end > 1 - NOTHING:
        raise ValueError(f"until={until}: must be below 1, where the image is")
    return sample(backward(plan, end), model, work.states, work.cond)


@checks.known_keywords
def edit(
    model: Model,
    image: ImageInput | Sequence[ImageInput],
    prompt: Prompts,
    source_prompt: Prompts,
    *,
    method: Literal["inversion", "flowedit", "sdedit"] = "inversion",
    keep: float = 0.1,
    plan: Plan | str = HALF,
    guidance: float | None = None,
    style: str | None = None,
    source_style: str | None = None,
    exact: bool = False,
    seed: int = 0,
    size: Size = "input",
    callback: Callback | None = None,
) -> Edited:
    """Edit an image: change what ``source_prompt`` describes into what ``prompt`` describes.

    Args:
        model: from `flowturbo.load`.
        image: a PIL image or a path, or several.
        prompt: what the edited image should show, or several.
        source_prompt: what the image shows, or several.
        method: "inversion", "flowedit" or "sdedit"; see `flowturbo.tasks.editing`.
        keep: how much of the image stays, from 0 to 1, on about the same scale in all methods.
        plan: notation of a solver that is used in each direction; for "inversion" also a plan (or
            its file) that `flowturbo.tune` fits with ``direction="round trip"`` and ``until`` equal
            to this ``keep``; for the other methods also the table of a forward plan.
        guidance: scale for ``prompt``, 1 is off; by default the card's. Guidance is never applied
            to the source prompt.
        style: one of ``model.styles``, for the prompts.
        source_style: the same for the source prompts; by default ``style``, and "" is none.
        exact: for "inversion", run the reversible solver BELM with the evaluations and the shift of
            ``plan``: with the same prompt, unguided, the image is recovered up to rounding.
        seed: of the first image's noise, for "flowedit" and "sdedit"; an inversion has none.
        size: "input", put back into the original image, or "model", the size of the model's images.
        callback: called after every evaluation of the run to ``prompt``, see `flowturbo.sample`; in
            "flowedit" its ``v`` and ``x1`` are those of the difference that is followed.

    Returns:
        A list of PIL images with ``evaluations`` and ``passes``.

    Raises:
        ValueError: if an argument is not as described, an image is not readable, or the model does
            not know a prompt.
    """
    work = job(model, image, prompt, style=style, guidance=guidance, seed=seed, size=size)
    checks.one_of("method", method, METHODS)
    if callback is not None:
        callback = checks.function("callback", callback, "step")
    start = begins_at(keep, method)
    if checks.flag("exact", exact) and method != "inversion":
        raise ValueError(f"exact=True, method={method!r}: only an inversion can be exact")
    their_style = style if source_style is None else source_style
    texts = prompt_texts(model, "source_prompt", source_prompt, their_style)
    if len(texts) not in (1, len(work)):
        raise ValueError(
            f"source_prompt: {len(texts)} for {len(work)} images; give one, or {len(work)}"
        )
    source = condition_of(model, texts * (len(work) // len(texts)))
    if start > 1 - NOTHING:
        return work.parts.unchanged()
    counted, x, there = CountCalls(model), work.states, None
    if method == "inversion" and not exact:
        there, plan = inversion(plan, start)
    table = forward(model, plan, start)
    if exact:
        x1 = _there_and_back(counted, work, source, plan, start, callback)
    elif method == "flowedit":
        full_plan(table, "method='flowedit'")
        warn_on_mismatch(table, model, None, work.guidance)
        difference = Difference(counted, x, work.cond, source, work.guidance, work.seeds)
        x1 = sample(table.with_info({}), difference, x, callback=callback)
    else:
        if there is None:
            x = interpolate(work.noise(), x, start)
        else:
            x = sample(there, counted, x, source)
        refiner = resolve_refiner(model, table, None)
        x1 = sample(
            table, counted, x, work.cond, guidance=work.guidance, refiner=refiner,
            callback=callback,
        )  # fmt: skip
    return _finished(work, x1, table, counted)


def begins_at(keep: float, method: str) -> float:
    """The time at which an edit begins; ``ValueError`` unless ``keep`` is from 0 to 1."""
    return checks.number("keep", keep, 0, 1) ** (FLOWEDIT_POWER if method == "flowedit" else 1)


def _there_and_back(
    field: Field,
    work: Job,
    source: Condition,
    plan: Plan | str,
    start: float,
    callback: Callback | None,
) -> Tensor:
    """From data to ``start`` and back with BELM, from the last two states of the backward run."""
    if not isinstance(plan, str) or is_file_name(plan):
        raise ValueError(f"exact=True, plan={checks.shown(plan)}: takes notation ('AB2:8')")
    _, _, shift, _ = notation.parse(plan)
    count = len(Plan.parse(plan))
    if count < 2:
        raise ValueError(f"exact=True, plan={plan!r}: takes two evaluations at least")
    text = f"BELM:{count}" + (f"@{shift}" if shift is not None else "")
    states: list[Tensor] = []

    def keep(step: Step) -> None:
        states.append(step.x)

    there = Plan.parse(text, direction="backward", end=start)
    x0 = sample(there, field, work.states, source, callback=keep)
    back = Plan.parse(text, start=start)
    first = (states[-2] - x0) / float(back.times[1] - back.times[0])
    known = Known(guided(field, work.guidance), float(x0.new_tensor(start)), first)
    return sample(back, known, x0, work.cond, callback=callback)


def forward(
    model: Model, plan: Plan | str | None, start: float, guidance: float | None = None
) -> Plan:
    """``plan`` from ``start`` to data: notation is run in full, a table is restricted.

    Raises:
        ValueError: if it is not a plan, or does not lead to data.
    """
    start = min(start, 1 - NOTHING)
    if is_file_name(plan):
        plan = as_plan(plan)
    table = resolve_plan(model, plan, guidance)
    if isinstance(plan, str) and plan not in model.plans:
        return Plan.parse(plan, start=start)
    check_whole(table)
    return table.restrict(max(start, float(table.times[0])))


def full_plan(plan: Plan, what: str) -> None:
    """Raise ``ValueError`` unless all evaluations of ``plan`` are those of the whole model."""
    if {*plan.evaluators} != {"model"}:
        raise ValueError(
            f"{what}, plan {plan.name!r}: conditional (C) and refiner (R) evaluations have no "
            "meaning there; take a plan without them"
        )


def backward(plan: Plan | str, end: float) -> Plan:
    """The notation ``plan`` from data to ``end``, or a plan that leads there."""
    if isinstance(plan, str) and not is_file_name(plan):
        made = Plan.parse(plan, direction="backward", end=end)
    else:
        made = as_plan(plan)
        first, last = made.times[[0, -1]]
        if first != 1 or abs(last - end) > NOTHING:
            raise ValueError(
                f"plan {made.name!r}: leads from t={first:g} to {last:g}, must lead from data, t=1,"
                f" to {end:g}; fit one by flowturbo.tune(direction='round trip', until={end:g}), or"
                " pass notation ('AB2:8')"
            )
    full_plan(made, "backward")
    return made


def inversion(plan: Plan | str, end: float) -> tuple[Plan, str]:
    """The plan from data to ``end``, and the notation that leads back from there."""
    there = backward(plan, end)
    if isinstance(plan, str) and not is_file_name(plan):
        return there, plan
    if "inverts" not in there.info:
        raise ValueError(
            f"plan {there.name!r}: no plan is known that leads back; fit one by flowturbo.tune"
            "(direction='round trip'), or pass notation ('AB2:8')"
        )
    return there, str(there.info["inverts"])


def _finished(work: Job, x1: Tensor, plan: Plan, counted: CountCalls) -> Edited:
    images = work.parts.placed(decoded(work.model, x1, plan, work.guidance))
    return Edited(images, counted.calls, counted.rows // len(work))
