"""`flowturbo.tune`: the best plan for a model at a number of evaluations, found without data.

Initial states are split into fitting, selection and test sets. Weights are fitted on the first;
shifts, times, refiner positions and whether to fit at all are chosen on the second; the winner is
polished on both. The reported errors are measured on the test set, which nothing else uses, and a
plan that does not beat the best classical solver there is not returned. Least squares lower the
contrast of images a little; fits can be constrained to preserve it (`flowturbo.tuning.contrast`).

In a round trip the trajectories end in images, and plans are polished so that they lead from an
image to a state from which a given forward plan returns to it. The forward plan is fixed: if it
were free, two plans that do not move the state would be optimal.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.config import configured
from flowturbo.digests import content
from flowturbo.field import Field
from flowturbo.files import check_unclaimed, exclusive
from flowturbo.plan import Plan
from flowturbo.progress import Progress, Report
from flowturbo.provenance import identity, refiner_identity
from flowturbo.refiner.binding import Refiner
from flowturbo.refiner.resolve import default_guidance
from flowturbo.tuning.conditional import counts_of
from flowturbo.tuning.config import TuneConfig
from flowturbo.tuning.cost import affordable, time_evaluations
from flowturbo.tuning.initial_states import (
    InitialStates,
    WithNull,
    check_eval_mode,
    check_field,
    check_negative,
    initial_states,
)
from flowturbo.tuning.journal import Journal, sealed_options
from flowturbo.tuning.monitor import monitored
from flowturbo.tuning.polish import score
from flowturbo.tuning.problem import USUAL_SHIFT, Problem
from flowturbo.tuning.reference import Reference, run, solve
from flowturbo.tuning.result import result
from flowturbo.tuning.search import Budget, search
from flowturbo.types import Condition, GuidanceRange, JsonObject

__all__ = ["TuneConfig", "tune"]

REFERENCE_STEPS = 48  # of the grid that is kept
SUBSTEPS = (1, 2, 4, 8, 16)  # tried in each of them
PROBES = 8  # trajectories that the accuracy of the reference is measured on
EXACT = 0.02  # the error of a reference, as a share of that of a classical solver


@configured(TuneConfig)
def tune(
    model: Field,
    config: TuneConfig,
    *,
    refiner: Refiner | None = None,
    noise: Tensor | None = None,
    cond: Condition = None,
    negative: Condition = None,
    cache_dir: str | Path | None = None,
    report: Report | None = None,
) -> Plan:
    """Find a plan for ``model``.

    The fields of `TuneConfig` are keywords too: ``tune(model, nfe=6, guidance=2.0)``.

    Args:
        model: a model of `flowturbo.load`, or any field ``(x, t, cond) -> v``.
        config: what to fit and on how many trajectories.
        refiner: tried after the model's evaluations; left out where it does not help.
        noise: initial states to use instead of random ones, (N, ...): half for
            fitting, a quarter each for selection and test.
        cond: the conditions of ``noise``, tensors or arrays with a row for each; drawn at random
            for a model with a card.
        negative: the condition to guide away from, one row; the model's null condition by default.
        cache_dir: folder for cached results, so that an interrupted run can be resumed.
            Each folder is for one field, with the same noise, conditions and options; a field is
            recognised by its weights, and by its velocities at a few states.
        report: called with a `Progress` at each stage, and every ten seconds between.

    Returns:
        The plan; ``plan.info`` holds the model's fingerprint, the range of guidance, its error and
        that of the best classical solver (root mean square and median over trajectories, with
        95 % intervals), the error of the reference solution itself, and notes on what was left
        out and why.

    Raises:
        ValueError: if an argument is not as described, the field returns anything but finite
            velocities of the shape of its states, or ``cache_dir`` is in use or holds a search with
            other options.
        OSError: if the disk is full; what was computed until then stays in ``cache_dir``.

    Warns:
        UserWarning: if a file in ``cache_dir`` is damaged; its content is computed again.
    """
    check_field("model", model)
    check_eval_mode("model", model)
    for name, function in (("refiner", refiner), ("report", report)):
        if function is not None and not callable(function):
            raise ValueError(f"{name}={checks.shown(function)}: must be a function, or None")
    if refiner is not None and config.direction == "round trip":
        raise ValueError(
            f"refiner={checks.shown(refiner)}, direction='round trip': an inversion takes the "
            "model alone; leave refiner out"
        )
    if refiner is None and config.refiner_cost is not None:
        raise ValueError(
            f"refiner_cost={config.refiner_cost:g}, refiner=None: there is no refiner to cost so "
            "much; pass one, or leave refiner_cost out"
        )
    cache_dir = None if cache_dir is None else checks.path("cache_dir", cache_dir)
    guidance = default_guidance(model) if config.guidance is None else config.guidance
    initial = initial_states(
        model, noise, cond, guidance, trajectories=config.trajectories, search=config.search,
        seed=config.seed,
    )  # fmt: skip
    report = report or (lambda progress: None)
    field = monitored(model, report)
    if negative is not None:
        field = WithNull(field, check_negative(negative, initial.noise.device))
    options, refiner_id = {}, None
    if cache_dir is not None:
        options = _options(model, field, initial, config, guidance)
        if refiner is not None:
            states = (field, initial.noise, initial.cond)
            refiner_id = refiner_identity(refiner, *states, guidance=initial.guidance)
        check_unclaimed(cache_dir / "options.json", sealed_options(options))
    with nullcontext() if cache_dir is None else exclusive(cache_dir):
        journal = Journal(cache_dir, options)
        budgets = [Budget(full=config.nfe)]
        if config.passes is not None:
            budgets = _of_passes(config.passes, guidance)
        refiner_cost, timed = config.refiner_cost or 0.0, config.refiner_cost is None
        if config.budget_ms is not None or (refiner is not None and timed):
            costs = _costs(field, refiner, initial, journal, refiner_id, report)
            if config.budget_ms is not None:
                budgets = affordable(config.budget_ms, costs)
            else:
                refiner_cost = costs["refiner"] / costs["model"]
        evaluations = max(budget.full + budget.conditional for budget in budgets)
        accuracy = lambda: journal.numbers(
            f"accuracy of the reference for {evaluations} evaluations",
            lambda: _accuracy(field, initial, evaluations),
        )
        turns = config.direction == "round trip"
        if turns:  # any images will do
            accuracy = lambda: {"substeps": 1, "error": 0.0}
        substeps = lambda: int(accuracy()["substeps"])
        parts = _references(field, initial, config.direction, substeps, journal, report)
        if turns:
            notation = f"AB2:{config.nfe}@{USUAL_SHIFT:g}"
            back = replace(Plan.parse(notation, start=config.until), name=notation)
            parts = [part.round_trips(back) for part in parts]
        problem = Problem(
            field=field, refiner=refiner, refiner_id=refiner_id, refiner_cost=refiner_cost,
            direction="backward" if turns else config.direction,
            contrast=_preserves_contrast(config), fit=parts[0], choose=parts[1], test=parts[2],
            reference_error=accuracy()["error"], journal=journal, report=report,
        )  # fmt: skip
        found = search(problem, budgets, config.search)
        return result(problem, found, guidance, config.seed)


def _of_passes(passes: int, guidance: GuidanceRange) -> list[Budget]:
    """Full and conditional evaluations of so many passes; full ones alone if nothing is guided."""
    if guidance in (1.0, (1.0, 1.0)):
        return [Budget(full=passes)]
    counts = dict.fromkeys([(passes // 2, 0), *counts_of(passes)])
    return [Budget(full=full, conditional=conditional) for full, conditional in counts]


def _preserves_contrast(config: TuneConfig) -> bool:
    return config.preserve_contrast and config.direction == "forward"


def _options(
    model: Field,
    field: Field,
    initial: InitialStates,
    config: TuneConfig,
    guidance: GuidanceRange,
) -> JsonObject:
    """Everything that determines the results cached in a folder."""
    direction = config.direction + (f" until {config.until}" if config.until else "")
    return {
        "guidance": guidance, "seed": config.seed, "parts": initial.bounds,
        "direction": direction, "contrast": _preserves_contrast(config),
        "device": initial.noise.device.type, "model": getattr(model, "fingerprint", None),
        "field": identity(field, initial.noise, initial.cond, guidance=initial.guidance),
        "noise": content(initial.noise), "condition": content(initial.cond),
    }  # fmt: skip


def _accuracy(field: Field, initial: InitialStates, evaluations: int) -> dict[str, float]:
    """The "substeps" of an accurate reference, and how far twice as many move it: its "error"."""
    noise, cond, guidance = initial.rows(slice(0, len(initial), -(-len(initial) // PROBES)))
    solved = lambda substeps: solve(
        field,
        noise,
        cond,
        guidance=guidance,
        steps=REFERENCE_STEPS,
        substeps=substeps,
        batch=len(noise),
    )
    classical, found = Plan.parse(f"AB2:{evaluations}", shift=USUAL_SHIFT), solved(1)
    moved = math.inf
    for substeps in SUBSTEPS:
        finer = solved(2 * substeps)
        moved = score(found.states[-1], finer, power=2)
        allowed = EXACT * score(run(classical, field, finer), finer, power=2)
        if moved <= allowed or not math.isfinite(allowed):
            break
        found = finer
    return {"substeps": substeps, "error": moved}


def _references(
    field: Field,
    initial: InitialStates,
    direction: str,
    substeps: Callable[[], int],
    journal: Journal,
    report: Report,
) -> list[Reference]:
    """Reference trajectories of the fitting, selection and test sets."""
    solved = journal.reference(
        field, initial.rows, len(initial), steps=REFERENCE_STEPS, substeps=substeps, report=report
    )
    solved = solved.reversed() if direction == "backward" else solved
    return [solved.rows(a, b) for a, b in pairwise(initial.bounds)]


def _costs(
    field: Field,
    refiner: Refiner | None,
    initial: InitialStates,
    journal: Journal,
    refiner_id: str | None,
    report: Report,
) -> dict[str, float]:
    """Milliseconds of an evaluation of each kind on this machine, timed on 8 rows."""
    machine = f"{platform.node()}, {torch.get_num_threads()} threads"
    rows = initial.rows(slice(0, 8))
    costs = journal.numbers(
        f"costs {refiner_id} on {machine}", lambda: time_evaluations(field, refiner, *rows)
    )
    report(Progress("time evaluations", 1, 1, model_ms=costs["model"], refiner_ms=costs["refiner"]))
    return costs
