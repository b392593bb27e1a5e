"""Which evaluations compute only one branch of guidance: their number, and their places.

An evaluation of a guided model takes two passes of the network, a conditional one takes one. For
the same number of passes, more evaluations, some of them conditional, have a smaller error where
the difference of the branches changes slowly (Castillo et al. 2023, arXiv 2312.12487, omit it in
the late steps of long samplers).
"""

from __future__ import annotations

from collections.abc import Sequence

from flowturbo.progress import Progress
from flowturbo.tuning.problem import Problem, letters

__all__ = ["counts_of", "place_conditional"]

LEAST_FULL = 0.5  # share of evaluations that take both branches: with fewer every fit loses


def counts_of(passes: int) -> list[tuple[int, int]]:
    """Full and conditional evaluations that take so many passes together, the fewest C first."""
    found = [(full, passes - 2 * full) for full in range(passes // 2, 1, -1)]
    return [(full, c) for full, c in found if full >= LEAST_FULL * (full + c)]


def place_conditional(
    problem: Problem, full: int, conditional: int, *, search: bool = True
) -> list[str]:
    """The evaluators of so many evaluations in the order that fits best, the first a full one.

    Conditional evaluations begin spread evenly, or all at the end, and are moved while the error of
    the fitted weights decreases. Without ``search`` they are the last.
    """
    late = ["model"] * full + ["conditional"] * conditional
    if not search:
        return late
    spread = ["model"] * (full + conditional)
    for i in range(conditional):
        spread[-1 - i * (full + conditional - 1) // conditional] = "conditional"
    shift = problem.best_shift(late)

    def error(kinds: Sequence[str]) -> float:
        return float(problem.fit_weights(kinds, shift, problem.few).info["fit"])

    best = min((late, spread), key=error)
    while True:
        better = min((best, *_swapped(best)), key=error)
        if error(better) >= 0.99 * error(best):
            return best
        best = better
        report = Progress("place conditional evaluations", conditional, None, plan=letters(best))
        problem.report(report)


def _swapped(kinds: Sequence[str]) -> list[list[str]]:
    """Two neighbours, not the first, with their places exchanged."""
    found = []
    for k in range(1, len(kinds) - 1):
        if kinds[k] != kinds[k + 1]:
            found.append([*kinds[:k], kinds[k + 1], kinds[k], *kinds[k + 2 :]])
    return found
