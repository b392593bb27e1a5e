"""The registry of named solvers: one entry each, in the module of its family.

To add a solver, add an entry to the ``SOLVERS`` of a module here. Its notation, error messages,
name in diffusers pipelines and use as a baseline of tuning follow from that entry, and a test
checks its row in ``docs/concepts.md``.
"""

from flowturbo.plan.solvers import adams, exponential, reversible, runge_kutta
from flowturbo.plan.solvers.registry import Solver

__all__ = ["SOLVERS", "Solver"]

SOLVERS: dict[str, Solver] = {}
for _module in (adams, exponential, runge_kutta, reversible):
    for _solver in _module.SOLVERS:
        if _solver.name in SOLVERS or _solver.name != _solver.name.upper():
            raise ValueError(f"solver {_solver.name!r}: its name must be new, and in upper case")
        SOLVERS[_solver.name] = _solver
