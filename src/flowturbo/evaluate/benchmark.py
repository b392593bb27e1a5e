"""Samplers measured side by side, on the same weights, noise and machine, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.compiled.backend import inductor_options
from flowturbo.config import configured
from flowturbo.evaluate.config import BenchmarkConfig, as_plans
from flowturbo.evaluate.methods import Baseline, Method, Methods, measurements
from flowturbo.field import Field, device_of
from flowturbo.plan import Plan
from flowturbo.progress import Report
from flowturbo.provenance import conditions
from flowturbo.refiner.binding import Refiner
from flowturbo.refiner.resolve import default_guidance
from flowturbo.sampling import sample
from flowturbo.timing import fit_latency, interleaved, matrix_product, spread
from flowturbo.tuning.initial_states import check_condition, check_field
from flowturbo.types import Condition, JsonObject, ReadOnlyJson

__all__ = ["Baseline", "BenchmarkConfig", "benchmark"]

PROBES = ("E2", "E4", "E8", "E2R1", "E2R3")  # uncompiled, for the cost of an evaluation


@configured(BenchmarkConfig)
def benchmark(
    model: Field,
    plans: Sequence[Plan | str],
    refiner: Refiner | None = None,
    *,
    config: BenchmarkConfig,
    cond: Condition = None,
    baselines: Mapping[str, Baseline] | None = None,
    missing: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    options: ReadOnlyJson | None = None,
    report: Report | None = None,
) -> JsonObject:
    """Measure plans, uncompiled and compiled, and baselines.

    The fields of `BenchmarkConfig` are keywords too: ``benchmark(model, plans, batch=4)``.

    Args:
        model: a field with a ``shape``, such as one of ``flowturbo.load``.
        plans: to measure, or their notation.
        refiner: for those that need one.
        config: batch, guidance, what is compiled, and how often it is timed.
        cond: the condition of the batch; None for fields without one.
        baselines: other samplers, by name.
        missing: baselines that are not installed, and how to install them; copied to the record,
            with "decode" where the model's autoencoder is not available.
        dtype: of the networks, baselines included; None leaves them as they are.
        options: of inductor.
        report: called with a `Progress` after each compilation and each round.

    Returns:
        The record, JSON-serialisable: "conditions", "methods" (milliseconds of a batch, images per
        second, compile time, evaluations by kind, error, operations and their share of the
        matrix-product peak, peak memory), "parts" (one evaluation of the network, decoding, a
        matrix product), "latency" (the cost of an evaluation of each kind, uncompiled), "missing".

    Raises:
        ValueError: if an argument is invalid.
    """
    tables, shape = _checked(model, plans, refiner)
    _check_mappings(baselines=baselines, missing=missing, options=options)
    guidance = default_guidance(model, config.guidance)
    seeds = range(config.seed, config.seed + config.batch)
    x = noise.draw(seeds, shape, device=device_of(model))
    if cond is not None:
        cond = check_condition(cond, config.batch, f"batch={config.batch} takes", x.device)
    dtype = checks.dtype("dtype", dtype or getattr(model, "dtype", torch.float32))
    made = Methods(model, refiner, x, cond, guidance, dtype, options, report)
    methods = [made.of(plan, scope) for plan in tables for scope in config.scopes]
    methods += [made.of_baseline(name, b) for name, b in (baselines or {}).items()]
    probes = [made.of(Plan.parse(text), "none") for text in PROBES[: 3 if refiner is None else 5]]
    parts, lacking = _parts(model, made, x)
    exact = None
    with torch.no_grad():
        if isinstance(config.reference, Plan):
            exact = sample(config.reference, model, x, cond, guidance=guidance)
        found = _timed(made, methods, probes, parts, exact, config.repeats, report)
    about = {
        **conditions(model, refiner, x), "guidance": guidance, "dtype": str(dtype),
        "inductor": inductor_options(options), "repeats": config.repeats,
        "seeds": [seeds[0], seeds[-1]],
        "reference": config.reference.name if isinstance(config.reference, Plan) else None,
    }  # fmt: skip
    return {"conditions": about, **found, "missing": {**(missing or {}), **lacking}}


def _checked(
    model: Field, plans: Sequence[Plan | str], refiner: object
) -> tuple[list[Plan], tuple[int, ...]]:
    """The plans, and the shape of the model's states."""
    check_field("model", model)
    if not hasattr(model, "shape"):
        raise ValueError(f"model={checks.shown(model)}: must have a shape, of its states")
    if refiner is not None and not callable(refiner):
        raise ValueError(f"refiner={checks.shown(refiner)}: must be a function, or None")
    tables = as_plans("plans", plans)
    if not tables:
        raise ValueError("plans=[]: give at least one")
    return tables, tuple(model.shape)


def _check_mappings(**given: object) -> None:
    for name, mapping in given.items():
        if mapping is not None and not isinstance(mapping, Mapping):
            raise ValueError(f"{name}={checks.shown(mapping)}: must be a dictionary, or None")


def _parts(
    model: Field, made: Methods, x: Tensor
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Parts of a sample to time, and why decoding is missing."""
    parts: dict[str, Callable[[], object]] = {"network": made.network}
    if not hasattr(model, "decode"):
        return parts, {}
    try:
        model.decode(x[:1])
    except (ValueError, ImportError) as e:  # an autoencoder that is not available
        return parts, {"decode": str(e)}
    return {**parts, "decode": partial(model.decode, x)}, {}


def _timed(
    made: Methods,
    methods: list[Method],
    probes: list[Method],
    parts: dict[str, Callable[[], object]],
    exact: Tensor | None,
    repeats: int,
    report: Report | None,
) -> JsonObject:
    """Everything that follows from timings: all parts of the record except its conditions."""
    product, operations = matrix_product(made.x.device, made.dtype)
    parts = {**parts, "matrix product": product}
    every: dict[tuple[str, str], Callable[[], object]] = {
        **{("method", m.name): m.call for m in methods},
        **{("part", name): call for name, call in parts.items()},
        **{("probe", p.name): p.call for p in probes},
    }
    taken = interleaved(every, made.x.device, repeats=repeats, report=report)
    ms = {name: spread(each) for name, each in taken.items()}
    peak = 1000 * operations / ms["part", "matrix product"]["least"]
    rows = [measurements(m, ms["method", m.name], peak, made, exact) for m in methods]
    for row in rows:
        if row["scope"] == "none" and not row["evaluations"]["refiner"]:
            network = row["evaluations"]["model"] * ms["part", "network"]["median"]
            row["loop_share"] = 1 - network / row["ms"]["median"]
    return {
        "methods": rows,
        "parts": {name: ms["part", name] for name in parts},
        "latency": fit_latency(
            [p.sampler.plan.nfe for p in probes if p.sampler],
            [ms["probe", p.name]["median"] for p in probes],
        ),
        "matrix_product_flops_per_second": peak,
    }
