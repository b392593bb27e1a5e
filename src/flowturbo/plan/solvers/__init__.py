"""The registry of named solvers: one entry each, in the module of its family.

To add one, add an entry to the ``SOLVERS`` of a module here. Its notation, error messages, name as
the solver of a diffusers pipeline and use as a baseline of tuning follow from that entry, and a
test compares its row in ``docs/concepts.md``.
"""

from flowturbo.plan.solvers import adams, exponential, runge_kutta
from flowturbo.plan.solvers.registry import Solver

__all__ = ["SOLVERS", "Solver"]

SOLVERS: dict[str, Solver] = {
    solver.name: solver for module in (adams, exponential, runge_kutta) for solver in module.SOLVERS
}
