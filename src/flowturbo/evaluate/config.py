"""Configurations of the measurements, whose fields are also keywords of the functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowturbo import checks
from flowturbo.compiled.backend import SCOPES
from flowturbo.plan import Plan

__all__ = [
    "SECTIONS",
    "AnalyzeConfig",
    "BenchmarkConfig",
    "EvaluateConfig",
    "as_plans",
    "check_list",
]

MAX_IMAGES = 10_000_000
MEASURED = (*SCOPES, *(f"{scope} captured" for scope in ("row", "network", "none")))
SECTIONS = ("curvature", "solvers", "rows")


@checks.known_keywords
@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `flowturbo.evaluate` measures, and on how many images.

    Attributes:
        num_images: number of images to generate, at least 10, by default 5000; image ``i`` has seed
            ``seed + i``. Cannot be combined with noise of your own, all of which is used.
        guidance: scale of classifier-free guidance, 1 is off; by default the one on the model's
            card, and 1 for other fields.
        fid: also compute FID, sFID, inception score, precision and recall by the official protocol;
            needs real images.
        agreement: number of prompts to measure agreement on; 0 skips it.
        steps: intervals of the reference solution, at least 8; it takes 9 more evaluations.
        resamples: bootstrap resamples for the relative increase of FD; 0 computes no interval.
        repeats: rounds of timing; 0 skips it.
        batch: number of images generated at a time; affects rounding, so it is part of the
            conditions.
        seed: seed of the first image, and of the prompts.
    """

    num_images: int | None = None
    guidance: float | None = None
    fid: bool = False
    agreement: int = 200
    steps: int = 64
    resamples: int = 200
    repeats: int = 10
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images is not None:
            checks.whole("num_images", self.num_images, 10, MAX_IMAGES)
        for name in ("agreement", "resamples", "repeats", "seed"):
            checks.whole(name, getattr(self, name), 0)
        checks.whole("batch", self.batch, 1)
        checks.whole("steps", self.steps, 8)
        if self.resamples == 1:
            raise ValueError("resamples=1: must be at least 2, or 0 for no interval")
        checks.flag("fid", self.fid)
        _keep_guidance(self)


@checks.known_keywords
@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """How samplers are timed.

    Attributes:
        batch: images in a batch.
        guidance: scale of classifier-free guidance, 1 is off; by default the one on the model's
            card, and 1 for other fields.
        scopes: what is compiled, any of none, network, row and plan; each plan is measured in each.
            On CUDA "row captured", "network captured" and "none captured" run the sample in one
            CUDA graph.
        repeats: rounds of timing.
        reference: plan that errors are measured against, or its notation; "" measures no errors.
        seed: seed of the first image.
    """

    batch: int = 8
    guidance: float | None = None
    scopes: tuple[str, ...] = ("none", "plan")
    repeats: int = 20
    reference: str | Plan | None = "RK4:32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("repeats", 1), ("seed", 0)):
            checks.whole(name, getattr(self, name), least)
        _keep_list(self, "scopes", MEASURED)
        _keep_guidance(self)
        given = as_plans("reference", [self.reference] if self.reference else [])
        object.__setattr__(self, "reference", given[0] if given else None)


@checks.known_keywords
@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """What `analyze` measures, and on how many trajectories.

    Attributes:
        sections: what to measure, any of curvature, solvers and rows.
        nfe: numbers of evaluations of the solvers; each solver uses those that are possible for it.
        shift: shift of the solvers' time grid; 1 is uniform.
        guidance: scale of classifier-free guidance, 1 is off; by default the one on the model's
            card, and 1 for other fields.
        trajectories: number of trajectories, at least 2, by default 64. Cannot be combined with
            noise of your own, all of which is used.
        steps: intervals of the reference solution, at least 8, and of the times at which changes
            are measured.
        seed: seed of the first noise sample.
        batch: trajectories solved at a time.
    """

    sections: tuple[str, ...] = SECTIONS
    nfe: tuple[int, ...] = (4, 6, 8, 12, 16)
    shift: float = 1.0
    guidance: float | None = None
    trajectories: int | None = None
    steps: int = 64
    seed: int = 0
    batch: int = 64

    def __post_init__(self) -> None:
        if self.trajectories is not None:
            checks.whole("trajectories", self.trajectories, 2)
        for name, least in (("steps", 8), ("seed", 0), ("batch", 1)):
            checks.whole(name, getattr(self, name), least)
        _keep_list(self, "sections", SECTIONS)
        for n in check_list("nfe", self.nfe):
            checks.whole("nfe", n, 1)
        if not self.nfe:
            raise ValueError("nfe=(): give at least one number of evaluations")
        object.__setattr__(self, "nfe", tuple(self.nfe))
        object.__setattr__(self, "shift", checks.number("shift", self.shift, above=0))
        _keep_guidance(self)


def check_list(name: str, values: object) -> Sequence[object]:
    """``values``, refused unless they are a list or tuple; a string is not a list of letters."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"{name}={checks.shown(values)}: must be a list")
    return values


def as_plans(name: str, values: object) -> list[Plan]:
    """A list of plans or their notations as plans."""
    found = []
    for plan in check_list(name, values):
        if not isinstance(plan, (str, Plan)):
            raise ValueError(
                f"{name}={checks.shown(plan)}: must be a flowturbo.Plan or its notation, such as "
                "'AB2:6'"
            )
        found.append(Plan.parse(plan) if isinstance(plan, str) else plan)
    return found


def _keep_list(config: object, name: str, allowed: Sequence[str]) -> None:
    values = tuple(check_list(name, getattr(config, name)))
    if not values or any(value not in allowed for value in values):
        raise ValueError(f"{name}={values}: must be one or more of {', '.join(allowed)}")
    object.__setattr__(config, name, values)


def _keep_guidance(config: EvaluateConfig | BenchmarkConfig | AnalyzeConfig) -> None:
    if config.guidance is not None:
        object.__setattr__(config, "guidance", checks.number("guidance", config.guidance))
