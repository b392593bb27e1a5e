"""How `flowturbo.tune` fits a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowturbo import checks
from flowturbo.types import GuidanceRange

__all__ = ["TuneConfig"]

MAX_SEED = 2**63 // 1_000_000_000 - 2  # each seed owns a block of 10**9 noise seeds


@checks.known_keywords
@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How a plan is fitted.

    Attributes:
        nfe: evaluations of the model, 2 to 1000.
        passes: passes of the network per image, 4 to 2000, instead of ``nfe``: two for a guided
            evaluation, one for a conditional one. Both are tried; without guidance, each evaluation
            is one pass.
        budget_ms: time budget for a batch of 8 on this machine, in milliseconds, instead of
            ``nfe``; evaluations are timed first, and conditional ones and refiner calls may replace
            those of the model.
        refiner_cost: cost of a refiner call, in evaluations of the model; by default timed on this
            machine, on a batch of 8. A refiner is used where it leaves a smaller error than further
            evaluations of the same cost; 0 counts it as free. ``budget_ms`` always times it.
        guidance: scale, or (lowest, highest) of the range that the plan is fitted to; by default
            the one on the model's card, and 1 for other fields.
        trajectories: number of trajectories to fit on; in addition, twice as many are solved to
            select on, and twice as many to measure errors on (as many each without a search). By
            default 64, and up to 1024 for states of fewer than 1024 numbers. Cannot be combined
            with noise of your own, all of which is used.
        seed: seed of the noise, conditions and guidance scales, from 0.
        direction: "forward" from noise to data; "backward", to the noise that solves the ODE; or
            "round trip": backward so that the forward plan in ``info["inverts"]``, Adams-Bashforth
            2 of as many evaluations, returns the image, as edits by inversion require.
            ``guidance`` is then that of the images, and neither direction is guided.
        until: time at which a round trip turns around, from 0 (noise) to 0.99: ``keep`` of the
            edit.
        search: also search the times; otherwise only weights on a grid of shift 1.6 are fitted.
        preserve_contrast: keep the contrast of images, at the cost of some error: right for images
            on white or black, where regression to the mean (Blau & Michaeli 2018, arXiv
            1711.06077) is most visible, as a greyed background. If decoding clips states, the field
            needs an attribute ``limits`` (lowest, highest), as pixel models have. Ignored for
            inversion, backward or as a round trip.
    """

    nfe: int = 6
    passes: int | None = None
    budget_ms: float | None = None
    refiner_cost: float | None = None
    guidance: float | tuple[float, float] | None = None
    trajectories: int | None = None
    seed: int = 0
    direction: Literal["forward", "backward", "round trip"] = "forward"
    until: float = 0.0
    search: bool = True
    preserve_contrast: bool = False

    def __post_init__(self) -> None:
        keep = lambda name, value: object.__setattr__(self, name, value)
        keep("nfe", checks.whole("nfe", self.nfe, 2, 1000))
        if self.passes is not None:
            keep("passes", checks.whole("passes", self.passes, 4, 2000))
            if self.budget_ms is not None:
                raise ValueError(
                    f"passes={self.passes} and budget_ms={self.budget_ms}: pass one of them"
                )
        keep("seed", checks.whole("seed", self.seed, 0, MAX_SEED))
        if self.trajectories is not None:
            keep("trajectories", checks.whole("trajectories", self.trajectories, 1, 1_000_000))
        checks.one_of("direction", self.direction, ("forward", "backward", "round trip"))
        keep("until", checks.number("until", self.until, 0, 0.99))
        if self.budget_ms is not None:
            keep("budget_ms", checks.number("budget_ms", self.budget_ms, above=0))
        if self.refiner_cost is not None:
            keep("refiner_cost", checks.number("refiner_cost", self.refiner_cost, 0))
            if self.budget_ms is not None:
                raise ValueError(
                    f"refiner_cost={self.refiner_cost:g} and budget_ms={self.budget_ms:g}: with a "
                    "budget the refiner is timed; pass one of them"
                )
        for name in ("search", "preserve_contrast"):
            checks.flag(name, getattr(self, name))
        if self.direction == "round trip":
            self._check_round_trip()
        elif self.until:
            raise ValueError(
                f"until={self.until:g}, direction={self.direction!r}: only a 'round trip' turns; "
                "leave until out"
            )
        if self.guidance is not None:
            keep("guidance", _check_guidance(self.guidance))

    def _check_round_trip(self) -> None:
        for name, usual in (("passes", None), ("budget_ms", None), ("search", True)):
            if getattr(self, name) != usual:
                raise ValueError(
                    f"{name}={getattr(self, name)}, direction='round trip': its plan has nfe full "
                    f"evaluations, and its weights and times move together; leave {name} out"
                )


def _check_guidance(guidance: object) -> GuidanceRange:
    """A scale, or (lowest, highest)."""
    if not isinstance(guidance, (tuple, list)):
        return checks.number("guidance", guidance)
    if len(guidance) != 2:
        raise ValueError(
            f"guidance={checks.shown(guidance)}: must be (lowest, highest), or a scale"
        )
    low, high = (checks.number("guidance", g) for g in guidance)
    if low > high:
        raise ValueError(f"guidance={checks.shown(guidance)}: must be (lowest, highest)")
    return low, high
