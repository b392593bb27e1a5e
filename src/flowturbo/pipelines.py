"""`tune` and `train_refiner` for fields, and for diffusers pipelines with prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar

from flowturbo import checks
from flowturbo.training.refiner import train_refiner as train_refiner_of_field
from flowturbo.tuning.tune import tune as tune_of_field

__all__ = ["train_refiner", "tune"]

T = TypeVar("T")
OWN = ("prompts", "size")  # additional arguments for a pipeline
ABOUT = """
    ``model`` may also be a diffusers text-to-image pipeline. Then ``prompts`` are texts, or
    arguments of its call by name, ``negative`` is one text, and ``size`` is 1024 or "1344x768",
    width first; see `flowturbo.integrations.diffusers.as_field`, which makes a field of it.
    """


def _also_of_pipelines(function: Callable[..., T], **defaults: object) -> Callable[..., T]:
    """``function`` of a field, extended to accept a pipeline and its prompts.

    ``defaults`` replace defaults of the function for pipelines.
    """
    own = signature(function)
    more = [name for name in (*OWN, "negative") if name not in own.parameters]
    added = [Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in more]

    @wraps(function)
    def call(*args: Any, **given: Any) -> T:
        model = args[0] if args else given.get("model")
        about = {name: given.pop(name, None) for name in more}
        if not _is_pipeline(model):
            for name, value in about.items():
                if value is not None:
                    raise ValueError(
                        f"{name}={checks.shown(value)}: is for a pipeline of diffusers, and model "
                        f"is a {type(model).__name__}; leave it out"
                    )
            return function(*args, **given)
        given.pop("model", None)
        if len(args) > 1 or given.get("config") is not None:
            raise ValueError(
                f"config={checks.shown(given.get('config', args[-1]))}: of a pipeline pass its "
                "fields as keywords"
            )
        if about["prompts"] is None:
            raise ValueError(
                f"prompts=None: {function.__name__} of a pipeline needs them; pass "
                "prompts=['a red apple', ...]"
            )
        if given.get("cond") is not None:
            raise ValueError(f"cond={checks.shown(given['cond'])}: a pipeline takes prompts=...")
        from flowturbo.integrations.diffusers.field import as_field, sides_of

        about.setdefault("negative", given.pop("negative", None))
        about |= sides_of(about.pop("size"))
        field = as_field(model, guidance=given.pop("guidance", None), **about)
        return function(field, guidance=field.guidance, **{**defaults, **given})

    call.__doc__ = f"{function.__doc__}{ABOUT}"
    call.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), *added]
    )
    return call


def _is_pipeline(model: object) -> bool:
    diffusers = sys.modules.get("diffusers")  # without it there are none
    return diffusers is not None and isinstance(model, diffusers.DiffusionPipeline)


tune = _also_of_pipelines(tune_of_field)
train_refiner = _also_of_pipelines(train_refiner_of_field, kind="conv")
