"""What a search fits plans to: the field, the reference trajectories, and what is known so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowturbo.field import Field
from flowturbo.path import Times, shifted
from flowturbo.plan import Plan
from flowturbo.plan.checks import EVALUATORS
from flowturbo.progress import Report
from flowturbo.refiner.binding import Refiner
from flowturbo.tuning.contrast import Contrast
from flowturbo.tuning.journal import Journal
from flowturbo.tuning.polish import polish, run, score
from flowturbo.tuning.reference import Reference, error
from flowturbo.tuning.weights import fit_weights

__all__ = ["DIVERGED", "SHIFTS", "USUAL_SHIFT", "Problem", "letters"]

SHIFTS = (0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.2, 4.0)
USUAL_SHIFT = 1.6  # of fits without a search
FEW, FEW_NUMBERS = 32, 2**15  # trajectories for rough comparisons, and numbers in their states
FINALISTS = 3  # shifts that are compared on all trajectories
POWER = 1.5  # of the polish: a mean of errors between the robust 1 and the square that is reported
DIVERGED = 1e100  # the error of what is not finite
LONG = 8  # evaluations: of longer plans the polish moves two weights of a row, not four


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One field and three sets of its trajectories; results are looked up in the journal first.

    Attributes:
        field: the velocity field.
        refiner: for plans with refiner evaluations.
        refiner_id: what identifies it in the journal.
        refiner_cost: of a call, in evaluations of the model; 0 where a budget accounts for it.
        direction: "forward" or "backward".
        contrast: whether fits preserve it.
        fit: trajectories that weights are fitted on.
        choose: trajectories that plans are compared on.
        test: trajectories that errors are reported on.
        reference_error: about how far these are from the exact solution (root mean square).
        journal: keeps what was computed.
        report: called with a `Progress` at each stage.
    """

    field: Field
    refiner: Refiner | None
    refiner_id: str | None
    refiner_cost: float
    direction: str
    contrast: bool
    fit: Reference
    choose: Reference
    test: Reference
    reference_error: float
    journal: Journal
    report: Report

    def score(self, plan: Plan, rows: int | None = None) -> float:
        """The mean error of ``plan`` on the choosing part, or on its first rows."""
        part = self.choose if rows is None else self.choose.rows(0, min(rows, len(self.choose)))
        return self.journal.number(
            f"score {plan.digest} {len(part)} {self._refiner_key(plan.evaluators)}",
            lambda: score(run(plan, self.field, part, self.refiner), part),
        )

    def test_errors(self, plan: Plan) -> Times:
        """The error of each row of the test part, ``DIVERGED`` of those that are not finite."""
        x = run(plan, self.field, self.test, self.refiner)
        errors = error(x, self.test.states[-1]).cpu().numpy()
        return np.nan_to_num(errors, nan=DIVERGED, posinf=DIVERGED)

    def classical(self, name: str, shift: float) -> Plan:
        """The solver of a notation, without shift, in the direction of the problem."""
        end = None if self.choose.back is None else float(self.choose.back.times[0]) or None
        return Plan.parse(name, shift=shift, direction=self.direction, end=end)

    def fit_weights(self, evaluators: Sequence[str], shift: float, rows: int | None = None) -> Plan:
        """Weights fitted on the grid of a shift, on the fitting part or its first rows.

        ``info["fit"]`` is the error there. A round trip has no states on the way to fit rows to:
        they are those of Adams-Bashforth 2, for the polish to start from.
        """
        if self.fit.back is not None:
            return self.classical(f"AB2:{len(evaluators)}", shift)
        part = self.fit.rows(0, min(rows or len(self.fit), len(self.fit)))
        times = shifted(len(evaluators), shift)
        if self.direction == "backward":
            times = times[::-1].copy()
        refiner = self.refiner if "refiner" in evaluators else None
        pattern = letters(evaluators)
        name = f"fitted {pattern if {*evaluators} - {'model'} else len(pattern)}"

        def make() -> Plan:
            plan, end = fit_weights(
                self.field, part, times, evaluators, refiner=refiner,
                contrast=self._contrast(part), name=name,
            )  # fmt: skip
            return plan.with_info({"fit": min(score(end, part), DIVERGED)})

        key = f"weights {pattern} {shift} {len(part)} {self._refiner_key(evaluators)}"
        return self.journal.plan(key, make)

    @property
    def few(self) -> int:
        """Trajectories for rough comparisons: more of them if states are small."""
        return max(FEW, FEW_NUMBERS // self.choose.noise[0].numel())

    def best_shift(self, evaluators: Sequence[str]) -> float:
        """The shift at which weights fit best, on a few trajectories; all are tried, for the error
        has several minima.
        """
        return self._shifts(evaluators)[0]

    def best_fits(self, evaluators: Sequence[str]) -> list[Plan]:
        """Weights fitted at the best three shifts, the best first."""
        shifts = self._shifts(evaluators)[:FINALISTS]
        return sorted((self.fit_weights(evaluators, s) for s in shifts), key=self.score)

    def _shifts(self, evaluators: Sequence[str]) -> list[float]:
        """`SHIFTS` in the order of their errors on few trajectories."""
        few = self.few
        return sorted(SHIFTS, key=lambda s: self.score(self.fit_weights(evaluators, s, few), few))

    def polish(self, plan: Plan, name: str, part: Reference, iterations: int) -> Plan:
        """``plan`` polished on a part; of long plans fewer weights move, to save time."""
        polished = lambda: polish(
            plan,
            self.field,
            part,
            refiner=self.refiner,
            iterations=iterations,
            history=4 if len(plan) <= LONG else 2,
            power=POWER,
            contrast=self._contrast(part),
            report=self.report,
        )
        key = f"polish {plan.digest} {self._refiner_key(plan.evaluators)} {name}"
        return self.journal.plan(key, polished)

    def _refiner_key(self, evaluators: Sequence[str]) -> str | None:
        return self.refiner_id if "refiner" in evaluators else None

    def _contrast(self, part: Reference) -> Contrast | None:
        limits = getattr(self.field, "limits", None)
        return Contrast(part.states[-1], limits) if self.contrast else None


def letters(evaluators: Sequence[str]) -> str:
    """F for the model, C for its conditional branch alone, R for a refiner."""
    return "".join(EVALUATORS[e] for e in evaluators)
