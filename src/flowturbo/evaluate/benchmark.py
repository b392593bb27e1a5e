"""Samplers measured side by side, on the same weights, noise and machine, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.compiled import CompiledSampler
from flowturbo.compiled import compile as compile_sampler
from flowturbo.compiled.backend import SCOPES, inductor_options
from flowturbo.compiled.memory import peak_bytes
from flowturbo.field import CountCalls, device_of
from flowturbo.guidance import Guidance
from flowturbo.plan import Plan
from flowturbo.provenance import conditions
from flowturbo.sampling import sample
from flowturbo.timing import (
    count_operations,
    fit_latency,
    interleaved,
    matrix_product,
    spread,
)
from flowturbo.tuning.initial_states import check_condition, check_field

__all__ = ["Baseline", "Method", "benchmark", "several"]

_MEASURED = (*SCOPES, *(f"{scope} captured" for scope in ("row", "network", "none")))
_PROBES = ("E2", "E4", "E8", "E2R1", "E2R3")  # uncompiled, for the cost of an evaluation

Baseline = Callable[[Any, Tensor, Any, Any, float], Tensor]
"""``(field, x, cond, null, guidance) -> x1`` with the field unguided."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to draw the batch.

    Attributes:
        name: what to call it.
        call: draws the batch.
        eager: the same uncompiled, to count its evaluations and operations.
        scope: what of it is compiled, or "baseline".
        sampler: the compiled sampler, if it is one of ours.
    """

    name: str
    call: Callable[[], Tensor]
    eager: Callable[[Any], Tensor]
    scope: str
    sampler: CompiledSampler | None = None


@checks.known_keywords
def benchmark(
    model: Any,
    plans: Sequence[Plan | str],
    refiner: Any = None,
    *,
    cond: Any = None,
    batch: int = 8,
    guidance: float = 1.0,
    scopes: Sequence[str] = ("none", "plan"),
    baselines: Mapping[str, Baseline] | None = None,
    missing: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    options: Mapping[str, Any] | None = None,
    repeats: int = 20,
    reference: Plan | str | None = "RK4:32",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure plans, uncompiled and compiled, and baselines.

    Args:
        model: a field with a ``shape``, as ``flowturbo.load`` gives it.
        plans: to measure, or their notation.
        refiner: for those that need one.
        cond: the condition of the batch; None for fields that take none.
        batch: pictures at once.
        guidance: scale, 1 for off.
        scopes: of ``flowturbo.compile``; each plan is measured in each. On CUDA "row", "network"
            and "none" may be followed by " captured", the sample in one CUDA graph.
        baselines: other samplers by name.
        missing: baselines that are not installed, and how to install them; goes into the record,
            with "decode" where the model's autoencoder is not at hand.
        dtype: to run the networks in; None as they are. Peers run in it too.
        options: of inductor.
        repeats: turns to measure.
        reference: a plan to tell the error from; None measures none.
        seed: of the first noise.
        progress: show bars, on a terminal.

    Returns:
        The record, which JSON can hold: "conditions", "methods" (milliseconds of a batch, images a
        second, time to compile, evaluations by kind, error, operations and their share of the
        matrix-product peak, peak memory), "parts" (one evaluation of the network, decoding, a
        matrix product), "latency" (what an evaluation of each kind costs, uncompiled), "missing".

    Raises:
        ValueError: if an argument is not as said.
    """
    check_field("model", model)
    if not hasattr(model, "shape"):
        raise ValueError(f"model={checks.shown(model)}: must have a shape, of its states")
    for name, value, least in (("batch", batch, 1), ("repeats", repeats, 1), ("seed", seed, 0)):
        checks.whole(name, value, least)
    guidance = checks.number("guidance", guidance)
    tables = [_plan("plans", plan) for plan in several("plans", plans)]
    unknown = [s for s in several("scopes", scopes) if s not in _MEASURED]
    if unknown or not scopes or not tables:
        raise ValueError(
            f"scopes={tuple(scopes)}, plans={len(tables)}: scopes must be of "
            f"{', '.join(_MEASURED)}, one at least, with one plan at least"
        )
    named: dict[str, Any] = {"baselines": baselines, "missing": missing, "options": options}
    for name, mapping in named.items():
        if mapping is not None and not isinstance(mapping, Mapping):
            raise ValueError(f"{name}={checks.shown(mapping)}: must be a dictionary, or None")
    if refiner is not None and not callable(refiner):
        raise ValueError(f"refiner={checks.shown(refiner)}: must be a function, or None")
    exactly = None if reference is None else _plan("reference", reference)
    x = noise.draw(range(seed, seed + batch), model.shape, device=device_of(model))
    if cond is not None:
        cond = check_condition(cond, batch, f"batch={batch} takes", x.device)
    dtype = _dtype(model) if dtype is None else checks.dtype("dtype", dtype)
    compiled = partial(
        compile_sampler,
        model,
        batch=batch,
        dtype=dtype,
        guidance=guidance,
        cond=cond,
        options=options,
    )
    ours = partial(_ours, compiled, refiner, x, cond)
    methods = [ours(plan, scope) for plan in tables for scope in scopes]
    base = compiled("E1", scope="none")
    null = None if guidance == 1.0 else base.null_condition(cond)
    for name, baseline in (baselines or {}).items():
        run = partial(_baseline, baseline, x, cond, null, guidance)
        methods.append(
            Method(name=name, call=partial(run, base.field), eager=run, scope="baseline")
        )
    probes = [ours(Plan.parse(text), "none") for text in _PROBES[: 3 if refiner is None else 5]]
    parts: dict[str, Callable[[], Any]] = {"network": partial(_network, base.field, x, cond, null)}
    missing = dict(missing or {})
    if hasattr(model, "decode"):
        try:
            model.decode(x[:1])
            parts["decode"] = partial(model.decode, x)
        except (ValueError, ImportError) as e:  # an autoencoder that is not at hand
            missing["decode"] = str(e)
    parts["matrix product"], operations = matrix_product(x.device, dtype)
    every: dict[tuple[str, str], Callable[[], Any]]
    every = {("method", m.name): m.call for m in methods}
    every |= {("part", name): call for name, call in parts.items()}
    every |= {("probe", p.name): p.call for p in probes}
    with torch.no_grad():
        exact = None
        if exactly is not None:
            exact = sample(exactly, model, x, cond, guidance=guidance)
        taken = interleaved(every, x.device, repeats=repeats, progress=progress)
        middle = {name: spread(ms) for name, ms in taken.items()}
        peak = 1000 * operations / middle["part", "matrix product"]["least"]
        rows = [_row(m, middle["method", m.name], peak, base.field, x, exact) for m in methods]
    for row in rows:
        if row["scope"] == "none" and not row["evaluations"]["refiner"]:
            network = row["evaluations"]["model"] * middle["part", "network"]["median"]
            row["loop_share"] = 1 - network / row["ms"]["median"]
    return {
        "conditions": {
            **conditions(model, refiner, x),
            "guidance": guidance,
            "dtype": str(dtype),
            "inductor": inductor_options(options),
            "repeats": repeats,
            "seeds": [seed, seed + batch - 1],
            "reference": None if exactly is None else exactly.name,
        },
        "methods": rows,
        "parts": {name: middle["part", name] for name in parts},
        "latency": fit_latency(
            [p.sampler.plan.nfe for p in probes if p.sampler],
            [middle["probe", p.name]["median"] for p in probes],
        ),
        "matrix_product_flops_per_second": peak,
        "missing": missing,
    }


def several(name: str, values: Any) -> Sequence[Any]:
    """``values``, refused unless they are a list or tuple; a text is no list of letters."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"{name}={checks.shown(values)}: must be a list")
    return values


def _plan(name: str, plan: Any) -> Plan:
    if isinstance(plan, str):
        return Plan.parse(plan)
    if not isinstance(plan, Plan):
        raise ValueError(
            f"{name}={checks.shown(plan)}: must be a flowturbo.Plan or its notation, such as "
            "'AB2:6'"
        )
    return plan


def _ours(
    compiled: Callable[..., CompiledSampler],
    refiner: Any,
    x: Tensor,
    cond: Any,
    plan: Plan,
    scope: str,
) -> Method:
    what, _, captured = scope.partition(" ")
    sampler = compiled(plan, refiner, scope=what, capture=True if captured else None)
    plain = sampler if scope == "none" else compiled(plan, refiner, scope="none")
    told = "uncompiled" if what == "none" else f"compiled {what}"
    return Method(
        name=f"{plan.name}, {told} {captured}".rstrip(),
        call=partial(sampler, x, cond),
        eager=lambda _: plain(x, cond),
        scope=scope,
        sampler=sampler,
    )


def _baseline(
    baseline: Baseline, x: Tensor, cond: Any, null: Any, guidance: float, field: Any
) -> Tensor:
    return baseline(field, x, cond, null, guidance)


def _network(field: Any, x: Tensor, cond: Any, null: Any) -> Tensor:
    """One evaluation of both branches, without the arithmetic of guidance."""
    t = x.new_full((), 0.5)
    if null is None:
        return field(x, t, cond)
    return field(torch.cat([x, x]), t, Guidance(field, 2.0, null=null).embed_condition(cond).both)


def _row(
    method: Method,
    ms: dict[str, float],
    peak: float,
    field: Any,
    x: Tensor,
    exact: Tensor | None,
) -> dict[str, Any]:
    counted = CountCalls(field)
    operations = count_operations(lambda: method.eager(counted))
    sampler = method.sampler
    row: dict[str, Any] = {
        "name": method.name,
        "scope": method.scope,
        "ms": ms,
        "images_per_second": 1000 * len(x) / ms["median"],
        "evaluations": sampler.plan.nfe if sampler else {"model": counted.calls, "refiner": 0},
        "flops": operations,
        "mfu": 1000 * operations / ms["median"] / peak,
        "peak_bytes": peak_bytes(method.call, x.device),
    }
    if exact is not None:
        each = (method.call() - exact).double().flatten(1).square().mean(1).sqrt()
        row["error"] = {"rmse": float(each.square().mean().sqrt()), "median": float(each.median())}
    if sampler and method.scope != "none":
        row["compile"] = {
            "seconds": sum(sampler.report["seconds"].values()),
            "graphs": sampler.graphs,
            "recompiles": sampler.recompiles,
            "difference_from_eager": max(sampler.report["difference"].values()),
        }
    return row


def _dtype(model: Any) -> torch.dtype:
    return getattr(model, "dtype", torch.float32)
