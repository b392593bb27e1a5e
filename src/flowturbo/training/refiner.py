"""Training of a velocity refiner on stored teacher trajectories: no data, no teacher calls.

The refiner learns the velocity ``v_k`` at the state ``x_k`` of a trajectory from ``v_a`` and
``v_b`` of the same trajectory, with gaps from one step to a quarter of the steps between them. A
second stage trains on the states that a given plan visits when it runs with the refiner
(`flowturbo.training.on_policy`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.checks import DTYPES, shown, tensor
from flowturbo.config import configured
from flowturbo.digests import content
from flowturbo.field import Field
from flowturbo.models.model import Model
from flowturbo.plan import Plan
from flowturbo.progress import Report
from flowturbo.refiner.binding import check_refiner
from flowturbo.refiner.checkpoint import load_refiner
from flowturbo.refiner.history import VelocityRefiner
from flowturbo.training.initial_states import InitialStateSampler
from flowturbo.training.processes import Processes
from flowturbo.training.refiner_config import RefinerConfig
from flowturbo.training.refiner_stages import RUN, Stages
from flowturbo.types import Condition

__all__ = ["train_refiner"]

MOST_CLASSES = 1_000_000  # each has a vector in a small network


@configured(RefinerConfig)
def train_refiner(
    model: Field,
    config: RefinerConfig,
    *,
    noise: Tensor | None = None,
    cond: Condition = None,
    folder: str | Path | None = None,
    plan: Plan | str | None = None,
    report: Report | None = None,
) -> VelocityRefiner:
    """Train a `VelocityRefiner` for ``model``; with a ``folder``, resume an interrupted run.

    The fields of `RefinerConfig` are keywords too: ``train_refiner(model, minutes=5)``.

    Args:
        model: the teacher, any field.
        config: how to train.
        noise: (N, ...), initial states of the trajectories; by default standard normal noise of
            ``model.shape``.
        cond: conditions, a row for each of ``noise``, else rows to sample from. By default random
            labels or prompts of the model's card, or none. A small network uses class indices or,
            from a dict, the entry "pooled", (N, P) of floats.
        folder: where ``refiner.safetensors`` and ``refiner.json`` are written. Its sub-folder
            ``refiner-run`` has the trajectories, the state of the run, and the refiner before it is
            trained on the states of a plan. It may be the model's folder. By default a temporary
            one.
        plan: also train on the states that this plan visits, and keep the result if it lowers the
            plan's error; a text such as "AB2:FFRFRFRF" is parsed, on the grid of the trajectories
            if it has no shift.
        report: called with a `Progress` in each stage: "trajectories", "training" and
            "on-policy training".

    Returns:
        The refiner as it was written, for inference; ``card["measured"]`` has its held-out errors.

    Raises:
        ValueError: if an argument is invalid, or ``folder`` is in use, or holds a run of
            another field or with other arguments.
        OSError: if the trajectories do not fit on the disk, or it is full; the last intact
            checkpoint is kept.
        ImportError: if accelerate is missing: ``pip install 'flowturbo[train]'``.

    Warns:
        UserWarning: if something in the folder is damaged, and computed again.
    """
    folder = None if folder is None else checks.path("folder", folder)
    if report is not None:
        checks.function("report", report, "progress")
    initial = InitialStateSampler.of(model, config.guidance, config.seed, noise, cond)
    visited = _plan(plan, config.shift)
    torch.manual_seed(config.seed)
    refiner = _new(model, config, initial)
    if visited is not None:
        check_refiner(visited, refiner, initial.guidance[0])
    if noise is not None:
        config = replace(config, trajectories=len(noise))
    recipe = {
        **asdict(config),
        "guidance": list(initial.guidance),
        "model": model.fingerprint if isinstance(model, Model) else None,
        "given": content([initial.noise, initial.cond]),
    }
    processes = Processes()
    stages = Stages(model, config, initial, refiner, recipe, visited, processes, report)
    with ExitStack() as stack:
        temporary = lambda: stack.enter_context(tempfile.TemporaryDirectory())
        out = Path(processes.first(temporary)) if folder is None else folder
        with processes.exclusive(out / RUN):
            stages.run(out)
        made = load_refiner(out, device=initial.device)
        processes.first(lambda: None)  # all have read it
        return cast(VelocityRefiner, made)


def _new(model: Field, config: RefinerConfig, initial: InitialStateSampler) -> VelocityRefiner:
    """The refiner before training."""
    if config.kind == "velocity":
        return VelocityRefiner.from_model(
            model, initial.guidance, block=config.block, width=config.width
        )
    cond, classes = initial.cond, 0
    if isinstance(cond, Tensor) and cond.ndim == 1 and not cond.is_floating_point():
        null = model.null_condition(cond) if hasattr(model, "null_condition") else cond
        every = torch.cat([cond, null.to(cond)]).long()
        if every.min() < 0 or every.max() >= MOST_CLASSES:
            raise ValueError(
                f"cond={shown(cond)}: holds {int(every.min())} to {int(every.max())}; number the "
                f"classes from 0, below {MOST_CLASSES:,}, or pass floating point conditions"
            )
        classes = 1 + int(every.max())
    options = {} if config.width is None else {"width": config.width}
    if isinstance(cond, Mapping) and "pooled" in cond:
        pooled = tensor("cond['pooled']", cond["pooled"], ("N", "P"), dtypes=DTYPES)
        options["pooled"] = pooled.shape[1]
    refiner = VelocityRefiner.small(initial.shape, initial.guidance, classes=classes, **options)
    return refiner.to(initial.device)


def _plan(plan: Plan | str | None, shift: float) -> Plan | None:
    """The plan to train on the states of."""
    if plan is None:
        return None
    made = plan
    if isinstance(plan, str):
        made = Plan.parse(plan) if "@" in plan else Plan.parse(plan, shift=shift)
    if not isinstance(made, Plan):
        raise ValueError(f"plan={shown(plan)}: must be a Plan, or a text such as 'AB2:FFRFRFRF'")
    asked = [
        row.model_time not in {t for _, t in row.history}
        for row in made.rows
        if row.evaluator == "refiner"
    ]
    if not any(asked):
        raise ValueError(
            f"plan {made.name!r}: asks the refiner nothing; take one with R, as AB2:FFRFRFRF"
        )
    if (made.times[0], made.times[-1]) != (0, 1):
        raise ValueError(f"plan {made.name!r}: must lead from noise (t=0) to data (t=1)")
    return made
