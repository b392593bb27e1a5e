"""`flowturbo.tune`: the best plan for a model at a number of evaluations, found without data.

Noises are drawn in three parts. Weights are fitted on the first; shifts, times, refiner positions
and whether to fit at all are chosen on the second; what won is polished on both. Errors are told
from the third, which nothing else has seen, and a plan that does not beat the best plain solver
there is not returned. Least squares lower the contrast of pictures a little; fits can be held to it
(`flowturbo.tuning.contrast`).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flowturbo import checks
from flowturbo._version import __version__
from flowturbo.config import configured
from flowturbo.digests import content
from flowturbo.field import Field
from flowturbo.files import check_unclaimed, exclusive
from flowturbo.path import shifted
from flowturbo.plan import Plan
from flowturbo.plan.solvers import SOLVERS
from flowturbo.progress import Progress, Report
from flowturbo.provenance import identity, refiner_identity
from flowturbo.refiner.binding import Refiner
from flowturbo.stats import summary
from flowturbo.tuning.contrast import Contrast
from flowturbo.tuning.cost import affordable, time_evaluations
from flowturbo.tuning.initial_states import LEAST, InitialStates, Scale, check_field, initial_states
from flowturbo.tuning.journal import Journal, sealed_options
from flowturbo.tuning.monitor import monitored
from flowturbo.tuning.polish import polish, run, score
from flowturbo.tuning.reference import Reference, error
from flowturbo.tuning.weights import fit_weights

__all__ = ["TuneConfig", "tune"]

SEEDS = 2**63 // 1_000_000_000 - 2  # each has a thousand million noises of its own
STEPS = 48  # of the reference grid
SHIFTS = (1.0, 1.3, 1.6, 2.0, 2.5, 3.2)
NEAR = 1.6  # where the search over them begins
POWER = 1.5  # of the polish: a mean of errors between the robust 1 and the square told
DIVERGED = 1e100  # the error of what is not finite
FIRST_ROWS = 16  # of the choosing part, to sort plain solvers on
LONG = 8  # evaluations: of longer plans the polish moves two weights of a row, not four
PLACE_ROWS = 32  # of the fitting part, to place refiners by


@checks.known_keywords
@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How a plan is fitted.

    Attributes:
        nfe: evaluations of the model, 2 to 1000.
        budget_ms: instead of ``nfe``, milliseconds that the evaluations of a batch of 8 may take on
            this machine; they are timed first, and refiners may take the place of the model.
        guidance: scale, or (lowest, highest) of a range the plan is to serve; by default the one on
            the model's card, and 1 for other fields.
        trajectories: number of trajectories to fit on; twice as many each are solved to choose on
            and to measure errors on (as many each without a search).
        seed: seed of the noise, conditions and guidance scales, from 0.
        direction: "forward" from noise to data, or "backward" (inversion).
        search: also search the times; otherwise only weights on a grid of shift 1.6 are fitted.
        preserve_contrast: keep the contrast of images, at the cost of some error: right for images
            on white or black, where regression to the mean shows first as grey paper. Where
            decoding clips states, a field has an attribute ``limits`` (lowest, highest), as models
            of pixels do. Inversion ignores it.
    """

    nfe: int = 6
    budget_ms: float | None = None
    guidance: float | tuple[float, float] | None = None
    trajectories: int = 64
    seed: int = 0
    direction: Literal["forward", "backward"] = "forward"
    search: bool = True
    preserve_contrast: bool = False

    def __post_init__(self) -> None:
        keep = lambda name, value: object.__setattr__(self, name, value)
        keep("nfe", checks.whole("nfe", self.nfe, 2, 1000))
        keep("seed", checks.whole("seed", self.seed, 0, SEEDS))
        keep("trajectories", checks.whole("trajectories", self.trajectories, 1, 1_000_000))
        checks.one_of("direction", self.direction, ("forward", "backward"))
        if self.budget_ms is not None:
            keep("budget_ms", checks.number("budget_ms", self.budget_ms, above=0))
        for name in ("search", "preserve_contrast"):
            checks.flag(name, getattr(self, name))
        if self.guidance is not None:
            keep("guidance", _guidance(self.guidance))


@configured(TuneConfig)
def tune(
    model: Field,
    config: TuneConfig,
    *,
    refiner: Refiner | None = None,
    noise: Tensor | None = None,
    cond: Any = None,
    cache_dir: str | Path | None = None,
    report: Report | None = None,
) -> Plan:
    """Find a plan for ``model``.

    The fields of `TuneConfig` are keywords too: ``tune(model, nfe=6, guidance=2.0)``.

    Args:
        model: a model of `flowturbo.load`, or any field ``(x, t, cond) -> v``.
        config: what to fit and on how many trajectories.
        refiner: considered after the model's evaluations; left out where it does not help.
        noise: initial states to use instead of random ones, (N, ...): half to fit on, a quarter
            each for the rest.
        cond: the conditions of ``noise``, tensors or arrays with a row for each; drawn at random
            for a model with a card.
        cache_dir: folder that keeps what was computed, so that an interrupted run can be resumed.
            It belongs to one field, with the same noise, conditions and options; a field is
            recognised by its weights, and by its velocities at a few states.
        report: called with a `Progress` at each stage, and every ten seconds between.

    Returns:
        The plan; ``plan.info`` tells the model's fingerprint, the range of guidance, its error and
        the best plain solver's (root mean square and median over trajectories, with 95 %
        intervals), and what was left out and why.

    Raises:
        ValueError: if an argument is not as said, the field gives something else than finite
            velocities like its states, or ``cache_dir`` is in use or holds a search of another
            kind.
        OSError: if the disk is full; what was computed until then stays in ``cache_dir``.

    Warns:
        UserWarning: if a file in ``cache_dir`` is damaged; what it held is computed again.
    """
    check_field("model", model)
    for name, function in (("refiner", refiner), ("report", report)):
        if function is not None and not callable(function):
            raise ValueError(f"{name}={checks.shown(function)}: must be a function, or None")
    cache_dir = None if cache_dir is None else checks.path("cache_dir", cache_dir)
    guidance, direction = config.guidance, config.direction
    if guidance is None:
        guidance = float(getattr(model, "defaults", {}).get("guidance", 1.0))
    start = initial_states(
        model, noise, cond, guidance, trajectories=config.trajectories, search=config.search,
        seed=config.seed,
    )  # fmt: skip
    contrast = config.preserve_contrast and direction == "forward"
    say = report or (lambda progress: None)
    field = monitored(model, say)
    options, whose = {}, None
    if cache_dir is not None:
        given = (field, start.noise, start.cond)
        options = {
            "guidance": guidance, "seed": config.seed, "parts": start.cuts, "direction": direction,
            "contrast": contrast, "device": start.noise.device.type,
            "model": getattr(model, "fingerprint", None),
            "field": identity(*given, guidance=start.guidance),
            "noise": content(start.noise), "condition": content(start.cond),
        }  # fmt: skip
        if refiner is not None:
            whose = refiner_identity(refiner, *given, guidance=start.guidance)
        check_unclaimed(cache_dir / "options.json", sealed_options(options))
    with nullcontext() if cache_dir is None else exclusive(cache_dir):
        journal = Journal(cache_dir, options)
        counts: list[tuple[int, int | None]] = [(config.nfe, None)]
        if config.budget_ms is not None:
            counts = [*_afforded(config.budget_ms, field, refiner, start, journal, whose, say)]
        reference = journal.reference(field, start.rows, len(start), steps=STEPS, report=report)
        reference = reference if direction == "forward" else reference.reversed()
        fit, choose, test = (reference.rows(a, b) for a, b in pairwise(start.cuts))
        found: list[tuple[float, _Study, Plan]] = []
        for n, most in counts:
            near = found[-1][1].near if found else NEAR
            study = _Study(
                field, refiner, whose, n, most, direction, contrast, fit, choose, test, journal,
                say, near, [],
            )  # fmt: skip
            plan = study.best(config.search)
            found.append((study.scored(plan), study, plan))
        _, study, plan = min(found, key=lambda f: f[0])
        if config.search and len(fit):
            plan = study.finished(plan)
        return study.result(plan, guidance, config.seed)


def _afforded(
    budget_ms: float,
    field: Field,
    refiner: Refiner | None,
    start: InitialStates,
    journal: Journal,
    whose: str | None,
    say: Report,
) -> list[tuple[int, int]]:
    """Evaluations of both kinds that the budget buys on this machine, timed on a few rows."""
    machine = f"{platform.node()}, {torch.get_num_threads()} threads"
    few = start.rows(slice(0, 8))
    costs = journal.numbers(
        f"costs {whose} on {machine}", lambda: time_evaluations(field, refiner, *few)
    )
    say(Progress("time evaluations", 1, 1, model_ms=costs["model"], refiner_ms=costs["refiner"]))
    return affordable(budget_ms, costs)


def _guidance(guidance: Any) -> Scale:
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


def _text(whose: Any, name: str) -> str | None:
    found = getattr(whose, name, None)
    return None if found is None else str(found)


@dataclass
class _Study:
    """One search: the field, the three parts, and what has been tried."""

    field: Field
    refiner: Refiner | None
    whose: str | None  # what names the refiner in the journal
    nfe: int
    most: int | None  # refiner evaluations at the most
    direction: str
    contrast: bool
    fit: Reference
    choose: Reference
    test: Reference
    journal: Journal
    say: Report
    near: float  # the shift of the last fit, to look around first
    notes: list[str]

    def best(self, search: bool) -> Plan:
        """The fitted plan, with refiners where they help; the best plain one where N is small."""
        if not len(self.fit):
            total = len(self.choose) + len(self.test)
            plain = self.best_plain()
            self.notes.append(
                f"{total} trajectories are too few to fit on (at least {LEAST}): "
                f"{plain.name} is the best plain solver on them"
            )
            return plain
        best = self.fitted(["model"] * self.nfe, search)
        if self.refiner is not None and self.most != 0:
            best = self.refined(best, search)
        return best

    def result(self, best: Plan, guidance: Any, seed: int) -> Plan:
        """``best``, or the plain solver where it does not pay, with what there is to tell."""
        plain, notes = self.best_plain(), self.notes
        errors = {p: self.errors(p) for p in {best, plain}}
        if min(e.max() for e in errors.values()) >= DIVERGED:
            raise ValueError(
                f"nfe={self.nfe}: no plan of so few evaluations stays finite on this field; allow "
                "more"
            )
        end = self.test.states[-1]
        least = torch.finfo(end.dtype).eps * float(end.double().square().mean().sqrt())
        gain = errors[plain].mean() - errors[best].mean()
        if best.digest != plain.digest and gain <= 10 * least:  # it may be rounding alone
            notes.append(
                f"fitting did not pay on the test trajectories (mean error "
                f"{errors[best].mean():.4f}, {plain.name} {errors[plain].mean():.4f})"
            )
            best = plain
        middle = {p: float(np.median(e)) for p, e in errors.items()}
        if middle[best] > middle[plain]:
            notes.append(
                f"its mean error is lower than that of {plain.name}, its median is not "
                f"({middle[best]:.4f}, {plain.name} {middle[plain]:.4f})"
            )
        info = {
            "made_by": f"flowturbo {__version__} tune",
            "model": _text(self.field, "name"),
            "fingerprint": _text(self.field, "fingerprint"),
            "refiner": _text(self.refiner, "fingerprint") if best.nfe["refiner"] else None,
            "guidance": list(guidance) if isinstance(guidance, tuple) else [guidance, guidance],
            "trajectories": {
                "fit": len(self.fit), "choose": len(self.choose), "test": len(self.test)
            },
            "seed": seed,
            "contrast": self.contrast,
            "error": summary(errors[best]),
            "baseline": {"name": plain.name, **summary(errors[plain])},
            "notes": notes,
        }  # fmt: skip
        return best.with_info(info)

    def best_plain(self) -> Plan:
        """The plain solver with the lowest error on the choosing part, few rows of it first."""
        backward = self.direction == "backward"
        names = [
            f"{solver.name}:{self.nfe}"
            for solver in SOLVERS.values()
            if solver.baseline and not (solver.forward_only and backward)
        ]
        blocks = [f"E{self.nfe}", *([f"H1P{self.nfe - 2}"] if self.nfe > 2 else [])]
        names[1:1] = blocks  # equal errors go to the first
        make = lambda name: lambda s: Plan.parse(name, shift=s, direction=self.direction)
        each = []
        for i, name in enumerate(names, 1):
            each.append(self.around(make(name), NEAR, FIRST_ROWS)[1])
            far = self.scored(each[-1], FIRST_ROWS)
            self.say(Progress("baselines", i, len(names), plan=each[-1].name, error=far))
        each.sort(key=lambda plan: self.scored(plan, FIRST_ROWS))
        return min(each[:3], key=self.scored)

    def around(
        self, make: Callable[[float], Plan], start: float, rows: int | None = None
    ) -> tuple[float, Plan]:
        """The best shift and ``make(shift)``, going on from ``start`` while it gets better."""
        i, last = SHIFTS.index(start), -1
        error = lambda j: self.scored(make(SHIFTS[j]), rows)
        while i != last:
            last = i
            i = min((j for j in (i, i - 1, i + 1) if 0 <= j < len(SHIFTS)), key=error)
        return SHIFTS[i], make(SHIFTS[i])

    def scored(self, plan: Plan, rows: int | None = None) -> float:
        """The mean error of ``plan`` on the choosing part, or on its first rows."""
        part = self.choose if rows is None else self.choose.rows(0, rows)
        return self.journal.number(
            f"score {plan.digest} {len(part)} {self.named(plan.evaluators)}",
            lambda: score(run(plan, self.field, part, self.refiner), part),
        )

    def named(self, evaluators: Sequence[str]) -> str | None:
        """What names the refiner in the journal, where the evaluators of a plan need one."""
        return self.whose if "refiner" in evaluators else None

    def errors(self, plan: Plan) -> np.ndarray[Any, Any]:
        """The error of each row of the test part, ``DIVERGED`` of those that are not finite."""
        x = run(plan, self.field, self.test, self.refiner)
        far = error(x, self.test.states[-1]).cpu().numpy()
        return np.nan_to_num(far, nan=DIVERGED, posinf=DIVERGED)

    def fitted(self, evaluators: Sequence[str], search: bool) -> Plan:
        """The best fitted plan with these evaluators."""
        if not search:
            return self.at_shift(evaluators, NEAR)
        self.near, best = self.around(partial(self.at_shift, evaluators), self.near)
        self.say(Progress("fit weights", 1, 1, plan=best.name, error=self.scored(best)))
        return best

    def at_shift(self, evaluators: Sequence[str], shift: float, rows: int | None = None) -> Plan:
        """Weights fitted on the grid of a shift, on the first part or its first rows.

        ``info["fit"]`` is the error there.
        """
        part = self.fit.rows(0, min(rows or len(self.fit), len(self.fit)))
        times = shifted(len(evaluators), shift)
        if self.direction == "backward":
            times = times[::-1].copy()
        refiner = self.refiner if "refiner" in evaluators else None
        pattern = "".join("M" if e == "model" else "R" for e in evaluators)
        name = f"fitted {pattern}" if refiner else f"fitted {self.nfe}"

        def make() -> Plan:
            plan, end = fit_weights(
                self.field, part, times, evaluators, refiner=refiner,
                contrast=self.kept(part), name=name,
            )  # fmt: skip
            return plan.with_info({"fit": min(score(end, part), DIVERGED)})

        whose = self.named(evaluators)
        return self.journal.plan(f"weights {pattern} {shift} {len(part)} {whose}", make)

    def refined(self, best: Plan, search: bool) -> Plan:
        """``best``, or a plan with refiners after its evaluations that beats it clearly."""
        found: list[Plan] = []
        for last in (0, 1):  # refiners after the last evaluation: some end worse than the model
            most = self.nfe if self.most is None else self.most
            ones = min(self.nfe - 2, most - last)
            gaps = (*[0] * (self.nfe - 1 - ones), *[1] * ones, last)  # after each evaluation
            if any(gaps):
                gaps = self.placed(gaps) if search else gaps
                found.append(self.fitted(_pattern(gaps), search))
        winner = min(found, key=self.scored)
        if self.scored(winner) < 0.95 * self.scored(best):
            return winner
        self.notes.append(
            f"the refiner was left out: error {self.scored(winner):.4f} with it, "
            f"{self.scored(best):.4f} without, on the choosing trajectories"
        )
        return best

    def finished(self, best: Plan) -> Plan:
        """``best`` polished on the fitting part and, if the choosing part agrees, on both."""
        moved = self.polished(best, "fit", self.fit, 2)
        if self.scored(moved) >= self.scored(best):
            self.notes.append(
                "times and weights were not moved: no gain on the choosing trajectories"
            )
            return best
        return self.polished(moved, "fit and choose", Reference.join([self.fit, self.choose]), 1)

    def polished(self, plan: Plan, name: str, part: Reference, iterations: int) -> Plan:
        """``plan`` polished on one of the parts; of long plans fewer weights move, to save time."""
        polished = lambda: polish(
            plan,
            self.field,
            part,
            refiner=self.refiner,
            iterations=iterations,
            history=4 if len(plan) <= LONG else 2,
            power=POWER,
            contrast=self.kept(part),
            report=self.say,
        )
        whose = self.named(plan.evaluators)
        return self.journal.plan(f"polish {plan.digest} {whose} {name}", polished)

    def kept(self, part: Reference) -> Contrast | None:
        """The contrast of the ends of a part, where it is to be kept."""
        limits = getattr(self.field, "limits", None)
        return Contrast(part.states[-1], limits) if self.contrast else None

    def placed(self, gaps: tuple[int, ...]) -> tuple[int, ...]:
        """Where refiners go, from ``gaps`` on, by the error that weights can be fitted to."""
        shift, _ = self.around(partial(self.at_shift, _pattern(gaps)), self.near)
        fit_to = lambda g: float(self.at_shift(_pattern(g), shift, PLACE_ROWS).info["fit"])
        while True:
            better = min((gaps, *_neighbours(gaps, self.most)), key=fit_to)
            if fit_to(better) >= 0.97 * fit_to(gaps):
                return gaps
            gaps = better
            placed = "".join("M" + "R" * n for n in gaps)
            self.say(Progress("place refiners", sum(gaps), None, plan=placed, error=fit_to(gaps)))


def _pattern(gaps: Sequence[int]) -> list[str]:
    """The evaluators, with so many refiners after each evaluation of the model."""
    return [e for n in gaps for e in ("model", *["refiner"] * n)]


def _neighbours(gaps: Sequence[int], most: int | None) -> list[tuple[int, ...]]:
    """One refiner more or fewer in a gap, at most two there and ``most`` in all."""
    found = []
    for i in range(1, len(gaps)):
        for n in (gaps[i] - 1, gaps[i] + 1):
            changed = (*gaps[:i], n, *gaps[i + 1 :])
            few = most is None or sum(changed) <= most
            if 0 <= n <= 2 and any(changed) and few:
                found.append(changed)
    return found
