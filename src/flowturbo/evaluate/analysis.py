"""Why a sampler errs where it does: trajectories, solvers and the rows of a plan, measured.

One record holds, on the same noises and conditions:

- "curvature": how models' predictions change along their trajectories, and what doing without an
  evaluation costs (`flowturbo.evaluate.curvature`);
- "solvers": the error of plain solvers against their evaluations;
- "rows": where plans lose their error (`flowturbo.evaluate.error_profile`).

Errors are root mean squares over pixels and trajectories to the converged ODE, in the unit of the
state. Tables and figures are made from the record alone (`flowturbo.evaluate.analysis_figures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flowturbo import checks, noise
from flowturbo.evaluate.benchmark import several
from flowturbo.evaluate.curvature import PREDICTIONS, change, gap_errors, mean, predictions, rate
from flowturbo.evaluate.error_profile import check_whole, profile
from flowturbo.evaluate.records import KIND
from flowturbo.field import device_of
from flowturbo.plan import Plan
from flowturbo.progress import Progress
from flowturbo.provenance import conditions
from flowturbo.refiner.binding import check_refiner, needed_refiner
from flowturbo.sampling import sample
from flowturbo.stats import summary
from flowturbo.tree import slice_condition
from flowturbo.tuning.initial_states import check_condition, check_field
from flowturbo.tuning.reference import Reference, error, solve

__all__ = ["KIND", "SECTIONS", "analyze", "solvers"]

SECTIONS = ("curvature", "solvers", "rows")
_CHECKED = 8  # trajectories that are solved again, twice as finely


@checks.known_keywords
def analyze(
    models: Mapping[str, Any],
    plans: Sequence[Plan | str] = (),
    refiner: Any = None,
    *,
    cond: Any = None,
    sections: Sequence[str] = SECTIONS,
    nfe: Sequence[int] = (4, 6, 8, 12, 16),
    shift: float = 1.0,
    guidance: float = 1.0,
    trajectories: int = 64,
    steps: int = 64,
    seed: int = 0,
    batch: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure the trajectories of models, and the errors of samplers of the first of them.

    Args:
        models: fields with a ``shape``, the same for all, by the name to show. Those with cards
            take the same conditions.
        plans: from noise to data, or their notation; to look into row by row, and to show among the
            solvers.
        refiner: for plans that need one; of the first model.
        cond: conditions of the trajectories; by default the first model's ``random_condition``.
        sections: what to measure, of "curvature", "solvers" and "rows".
        nfe: evaluations of the model to give the solvers; each takes those it can.
        shift: of the solvers' time grid, see `flowturbo.path.shifted`; 1 is uniform.
        guidance: scale, 1 for off.
        trajectories: how many, at least 2.
        steps: intervals of the converged solution, and of time where changes are measured; at
            least 8.
        seed: of the first noise; the others follow.
        batch: trajectories at a time.
        progress: show bars, on a terminal.

    Returns:
        The record, which JSON can hold: "kind", "conditions", "models" and the ``sections``.

    Raises:
        ValueError: if an argument is not as said, or the trajectories are not finite.
    """
    _check(models, sections, nfe)
    least = {"trajectories": (trajectories, 2), "steps": (steps, 8), "batch": (batch, 1)}
    for name, (value, low) in {**least, "seed": (seed, 0)}.items():
        checks.whole(name, value, low)
    shift, guidance = checks.number("shift", shift, above=0), checks.number("guidance", guidance)
    given_plans = several("plans", plans)
    chosen = [Plan.parse(plan) if isinstance(plan, str) else plan for plan in given_plans]
    for plan in chosen:
        check_whole(plan)
        if needed_refiner(plan, refiner) is not None:
            check_refiner(plan, refiner, guidance)
    first = next(iter(models.values()))
    x = noise.draw(range(seed, seed + trajectories), first.shape, device=device_of(first))
    given = cond is not None
    if given:
        cond = check_condition(cond, trajectories, f"trajectories={trajectories} takes", x.device)
    elif hasattr(first, "random_condition"):
        cond = first.random_condition(trajectories, torch.Generator().manual_seed(seed))
    record: dict[str, Any] = {
        "kind": KIND,
        "conditions": {
            **conditions(first, refiner, x),
            "batch": batch,
            "dtype": str(getattr(first, "dtype", x.dtype)),
            "guidance": guidance,
            "trajectories": trajectories,
            "seeds": [seed, seed + trajectories - 1],
            "condition": "none" if cond is None else "given" if given else "drawn evenly",
            "steps": steps,
            "shift": shift,
        },
        "models": {},
        **({"curvature": {}} if "curvature" in sections else {}),
    }
    for i, (name, model) in enumerate(models.items()):
        try:
            reference = _solve(model, x, cond, guidance, steps, batch, progress and name)
        except ValueError as e:
            raise ValueError(f"model {name!r}: {e}") from e
        finer = solve(
            model,
            x[:_CHECKED],
            slice_condition(cond, slice(_CHECKED)),
            guidance=guidance,
            steps=2 * steps,
        )
        off = error(reference.states[-1][:_CHECKED], finer.states[-1])
        record["models"][name] = {
            "fingerprint": getattr(model, "fingerprint", None),
            "prediction": _prediction(model),
            "reference_rmse": _short(float(off.square().mean().sqrt())),
        }
        if "curvature" in sections:
            record["curvature"][name] = _curvature(model, reference, steps, batch)
        if i == 0 and "solvers" in sections:
            tried = [(family, p) for n in nfe for family, p in solvers(n, shift).items()]
            tried += [("given", plan) for plan in chosen]
            record["solvers"] = [
                {"family": family, **_told(plan), **_error(plan, model, reference, refiner, batch)}
                for family, plan in _bar(tried, "solvers", progress)
            ]
        if i == 0 and "rows" in sections:
            record["rows"] = [
                {**_told(p), "rows": _short(profile(p, model, reference, refiner, batch=batch))}
                for p in _bar(chosen, "rows", progress)
            ]
    return record


def solvers(nfe: int, shift: float = 1.0) -> dict[str, Plan]:
    """The solvers that take ``nfe`` evaluations, by family: plain ones, and H1P, the paper's."""
    texts = {"Euler": f"E{nfe}", "AB2": f"AB2:{nfe}", "AB4": f"AB4:{nfe}",
             "DPM-Solver++ 2M": f"DPM2:{nfe}", "UniPC-2": f"UNIPC2:{nfe}"}  # fmt: skip
    if nfe % 2 == 0:
        texts["Heun"] = f"H{nfe // 2}"
    if nfe > 2:
        texts["H1P"] = f"H1P{nfe - 2}"
    return {family: Plan.parse(text, shift=shift) for family, text in texts.items()}


def _check(models: Mapping[str, Any], sections: Sequence[str], nfe: Sequence[int]) -> None:
    if not isinstance(models, Mapping):
        raise ValueError(f"models={checks.shown(models)}: must be a dictionary, models by name")
    for name, model in models.items():
        check_field(f"models[{name!r}]", model)
        if not hasattr(model, "shape"):
            raise ValueError(
                f"models[{name!r}]={checks.shown(model)}: must have a shape, of states"
            )
    shapes = {tuple(m.shape) for m in models.values()}
    if len(shapes) != 1:
        told = ", ".join(map(str, shapes)) or "none"
        raise ValueError(f"models of shapes {told}: pass one or more, of one shape")
    unknown = [p for p in several("sections", sections) if p not in SECTIONS]
    if unknown or not sections:
        raise ValueError(f"sections={tuple(sections)}: must be of {', '.join(SECTIONS)}")
    for n in several("nfe", nfe):
        checks.whole("nfe", n, 1)
    if not nfe:
        raise ValueError("nfe=(): give one number of evaluations at least")
    cards = [m.card.get("condition") for m in models.values() if hasattr(m, "card")]
    if any(card != cards[0] for card in cards):
        raise ValueError(
            f"models {', '.join(models)}: are told different things by one condition; compare "
            'those whose cards have the same "condition"'
        )


def _solve(
    model: Any, x: Tensor, cond: Any, guidance: float, steps: int, batch: int, title: str | bool
) -> Reference:
    with tqdm(total=len(x), desc=f"solve {title}", disable=None if title else True) as bar:

        def report(progress: Progress) -> None:
            bar.update(progress.done - bar.n)

        return solve(model, x, cond, guidance=guidance, steps=steps, batch=batch, report=report)


def _curvature(model: Any, reference: Reference, steps: int, batch: int) -> dict[str, Any]:
    """Of both kinds of prediction: rate and change against time, errors against gaps."""
    found = {}
    for kind in PREDICTIONS:
        times, values = predictions(model, reference, kind, steps, batch)
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
    return _short(found)  # type: ignore[no-any-return]


def _told(plan: Plan) -> dict[str, Any]:
    return {"plan": plan.name, "digest": plan.digest, "evaluations": plan.nfe}


def _error(
    plan: Plan, model: Any, reference: Reference, refiner: Any, batch: int
) -> dict[str, Any]:
    """The error of ``plan`` to the ends of ``reference``."""
    found = []
    for i in range(0, len(reference), batch):
        part = reference.rows(i, i + batch)
        x1 = sample(plan, model, part.noise, part.cond, guidance=part.guidance, refiner=refiner)
        found.append(error(x1, part.states[-1]))
    return _short(summary(torch.cat(found).cpu().numpy()))  # type: ignore[no-any-return]


def _bar(things: Sequence[Any], title: str, progress: bool) -> Any:
    return tqdm(things, desc=title, disable=None if progress else True)


def _prediction(model: Any) -> str:
    """In which of its predictions a model is sampled."""
    config = getattr(getattr(model, "network", model), "config", None)
    return "noise" if getattr(config, "prediction", None) == "noise" else "velocity"


def _short(value: Any) -> Any:
    """Five digits of every number."""
    if isinstance(value, Mapping):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
