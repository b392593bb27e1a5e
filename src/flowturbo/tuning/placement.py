"""Where refiner evaluations go: their number in each gap, after an evaluation of the model."""

from __future__ import annotations

from collections.abc import Sequence

from flowturbo.progress import Progress
from flowturbo.tuning.problem import Problem, letters

__all__ = ["first_gaps", "pattern", "place_refiners"]

WORTH = 0.03  # a refiner call has to lower the error by this share


def pattern(kinds: Sequence[str], gaps: Sequence[int]) -> list[str]:
    """The evaluators, with so many refiners after each of ``kinds``, the model's evaluations."""
    return [e for kind, n in zip(kinds, gaps, strict=True) for e in (kind, *["refiner"] * n)]


def first_gaps(nfe: int, last: int, most: int | None) -> tuple[int, ...]:
    """One refiner in each gap from the second on, ``last`` in the last; at most ``most`` in all."""
    ones = min(nfe - 2, (nfe if most is None else most) - last)
    return (*[0] * (nfe - 1 - ones), *[1] * ones, last)


def place_refiners(
    problem: Problem, kinds: Sequence[str], gaps: tuple[int, ...], most: int | None
) -> tuple[int, ...]:
    """Move, add and remove refiners, from ``gaps`` on, while the error of fitted weights falls."""
    shift = problem.best_shift(pattern(kinds, gaps))
    error = lambda g: float(problem.fit_weights(pattern(kinds, g), shift, problem.few).info["fit"])
    cost = lambda g: error(g) * (1 + WORTH) ** sum(g)
    while True:
        better = min((gaps, *_neighbours(gaps, most)), key=cost)
        if cost(better) >= 0.99 * cost(gaps):
            return gaps
        gaps = better
        placed = letters(pattern(kinds, gaps))
        problem.report(Progress("place refiners", sum(gaps), None, plan=placed, error=error(gaps)))


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
