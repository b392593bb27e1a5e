"""`flowturbo.tune`: the best plan for a model at a number of evaluations, found without data.

Noises are drawn in three parts. Weights are fitted on the first; shifts, times, refiner positions
and whether to fit at all are chosen on the second; errors are told from the third, which nothing
else has seen, and a plan that does not beat the best plain solver there is not returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo import noise as noises
from flowturbo._version import __version__
from flowturbo.field import Field
from flowturbo.fit.cost import affordable, time_evaluations
from flowturbo.fit.journal import Journal
from flowturbo.fit.polish import polish, run, score
from flowturbo.fit.reference import Reference, cut, error, solve
from flowturbo.fit.weights import fit_weights
from flowturbo.path import shifted
from flowturbo.plan import Plan
from flowturbo.sampler import Refiner

__all__ = ["tune"]

STEPS = 64  # of the reference grid
SHIFTS = (1.0, 1.3, 1.6, 2.0, 2.5, 3.2)
LEAST = 32  # trajectories without which nothing is fitted
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
    folder: str | Path | None = None,
    report: Report | None = None,
) -> Plan:
    """Find a plan for ``model``.

    Args:
        model: a model of `flowturbo.load`, or any field ``(x, t, cond) -> v``.
        nfe: evaluations of the model, at least 2.
        budget_ms: instead of ``nfe``, milliseconds that the evaluations of a batch of 8 may take on
            this machine; they are timed first, and refiners may take the place of the model.
        refiner: considered between the model's evaluations; left out where it does not help.
        guidance: scale, or (lowest, highest) of a range the plan is to serve; by default the one on
            the model's card, and 1 for other fields.
        trajectories: to fit on; twice as many each to choose on and to tell errors from.
        noise: the noises to use instead, (N, ...): half to fit on, a quarter each for the rest.
        cond: the conditions of ``noise``; drawn at random for a model with a card.
        seed: of the noises, conditions and scales drawn.
        direction: "forward" from noise to data, or "backward" (inversion).
        search: also search the times; otherwise only weights on a grid of shift 1.6 are fitted.
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
    x0, cond, scale, cuts = _draw(model, trajectories, noise, cond, guidance, seed)
    journal = Journal(
        folder,
        {
            "nfe": nfe, "budget_ms": budget_ms, "guidance": guidance, "seed": seed,
            "trajectories": trajectories,
            "direction": direction, "model": getattr(model, "fingerprint", None),
            "refiner": getattr(refiner, "fingerprint", None), "noise": noises.digest(x0),
        },
    )  # fmt: skip
    rows = slice(0, min(len(x0), 8))
    counts: list[tuple[int, int | None]] = [(nfe, None)]
    if budget_ms is not None:
        some = (x0[rows], cut(cond, rows), cut(scale, rows))
        costs = journal.costs(lambda: time_evaluations(model, refiner, *some))
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
    )
    reference = reference if direction == "forward" else reference.reversed()
    fit, choose, test = (reference.rows(a, b) for a, b in pairwise(cuts))
    studies = [
        _Study(model, refiner, n, most, direction, fit, choose, test, journal, say)
        for n, most in counts
    ]
    notes: list[list[str]] = [[] for _ in studies]
    found = [study.best(search, n) for study, n in zip(studies, notes, strict=True)]
    i = min(range(len(found)), key=lambda i: studies[i].scored(found[i]))
    return studies[i].result(found[i], notes[i], guidance, seed)


def _draw(
    model: Any,
    trajectories: int,
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
        if trajectories < 1:
            raise ValueError(f"trajectories={trajectories}: must be at least 1")
        n = 5 * trajectories
        cuts = [0, trajectories, 3 * trajectories, n]
        first = 1_000_000_000 * (seed + 1)  # far from the seeds that pictures are drawn with
        noise = noises.draw(range(first, first + n), model.shape, device=_device(model))
    generator = torch.Generator().manual_seed(seed)
    if cond is None and hasattr(model, "random_condition"):
        cond = model.random_condition(n, generator)
    scale: float | Tensor = guidance if not isinstance(guidance, tuple) else guidance[0]
    if isinstance(guidance, tuple):
        low, high = guidance
        if not low <= high:
            raise ValueError(f"guidance={guidance}: must be (lowest, highest)")
        if low < high:
            scale = low + (high - low) * torch.rand(n, generator=generator)
    return noise, cond, scale, cuts


def _device(model: Any) -> Any:
    return getattr(model, "device", "cpu")


@dataclass
class _Study:
    """One search: the field, the three parts, and what has been tried."""

    field: Field
    refiner: Refiner | None
    nfe: int
    most: int | None  # refiner evaluations at the most
    direction: str
    fit: Reference
    choose: Reference
    test: Reference
    journal: Journal
    say: Report

    def best_plain(self) -> Plan:
        """The plain solver with the lowest error on the choosing part."""
        return min(self.plain(), key=self.scored)

    def best(self, search: bool, notes: list[str]) -> Plan:
        """The fitted plan, with refiners where they help; the best plain one where N is small."""
        total = len(self.fit) + len(self.choose) + len(self.test)
        if total < LEAST:
            plain = self.best_plain()
            notes.append(
                f"{total} trajectories are too few to fit on (at least {LEAST}): "
                f"{plain.name} is the best plain solver on them"
            )
            return plain
        best = self.fitted(["model"] * self.nfe, search)
        if self.refiner is not None and self.most != 0:
            best = self.refined(best, search, notes)
        return best

    def result(self, best: Plan, notes: list[str], guidance: Any, seed: int) -> Plan:
        """``best``, or the plain solver where it does not pay, with what there is to tell."""
        plain = self.best_plain()
        self.say(f"best plain solver: {plain.name}, error {self.scored(plain):.4f}")
        errors = {p: self.errors(p) for p in (best, plain)}
        if best.digest != plain.digest and errors[best].mean() >= errors[plain].mean():
            notes.append(
                f"fitting did not pay on the test trajectories (mean error "
                f"{errors[best].mean():.4f}, {plain.name} {errors[plain].mean():.4f})"
            )
            best = plain
        for note in notes:
            self.say(note)
        info = {
            "made_by": f"flowturbo {__version__} tune",
            "model": getattr(self.field, "name", None),
            "fingerprint": getattr(self.field, "fingerprint", None),
            "guidance": list(guidance) if isinstance(guidance, tuple) else [guidance, guidance],
            "trajectories": {
                "fit": len(self.fit), "choose": len(self.choose), "test": len(self.test)
            },
            "seed": seed,
            "error": summary(errors[best]),
            "plain": {"name": plain.name, **summary(errors[plain])},
            "notes": notes,
        }  # fmt: skip
        return best.with_info(info)

    def plain(self) -> list[Plan]:
        """The plain solvers at this number of evaluations, each at several shifts."""
        names = [f"AB2:{self.nfe}", f"E{self.nfe}"]
        names += [f"H1P{self.nfe - 2}"] if self.nfe > 2 else []
        names += (
            [f"{n}:{self.nfe}" for n in ("UNIPC2", "DPM2")] if self.direction == "forward" else []
        )
        return [Plan.parse(n, shift=s, direction=self.direction) for n in names for s in SHIFTS]

    def scored(self, plan: Plan) -> float:
        """The mean error of ``plan`` on the choosing part."""
        return self.journal.number(
            f"score {plan.digest}",
            lambda: score(run(plan, self.field, self.choose, self.refiner), self.choose),
        )

    def errors(self, plan: Plan) -> np.ndarray[Any, Any]:
        """The error of each row of the test part."""
        x = run(plan, self.field, self.test, self.refiner)
        return error(x, self.test.states[-1]).cpu().numpy()

    def fitted(self, evaluators: Sequence[str], search: bool) -> Plan:
        """The best fitted plan with these evaluators."""
        tried = [self.at_shift(evaluators, s) for s in (SHIFTS if search else (1.6,))]
        best = min(tried, key=self.scored)
        self.say(f"{best.name}: fitted weights, error {self.scored(best):.4f}")
        if not search:
            return best
        refiner = self.refiner if "refiner" in evaluators else None
        polished = self.journal.plan(
            f"polish {best.digest}",
            lambda: polish(best, self.field, self.fit, refiner=refiner),
        )
        self.say(f"{best.name}: times and weights moved, error {self.scored(polished):.4f}")
        return min((best, polished), key=self.scored)

    def at_shift(self, evaluators: Sequence[str], shift: float) -> Plan:
        times = shifted(len(evaluators), shift)
        if self.direction == "backward":
            times = times[::-1].copy()
        pattern = "".join("M" if e == "model" else "R" for e in evaluators)
        name = f"fitted {pattern}" if "R" in pattern else f"fitted {self.nfe}"

        def make() -> Plan:
            refiner = self.refiner if "R" in pattern else None
            return fit_weights(self.field, self.fit, times, evaluators, refiner=refiner, name=name)[
                0
            ]

        return self.journal.plan(f"weights {pattern} {shift}", make)

    def refined(self, best: Plan, search: bool, notes: list[str]) -> Plan:
        """``best``, or a plan with refiners between the evaluations that beats it clearly."""
        gaps = (0, *[1] * (self.nfe - 2))  # refiners after the first, second, ... evaluation
        if self.most is not None and sum(gaps) > self.most:
            gaps = (*[0] * (self.nfe - 1 - self.most), *[1] * self.most)
        if not any(gaps):
            notes.append("a refiner needs two evaluations before it and one after: left out")
            return best
        shift = min(SHIFTS, key=lambda s: self.scored(self.at_shift(_pattern(gaps), s)))
        tried = {gaps: self.at_shift(_pattern(gaps), shift)}
        while search:
            near = [g for g in _neighbours(gaps, self.most) if g not in tried]
            tried |= {g: self.at_shift(_pattern(g), shift) for g in near}
            better = min(tried, key=lambda g: self.scored(tried[g]))
            if self.scored(tried[better]) > 0.97 * self.scored(tried[gaps]):
                break
            gaps = better
            self.say(f"{tried[gaps].name}: error {self.scored(tried[gaps]):.4f}")
        winner = self.fitted(_pattern(gaps), search)
        if self.scored(winner) < 0.95 * self.scored(best):
            return winner
        notes.append(
            f"the refiner was left out: error {self.scored(winner):.4f} with it, "
            f"{self.scored(best):.4f} without, on the choosing trajectories"
        )
        return best


def _pattern(gaps: Sequence[int]) -> list[str]:
    """The evaluators, with so many refiners after each evaluation of the model but the last."""
    row = [e for n in gaps for e in ("model", *["refiner"] * n)]
    return [*row, "model"]


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
    picks = errors[rng.integers(0, len(errors), (1000, len(errors)))]
    rms, median = np.sqrt((picks**2).mean(1)), np.median(picks, axis=1)
    bounds = lambda a: [float(q) for q in np.quantile(a, (0.025, 0.975))]
    return {
        "rmse": float(np.sqrt((errors**2).mean())),
        "rmse_95": bounds(rms),
        "median": float(np.median(errors)),
        "median_95": bounds(median),
    }
