"""The methods of generating a batch that a benchmark compares, and what it measures for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeAlias

import torch
from torch import Tensor

from flowturbo.compiled import CompiledSampler
from flowturbo.compiled import compile as compile_sampler
from flowturbo.compiled.memory import peak_bytes
from flowturbo.field import CountCalls, Field
from flowturbo.guidance import Guidance
from flowturbo.plan import Plan
from flowturbo.progress import Report
from flowturbo.refiner.binding import Refiner
from flowturbo.timing import count_operations
from flowturbo.tuning.reference import error
from flowturbo.types import Condition, JsonObject, ReadOnlyJson

__all__ = ["Baseline", "Method", "Methods", "measurements"]

Baseline: TypeAlias = Callable[[Field, Tensor, Condition, Condition, float], Tensor]
"""``(field, x, cond, null, guidance) -> x1`` with the field unguided."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of generating the batch.

    Attributes:
        name: in the record.
        call: generates the batch.
        eager: the same uncompiled, to count its evaluations and operations.
        scope: which part of it is compiled, or "baseline".
        sampler: the compiled sampler, if it is one of ours.
    """

    name: str
    call: Callable[[], Tensor]
    eager: Callable[[Field], Tensor]
    scope: str
    sampler: CompiledSampler | None = None


@dataclass(frozen=True)
class Methods:
    """Makes methods that generate the same batch from ``x`` (B, ...)."""

    model: Field
    refiner: Refiner | None
    x: Tensor
    cond: Condition
    guidance: float
    dtype: torch.dtype
    options: ReadOnlyJson | None
    report: Report | None

    def of(self, plan: Plan, scope: str) -> Method:
        """A plan, compiled in a scope."""
        what, _, captured = scope.partition(" ")
        sampler = self._compiled(plan, what, capture=True if captured else None)
        eager = sampler if scope == "none" else self._compiled(plan, "none")
        how = "uncompiled" if what == "none" else f"compiled {what}"
        return Method(
            name=f"{plan.name}, {how} {captured}".rstrip(),
            call=partial(sampler, self.x, self.cond),
            eager=lambda _: eager(self.x, self.cond),
            scope=scope,
            sampler=sampler,
        )

    def of_baseline(self, name: str, baseline: Baseline) -> Method:
        """A sampler of another library."""
        run = lambda field: baseline(field, self.x, self.cond, self.null, self.guidance)
        return Method(name=name, call=partial(run, self.field), eager=run, scope="baseline")

    def network(self) -> Tensor:
        """One evaluation of both branches, without the arithmetic of guidance."""
        t, x = self.x.new_full((), 0.5), self.x
        if self.null is None:
            return self.field(x, t, self.cond)
        both = Guidance(self.field, 2.0, null=self.null).embed_condition(self.cond).both
        return self.field(torch.cat([x, x]), t, both)

    @property
    def field(self) -> Field:
        """The model in the dtype that is measured."""
        return self._base.field

    @cached_property
    def null(self) -> Condition:
        """The unconditional condition; None where guidance is off."""
        return None if self.guidance == 1.0 else self._base.null_condition(self.cond)

    @cached_property
    def _base(self) -> CompiledSampler:
        return self._compiled(Plan.euler(1), "none")

    def _compiled(self, plan: Plan, scope: str, capture: bool | None = None) -> CompiledSampler:
        refiner = self.refiner if plan.nfe["refiner"] else None
        return compile_sampler(
            self.model, plan, refiner, scope=scope, capture=capture, batch=len(self.x),
            dtype=self.dtype, guidance=self.guidance, cond=self.cond, options=self.options,
            report=None if scope == "none" else self.report,
        )  # fmt: skip


def measurements(
    method: Method, ms: dict[str, float], peak: float, made: Methods, exact: Tensor | None
) -> JsonObject:
    """The record's entry for ``method``, given its milliseconds and the peak in FLOP/s."""
    counted = CountCalls(made.field)
    operations = count_operations(lambda: method.eager(counted))
    sampler = method.sampler
    row: JsonObject = {
        "name": method.name,
        "scope": method.scope,
        "ms": ms,
        "images_per_second": 1000 * len(made.x) / ms["median"],
        "evaluations": sampler.plan.nfe if sampler else {"model": counted.calls, "refiner": 0},
        "passes": (sampler.plan.passes(made.guidance) if sampler else counted.rows // len(made.x)),
        "flops": operations,
        "mfu": 1000 * operations / ms["median"] / peak,
        "peak_bytes": peak_bytes(method.call, made.x.device),
    }
    if exact is not None:
        each = error(method.call(), exact)
        row["error"] = {"rmse": float(each.square().mean().sqrt()), "median": float(each.median())}
    if sampler and method.scope != "none":
        row["compile"] = {
            "seconds": sum(sampler.report["seconds"].values()),
            "graphs": sampler.graphs,
            "recompiles": sampler.recompiles,
            "difference_from_eager": max(sampler.report["difference"].values()),
        }
    return row
