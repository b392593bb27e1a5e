"""Solvers that have a name: one entry each, in the module of its kind.

A new one is an entry in the ``SOLVERS`` of a module here. Its notation, the messages about it, its
name as the solver of a diffusers pipeline, the comparisons of fits and the table in
``docs/concepts.md`` follow from that entry.
"""

from flowturbo.plan.solvers import adams, exponential, runge_kutta
from flowturbo.plan.solvers.registry import Solver

__all__ = ["SOLVERS", "Solver"]

SOLVERS: dict[str, Solver] = {
    solver.name: solver for module in (adams, exponential, runge_kutta) for solver in module.SOLVERS
}
