"""Where and why a sampler loses accuracy: measurements of trajectories, solvers and plan rows.

One record holds, for the same noise samples and conditions:

- "curvature": how models' predictions change along their trajectories, and the error of skipping
  an evaluation (`flowturbo.evaluate.curvature`);
- "solvers": the error of classical solvers against their evaluations;
- "rows": where plans lose their error (`flowturbo.evaluate.error_profile`).

Errors are root mean squares over pixels and trajectories, to the reference solution of the ODE, in
units of the state. Tables and figures are made from the record alone
(`flowturbo.evaluate.analysis_figures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo import noise as random_noise
from flowturbo.config import configured
from flowturbo.evaluate.config import AnalyzeConfig, as_plans
from flowturbo.evaluate.curvature import PREDICTIONS, change, gap_errors, mean, predictions, rate
from flowturbo.evaluate.error_profile import check_whole, profile
from flowturbo.evaluate.records import KIND
from flowturbo.field import Field, device_of
from flowturbo.plan import Plan
from flowturbo.progress import Progress, Report
from flowturbo.provenance import conditions
from flowturbo.refiner.binding import Refiner, check_refiner, needed_refiner
from flowturbo.refiner.resolve import default_guidance
from flowturbo.sampling import sample
from flowturbo.stats import summary
from flowturbo.tree import slice_condition
from flowturbo.tuning.initial_states import (
    check_condition,
    check_eval_mode,
    check_field,
    check_noise,
)
from flowturbo.tuning.reference import Reference, error, solve
from flowturbo.types import Condition, JsonObject

__all__ = ["KIND", "AnalyzeConfig", "analyze", "solvers"]

TRAJECTORIES = 64  # by default
CHECKED = 8  # trajectories that are solved again, twice as finely
T = TypeVar("T")


@configured(AnalyzeConfig)
def analyze(
    models: Field | Mapping[str, Field],
    plans: Sequence[Plan | str] = (),
    refiner: Refiner | None = None,
    *,
    config: AnalyzeConfig,
    noise: Tensor | None = None,
    cond: Condition = None,
    report: Report | None = None,
) -> JsonObject:
    """Measure the trajectories of models, and the errors of samplers on the first of them.

    The fields of `AnalyzeConfig` are keywords too: ``analyze(models, plans, trajectories=32)``.

    Args:
        models: a field, or a dictionary of several by the name to show. They have the same
            ``shape``, unless ``noise`` is given. Those with cards must take the same conditions.
        plans: from noise to data, or their notation; for the section "rows", and among the solvers.
        refiner: for plans that need one; of the first model.
        config: what to measure, and on how many trajectories.
        noise: noise samples to start from instead of random ones, (N, ...), at least 2.
        cond: conditions of the trajectories; by default the first model's ``random_condition``.
        report: called with a `Progress` at each stage.

    Returns:
        The record, JSON-serialisable: "kind", "conditions", "models" and the sections.

    Raises:
        ValueError: if an argument is invalid, or the trajectories are not finite.
    """
    if not isinstance(models, Mapping):
        check_field("models", models)
        models = {str(getattr(models, "name", "model")): models}
    if noise is not None:
        checks.tensor("noise", noise, ("N", ...))
    shape = _check(models, noise)
    first = next(iter(models.values()))
    guidance = default_guidance(first, config.guidance)
    chosen = as_plans("plans", plans)
    for plan in chosen:
        check_whole(plan)
        if needed_refiner(plan, refiner) is not None:
            check_refiner(plan, refiner, guidance)
    seeds, x = None, noise
    if x is None:
        seeds = range(config.seed, config.seed + (config.trajectories or TRAJECTORIES))
        x = random_noise.draw(seeds, shape, device=device_of(first))
    else:
        x = _given(models, x, config)
    cond, source = _condition(first, cond, len(x), config.seed, x)
    record: JsonObject = {
        "kind": KIND,
        "conditions": {
            **conditions(first, refiner, x), "batch": config.batch,
            "dtype": str(getattr(first, "dtype", x.dtype)), "guidance": guidance,
            "trajectories": len(x), "seeds": [seeds[0], seeds[-1]] if seeds else None,
            "condition": source, "steps": config.steps, "shift": config.shift,
        },
        "models": {},
        **({"curvature": {}} if "curvature" in config.sections else {}),
    }  # fmt: skip
    for name, model in models.items():
        reference, about = _solved(name, model, x, cond, guidance, config, report)
        record["models"][name] = about
        if "curvature" in config.sections:
            record["curvature"][name] = _curvature(model, reference, config)
        if model is first:
            record |= _errors(model, chosen, refiner, reference, config, report)
    return record


def _given(models: Mapping[str, Field], noise: Tensor, config: AnalyzeConfig) -> Tensor:
    """The caller's noise samples, checked against all ``models``."""
    for model in models.values():
        noise = check_noise(model, noise, 2, trajectories=config.trajectories)
    return noise


def _condition(
    model: Field, cond: Condition, n: int, seed: int, x: Tensor
) -> tuple[Condition, str]:
    """The conditions of ``n`` trajectories from ``x``, and where they come from."""
    if cond is not None:
        return check_condition(cond, n, f"trajectories={n} takes", x.device), "given"
    if hasattr(model, "random_condition"):
        cond = model.random_condition(n, torch.Generator().manual_seed(seed))
    return cond, "none" if cond is None else "sampled evenly"


def _solved(
    name: str,
    model: Field,
    x: Tensor,
    cond: Condition,
    guidance: float,
    config: AnalyzeConfig,
    report: Report | None,
) -> tuple[Reference, JsonObject]:
    """The reference solution, and the record's entries for the model and its error."""

    def renamed(progress: Progress) -> None:
        if report:
            report(Progress(f"reference trajectories of {name}", progress.done, progress.total))

    steps = config.steps
    try:
        reference = solve(
            model, x, cond, guidance=guidance, steps=steps, batch=config.batch, report=renamed
        )
    except ValueError as e:
        raise ValueError(f"model {name!r}: {e}") from e
    few = slice(CHECKED)
    finer = solve(model, x[few], slice_condition(cond, few), guidance=guidance, steps=2 * steps)
    off = error(reference.states[-1][few], finer.states[-1])
    return reference, {
        "fingerprint": getattr(model, "fingerprint", None),
        "prediction": _prediction(model),
        "reference_rmse": _rounded(float(off.square().mean().sqrt())),
    }


def _errors(
    model: Field,
    chosen: Sequence[Plan],
    refiner: Refiner | None,
    reference: Reference,
    config: AnalyzeConfig,
    report: Report | None,
) -> JsonObject:
    """The sections "solvers" and "rows"."""
    found: JsonObject = {}
    if "solvers" in config.sections:
        tried = [(f, p) for n in config.nfe for f, p in solvers(n, config.shift).items()]
        tried += [("given", plan) for plan in chosen]
        found["solvers"] = []
        for i, (family, plan) in enumerate(tried):
            ends = _plan_error(plan, model, reference, refiner, config.batch)
            found["solvers"].append({"family": family, **_about(plan), **ends})
            if report:
                report(Progress("solvers", i + 1, len(tried)))
    if "rows" in config.sections:
        found["rows"] = []
        for i, plan in enumerate(chosen):
            rows = profile(plan, model, reference, refiner, batch=config.batch)
            found["rows"].append({**_about(plan), "rows": _rounded(rows)})
            if report:
                report(Progress("rows of plans", i + 1, len(chosen)))
    return found


def solvers(nfe: int, shift: float = 1.0) -> dict[str, Plan]:
    """The solvers that take ``nfe`` evaluations, by family: classical ones, and the paper's H1P."""
    texts = {"Euler": f"E{nfe}", "AB2": f"AB2:{nfe}", "AB4": f"AB4:{nfe}",
             "DPM-Solver++ 2M": f"DPM2:{nfe}", "UniPC-2": f"UNIPC2:{nfe}"}  # fmt: skip
    if nfe % 2 == 0:
        texts["Heun"] = f"H{nfe // 2}"
    if nfe > 2:
        texts["H1P"] = f"H1P{nfe - 2}"
    return {family: Plan.parse(text, shift=shift) for family, text in texts.items()}


def _check(models: Mapping[str, Field], noise: Tensor | None) -> tuple[int, ...]:
    """The shape of the states of all models."""
    shapes = set()
    for name, model in models.items():
        check_field(f"models[{name!r}]", model)
        check_eval_mode(f"models[{name!r}]", model)
        if hasattr(model, "shape"):
            shapes.add(tuple(model.shape))
        elif noise is None:
            raise ValueError(
                f"models[{name!r}]={checks.shown(model)}: has no shape, of states; give it one, "
                "or pass noise=..., a tensor (N, ...)"
            )
    if models and not shapes and noise is not None:
        shapes.add(tuple(noise.shape[1:]))
    if len(shapes) != 1:
        found = ", ".join(map(str, shapes)) or "none"
        raise ValueError(f"models of shapes {found}: pass one or more, of one shape")
    cards = [m.card.get("condition") for m in models.values() if hasattr(m, "card")]
    if any(card != cards[0] for card in cards):
        raise ValueError(
            f"models {', '.join(models)}: their conditions mean different things; compare those "
            'whose cards have the same "condition"'
        )
    return shapes.pop()


def _curvature(model: Field, reference: Reference, config: AnalyzeConfig) -> JsonObject:
    """For both kinds of prediction: rate and change against time, errors against gaps."""
    steps = config.steps
    found: JsonObject = {}
    for kind in PREDICTIONS:
        times, values = predictions(model, reference, kind, steps, config.batch)
        rates = rate(times, values)
        gaps = [2**i for i in range(steps.bit_length()) if 2**i <= steps // 4]
        found[kind] = {
            "times": times.tolist(),
            "rate": mean(rates),
            "change": mean(change(times.to(rates.device), rates)),
            "gaps": [
                {"gap": g / steps, **{k: mean(e) for k, e in gap_errors(values, g).items()}}
                for g in gaps
            ],
        }
    return _rounded(found)


def _about(plan: Plan) -> JsonObject:
    return {"plan": plan.name, "digest": plan.digest, "evaluations": plan.nfe}


def _plan_error(
    plan: Plan, model: Field, reference: Reference, refiner: Refiner | None, batch: int
) -> JsonObject:
    """The error of ``plan`` to the ends of ``reference``."""
    found = []
    for i in range(0, len(reference), batch):
        part = reference.rows(i, i + batch)
        x1 = sample(plan, model, part.noise, part.cond, guidance=part.guidance, refiner=refiner)
        found.append(error(x1, part.states[-1]))
    return _rounded(summary(torch.cat(found).cpu().numpy()))


def _prediction(model: Field) -> str:
    """The kind of prediction that the network of a model makes."""
    config = getattr(getattr(model, "network", model), "config", None)
    return "noise" if getattr(config, "prediction", None) == "noise" else "velocity"


def _rounded(value: T) -> T:
    """Every float rounded to five digits."""
    made: object = value
    if isinstance(value, Mapping):
        made = {k: _rounded(v) for k, v in value.items()}
    elif isinstance(value, list):
        made = [_rounded(v) for v in value]
    elif isinstance(value, float):
        made = float(f"{value:.5g}")
    return cast(T, made)
