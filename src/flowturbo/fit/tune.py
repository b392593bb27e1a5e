"""`flowturbo.tune`: the best plan for a model at a number of evaluations, found without data.

Noises are drawn in three parts. Weights are fitted on the first; shifts, times, refiner positions
and whether to fit at all are chosen on the second; what won is polished on both. Errors are told
from the third, which nothing else has seen, and a plan that does not beat the best plain solver
there is not returned. Least squares lower the contrast of pictures a little; fits can be held to it
(`flowturbo.fit.contrast`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo import noise as noises
from flowturbo._version import __version__
from flowturbo.field import Field, cut, device_of
from flowturbo.fit.contrast import Contrast
from flowturbo.fit.cost import affordable, time_evaluations
from flowturbo.fit.journal import Journal
from flowturbo.fit.polish import polish, run, score
from flowturbo.fit.reference import Reference, error, solve
from flowturbo.fit.weights import fit_weights
from flowturbo.path import shifted
from flowturbo.plan import Plan
from flowturbo.sampler import Refiner

__all__ = ["tune"]

STEPS = 48  # of the reference grid
SHIFTS = (1.0, 1.3, 1.6, 2.0, 2.5, 3.2)
NEAR = 1.6  # where the search over them begins
POWER = 1.5  # of the polish: a mean of errors between the robust 1 and the square told
LEAST = 32  # trajectories without which nothing is fitted
FIRST_ROWS = 16  # of the choosing part, to sort plain solvers on
LONG = 8  # evaluations: of longer plans the polish moves two weights of a row, not four
PLACE_ROWS = 32  # of the fitting part, to place refiners by
Report = Callable[[str], None]


def tune(
    model: Field,
    *,
    nfe: int = 6,
    budget_ms: float | None = None,
    refiner: Refiner | None = None,
    guidance: float | tuple[float, float] | None = None,
    trajectories: int = 64,
    noise: Tensor | None = None,
    cond: Any = None,
    seed: int = 0,
    direction: str = "forward",
    search: bool = True,
    contrast: bool = False,
    folder: str | Path | None = None,
    report: Report | None = None,
) -> Plan:
    """Find a plan for ``model``.

    Args:
        model: a model of `flowturbo.load`, or any field ``(x, t, cond) -> v``.
        nfe: evaluations of the model, at least 2.
        budget_ms: instead of ``nfe``, milliseconds that the evaluations of a batch of 8 may take on
            this machine; they are timed first, and refiners may take the place of the model.
        refiner: considered after the model's evaluations; left out where it does not help.
        guidance: scale, or (lowest, highest) of a range the plan is to serve; by default the one on
            the model's card, and 1 for other fields.
        trajectories: to fit on; twice as many each to choose on and to tell errors from (as many
            each without a search).
        noise: the noises to use instead, (N, ...): half to fit on, a quarter each for the rest.
        cond: the conditions of ``noise``; drawn at random for a model with a card.
        seed: of the noises, conditions and scales drawn.
        direction: "forward" from noise to data, or "backward" (inversion).
        search: also search the times; otherwise only weights on a grid of shift 1.6 are fitted.
        contrast: keep the contrast of pictures, at the cost of some error: right for pictures on
            white or black, where grey paper is seen first. Where decoding clips states, a field
            tells by an attribute ``limits`` (lowest, highest), as models of pixels do. Inversion
            does without.
        folder: keeps what was computed, so that a run that is repeated goes on where it stopped.
        report: called with a line of text at each stage.

    Returns:
        The plan; ``plan.info`` tells the model's fingerprint, the range of guidance, its error and
        the best plain solver's (root mean square and median over trajectories, with 95 %
        intervals), and what was left out and why.

    Raises:
        ValueError: for a number out of range, or a field without ``shape`` and no ``noise``.
    """
    if nfe < 2:
        raise ValueError(f"nfe={nfe}: must be at least 2")
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction={direction!r}: must be 'forward' or 'backward'")
    if guidance is None:
        guidance = float(getattr(model, "defaults", {}).get("guidance", 1.0))
    say = report or (lambda line: None)
    parts = (trajectories, 2 * trajectories if search else trajectories)
    x0, cond, scale, cuts = _draw(model, parts, noise, cond, guidance, seed)
    journal = Journal(
        folder,
        {
            "guidance": guidance, "seed": seed, "trajectories": list(parts),
            "direction": direction, "model": getattr(model, "fingerprint", None),
            "noise": noises.digest(x0), **({"contrast": True} if contrast else {}),
        },
    )  # fmt: skip
    rows = slice(0, min(len(x0), 8))
    counts: list[tuple[int, int | None]] = [(nfe, None)]
    if budget_ms is not None:
        some = (x0[rows], cut(cond, rows), cut(scale, rows))
        whose = f"costs {getattr(refiner, 'fingerprint', None)}"
        costs = journal.numbers(whose, lambda: time_evaluations(model, refiner, *some))
        counts = [*affordable(budget_ms, costs)]
        say(f"an evaluation takes {costs['model']:.2f} ms, a refiner's {costs['refiner']:.2f} ms")
    say(f"solving {len(x0)} reference trajectories")
    reference = journal.reference(
        lambda rows: solve(
            model,
            x0[rows],
            cut(cond, rows),
            guidance=cut(scale, rows),
            steps=STEPS,
            batch=len(x0),
        ),
        len(x0),
        2 * (STEPS + 1) * x0[0].nbytes,
        x0.device,
    )
    reference = reference if direction == "forward" else reference.reversed()
    if len(x0) < LEAST:  # nothing is fitted: all but the test part is there to choose on
        cuts[1] = 0
    fit, choose, test = (reference.rows(a, b) for a, b in pairwise(cuts))
    found: list[tuple[float, _Study, Plan]] = []
    for n, most in counts:
        near = found[-1][1].near if found else NEAR
        study = _Study(
            model, refiner, n, most, direction, contrast and direction == "forward",
            fit, choose, test, journal, say, near, [],
        )  # fmt: skip
        plan = study.best(search)
        found.append((study.scored(plan), study, plan))
    _, study, plan = min(found, key=lambda f: f[0])
    if search and len(fit):
        plan = study.finished(plan)
    return study.result(plan, guidance, seed)


def _draw(
    model: Any,
    parts: tuple[int, int],
    noise: Tensor | None,
    cond: Any,
    guidance: float | tuple[float, float],
    seed: int,
) -> tuple[Tensor, Any, float | Tensor, list[int]]:
    """Noises, conditions, scales of guidance, and where the three parts begin and end."""
    if noise is not None:
        n = len(noise)
        cuts = [0, -(-n // 2), -(-3 * n // 4), n]
        if n < 4:
            raise ValueError(f"noise of {n} rows: at least 4 (and {LEAST} to fit on)")
    else:
        if not hasattr(model, "shape"):
            raise ValueError("noise=None: a field without a shape needs noise=... of its own")
        fit, rest = parts
        if fit < 1:
            raise ValueError(f"trajectories={fit}: must be at least 1")
        n = fit + 2 * rest
        cuts = [0, fit, fit + rest, n]
        first = 1_000_000_000 * (seed + 1)  # far from the seeds that pictures are drawn with
        noise = noises.draw(range(first, first + n), model.shape, device=device_of(model))
    generator = torch.Generator().manual_seed(seed)
    if cond is None and hasattr(model, "random_condition"):
        cond = model.random_condition(n, generator)
    scale: float | Tensor = guidance if not isinstance(guidance, tuple) else guidance[0]
    if isinstance(guidance, tuple):
        low, high = guidance
        if not low <= high:
            raise ValueError(f"guidance={guidance}: must be (lowest, highest)")
        if low < high:
            scale = low + (high - low) * torch.rand(n, generator=generator).to(noise.device)
    return noise, cond, scale, cuts


@dataclass
class _Study:
    """One search: the field, the three parts, and what has been tried."""

    field: Field
    refiner: Refiner | None
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
        self.say(f"best plain solver: {plain.name}, error {self.scored(plain):.4f}")
        errors = {p: self.errors(p) for p in {best, plain}}
        if best.digest != plain.digest and errors[best].mean() >= errors[plain].mean():
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
        for note in notes:
            self.say(note)
        info = {
            "made_by": f"flowturbo {__version__} tune",
            "model": getattr(self.field, "name", None),
            "fingerprint": getattr(self.field, "fingerprint", None),
            "refiner": self.whose(best),
            "guidance": list(guidance) if isinstance(guidance, tuple) else [guidance, guidance],
            "trajectories": {
                "fit": len(self.fit), "choose": len(self.choose), "test": len(self.test)
            },
            "seed": seed,
            "contrast": self.contrast,
            "error": summary(errors[best]),
            "plain": {"name": plain.name, **summary(errors[plain])},
            "notes": notes,
        }  # fmt: skip
        return best.with_info(info)

    def best_plain(self) -> Plan:
        """The plain solver with the lowest error on the choosing part, few rows of it first."""
        names = [f"AB2:{self.nfe}", f"E{self.nfe}"]
        names += [f"H1P{self.nfe - 2}"] if self.nfe > 2 else []
        if self.direction == "forward":
            names += [f"{n}:{self.nfe}" for n in ("UNIPC2", "UNIPC3", "DPM2", "DPM3")]
        make = lambda name: lambda s: Plan.parse(name, shift=s, direction=self.direction)
        each = [self.around(make(name), NEAR, FIRST_ROWS)[1] for name in names]
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
            f"score {plan.digest} {len(part)} {self.whose(plan)}",
            lambda: score(run(plan, self.field, part, self.refiner), part),
        )

    def whose(self, plan: Plan) -> str | None:
        """What names the refiner of a plan that has one."""
        return getattr(self.refiner, "fingerprint", None) if plan.nfe["refiner"] else None

    def errors(self, plan: Plan) -> np.ndarray[Any, Any]:
        """The error of each row of the test part."""
        x = run(plan, self.field, self.test, self.refiner)
        return error(x, self.test.states[-1]).cpu().numpy()

    def fitted(self, evaluators: Sequence[str], search: bool) -> Plan:
        """The best fitted plan with these evaluators."""
        if not search:
            return self.at_shift(evaluators, NEAR)
        self.near, best = self.around(partial(self.at_shift, evaluators), self.near)
        self.say(f"{best.name}: fitted weights, error {self.scored(best):.4f}")
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
            return plan.with_info({"fit": score(end, part)})

        whose = refiner and getattr(refiner, "fingerprint", None)
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
        self.say(f"{best.name}: times and weights moved, error {self.scored(moved):.4f}")
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
        )
        return self.journal.plan(f"polish {plan.digest} {self.whose(plan)} {name}", polished)

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
            if fit_to(better) > 0.97 * fit_to(gaps):
                return gaps
            gaps = better
            self.say(f"refiners after evaluations {gaps}: fitted to {fit_to(gaps):.4f}")


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


def summary(errors: np.ndarray[Any, Any], seed: int = 0) -> dict[str, Any]:
    """Root mean square and median of the rows' errors, with 95 % bootstrap intervals."""
    rng = np.random.default_rng(seed)
    drawn = (errors[rng.integers(0, len(errors), len(errors))] for _ in range(1000))
    rms, median = np.array([(np.sqrt((d**2).mean()), np.median(d)) for d in drawn]).T
    bounds = lambda a: [float(q) for q in np.quantile(a, (0.025, 0.975))]
    return {
        "rmse": float(np.sqrt((errors**2).mean())),
        "rmse_95": bounds(rms),
        "median": float(np.median(errors)),
        "median_95": bounds(median),
    }
