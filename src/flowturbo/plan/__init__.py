"""Plans: few-step samplers as tables, their notation, and the solvers that have a name."""

from flowturbo.plan.plan import Plan, Row, as_plan

__all__ = ["Plan", "Row", "as_plan"]
