"""Configurations of other flow schedulers, translated to options of ours.

A configuration is accepted only if its class and each of its options are supported. A scheduler
that was created in Python does not write its class into its configuration; the class is then the
one that has exactly these options.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from difflib import get_close_matches
from functools import cache
from typing import TypeAlias

from flowturbo.integrations.diffusers._shim import diffusers
from flowturbo.types import JsonObject, ReadOnlyJson, Scheduler

__all__ = [
    "MU_OPTIONAL",
    "OPTIONS",
    "REPLACED",
    "SUPPORTED",
    "defaults",
    "described",
    "translated",
]

Options: TypeAlias = ReadOnlyJson

SUPPORTED = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "FlowTurboScheduler",
)

SPACING = "pass other spacings to the pipeline's call, as sigmas=..."
WITHOUT_NOISE = "plans are deterministic"
OPTIONS: dict[str, tuple[tuple[object, ...], str]] = {  # allowed values, and why no others
    "prediction_type": (("flow_prediction",), "the network must predict a flow"),
    "use_flow_sigmas": ((True,), "the noise levels must be those of a flow"),
    "sigma_data": ((None,), "the noise levels of an EDM reach beyond 1"),
    "scale_factors": ((None,), "states that grow on the way are not supported"),
    "stochastic_sampling": ((False, None), WITHOUT_NOISE),
    "algorithm_type": (("dpmsolver++", "dpmsolver", "deis"), WITHOUT_NOISE),
    "thresholding": ((False,), "plans do not clip what the network predicts"),
    "use_karras_sigmas": ((False, None), SPACING),
    "use_exponential_sigmas": ((False, None), SPACING),
    "use_beta_sigmas": ((False, None), SPACING),
    "use_lu_lambdas": ((False, None), SPACING),
    "final_sigmas_type": (("zero",), "plans end at noise level 0"),
}
NO_ADVICE = ("sigma_data",)  # a pipeline that sets it needs it

SHIFTS: tuple[str, ...] = ("shift", "flow_shift")  # names of one option
MU_OPTIONAL = "mu_optional"  # an entry of our own in a configuration

REPLACED = {  # options of the solver, which ours replaces, and of diffusion
    "solver_order",
    "solver_type",
    "solver_p",
    "predict_x0",
    "lower_order_final",
    "euler_at_final",
    "disable_corrector",
    "variance_type",
    "lambda_min_clipped",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
    "sigma_min",
    "sigma_max",
    "flow_shift",
}


def described(scheduler: Scheduler) -> JsonObject:
    """The configuration of ``scheduler`` with its class and its current shift."""
    cls = type(scheduler)
    own = cls is getattr(diffusers, cls.__name__, None) or cls.__name__ == "FlowTurboScheduler"
    name = cls.__name__ if own else f"{cls.__module__}.{cls.__qualname__}"
    config = {**scheduler.config, "_class_name": name}
    if isinstance(getattr(cls, "shift", None), property):  # set_shift may have changed it
        config["shift"] = scheduler.shift
        config["_use_default_values"] = _defaulted(config, "shift")
    return config


def translated(
    config: Options, overrides: Options, own: Options, strict: bool = True
) -> tuple[JsonObject, JsonObject]:
    """``config`` and ``overrides`` as the configuration and keywords of ``FlowTurboScheduler``.

    Args:
        config: the configuration of any scheduler.
        overrides: the shift by any of its names, options of ours, and those of ``OPTIONS``.
        own: the options of ``FlowTurboScheduler`` and their defaults.
        strict: whether to refuse unknown keywords.

    Raises:
        ValueError: if the class, an option or a keyword is not supported; names it.
    """
    known = {*own, *OPTIONS, *SHIFTS}
    for key, value in overrides.items():
        if strict and key not in known:
            raise ValueError(f"{key}={value!r}: from_config takes no {key}{_near(key, known)}")
    names = _names(config, own)
    label = " or ".join(names) or "the configuration"
    options: Options = _options(names[0], own) if len(names) == 1 else {}
    values = {**options, **config, **overrides}
    _refuse_diffusion(values, label)
    if not names:
        _refuse_unknown_keys(config, {*known, *REPLACED, MU_OPTIONAL})
    elif not set(names) <= set(SUPPORTED):
        fix = (
            "use FlowTurboScheduler(shift=...) if its network predicts a flow all the same"
            if len(names) == 1
            else "its configuration fits several; pass the scheduler itself"
        )
        raise ValueError(f"{label}: not a supported scheduler ({', '.join(SUPPORTED)}); {fix}")
    for key, default in options.items():
        if key not in known and key not in REPLACED and values[key] != default:
            raise ValueError(f"{label} with {key}={values[key]!r}: this option is not supported")
    shift = next((f"{key}={overrides[key]!r}" for key in SHIFTS if key in overrides), None)
    optional = "algorithm_type" in options or MU_OPTIONAL in config
    if shift and values.get("use_dynamic_shifting") and not optional:
        raise ValueError(
            f"{label} with use_dynamic_shifting=True, and {shift}: the shift depends on the image "
            "size, and this one would have no effect; pass use_dynamic_shifting=False too"
        )
    for key, (allowed, reason) in OPTIONS.items():
        if key in values and values[key] not in allowed:
            raise ValueError(
                f"{label} with {key}={values[key]!r}: {reason}"
                + ("" if key in NO_ADVICE else f"; to do without, {_call(key, allowed[0])}")
            )
    return _merged(config, overrides, options, label)


def _refuse_diffusion(values: Options, label: str) -> None:
    for key in ("prediction_type", "use_flow_sigmas"):
        allowed = OPTIONS[key][0]
        if values.get(key, allowed[0]) not in allowed:
            raise ValueError(
                f"{label} with {key}={values[key]!r}: the scheduler of a diffusion, not a flow; if "
                "the network is a flow all the same, use FlowTurboScheduler(), with sign=1 if it "
                "predicts data minus noise"
            )


def _merged(
    config: Options, overrides: Options, options: Options, label: str
) -> tuple[JsonObject, JsonObject]:
    """Move options into the configuration, and the shift, by any of its names, to the keywords."""
    config, keywords = dict(config), dict(overrides)
    config |= {key: keywords.pop(key) for key in OPTIONS if key in keywords}
    if "algorithm_type" in options:  # DPM-Solver and DEIS, which shift by flow_shift without mu
        config[MU_OPTIONAL] = True
    names = SHIFTS
    source = keywords if any(name in keywords for name in names) else {**options, **config}
    if source is not keywords and any(name in options for name in names):
        names = tuple(name for name in names if name in options)  # others are from an earlier class
    shifts = {name: source[name] for name in names if name in source}
    if len(shifts) == 2 and shifts["shift"] != shifts["flow_shift"]:
        raise ValueError(
            f"{label} with shift={shifts['shift']!r} and flow_shift={shifts['flow_shift']!r}: they "
            "are the same option; pass one, as shift=..."
        )
    keywords.pop("flow_shift", None)
    for shift in shifts.values():
        keywords["shift"] = shift
        if "flow_shift" in {**options, **config}:  # for the way back
            config["flow_shift"] = shift
            config["_use_default_values"] = _defaulted(config, "flow_shift")
    return config, keywords


def _call(key: str, value: object) -> str:
    return f"FlowTurboScheduler.from_config(config, {key}={value!r})"


def _names(config: Options, own: Options) -> list[str]:
    """The class of the configuration; several if it could be any of them."""
    if config.get("_class_name") is not None:
        return [str(config["_class_name"])]
    keys = {key for key in config if not key.startswith("_")}
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    return [
        name for name in (*names, "FlowTurboScheduler") if keys and keys == set(_options(name, own))
    ]


def _options(name: str, own: Options) -> Options:
    """The options of a scheduler of diffusers, or of ours, with their defaults."""
    return own if name == "FlowTurboScheduler" else defaults(getattr(diffusers, name, None))


@cache
def defaults(cls: type[object] | None) -> Options:
    """The options of a scheduler class and their defaults; none for None."""
    parameters = inspect.signature(cls).parameters.values() if cls else ()
    return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}


def _refuse_unknown_keys(config: Options, known: Collection[str]) -> None:
    for key, value in config.items():
        if not key.startswith("_") and key not in known:
            raise ValueError(
                f"{key}={value!r} in a configuration without _class_name: not an option of a "
                f"supported scheduler{_near(key, known)}; pass the scheduler itself, or add "
                "_class_name"
            )


def _defaulted(config: Options, but: str) -> list[str]:
    return [key for key in config.get("_use_default_values", []) if key != but]


def _near(key: str, known: Collection[str]) -> str:
    near = get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"
