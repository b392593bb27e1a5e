"""The stages of training a refiner: trajectories, training on them, training on a plan's states."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pydantic import Field as Entry

from flowturbo.field import Field
from flowturbo.files import write_json
from flowturbo.plan import Plan
from flowturbo.progress import Report
from flowturbo.provenance import identity
from flowturbo.refiner.checkpoint import save_refiner
from flowturbo.refiner.history import VelocityRefiner
from flowturbo.sampling import sample
from flowturbo.schema import Schema, read_json
from flowturbo.stores import warn_damaged
from flowturbo.training.config import TrainConfig
from flowturbo.training.devices import autocast
from flowturbo.training.initial_states import InitialStateSampler
from flowturbo.training.loop import run
from flowturbo.training.on_policy import collect, rollout_error
from flowturbo.training.optimizers import optimizers
from flowturbo.training.processes import Processes
from flowturbo.training.refiner_config import RefinerConfig
from flowturbo.training.refiner_loss import (
    LazySource,
    VelocityRegression,
    held_out_errors,
    relative_error,
)
from flowturbo.training.trajectories import Batch, Trajectories, generate_trajectories
from flowturbo.types import JsonObject

__all__ = ["RUN", "Stages"]

RUN = "refiner-run"
REFERENCE = "AB4RK:73@0.5"  # that the plan's final states are compared with


class Rollout(Schema):
    """How far a plan ends from the reference solution, before and after training on its states."""

    plan: str
    images: int
    reference: str
    before: dict[str, float]
    after: dict[str, float]
    kept: bool


class _Training(Schema):
    steps: int = Entry(ge=1)


class _Options(Schema):
    """``config.json`` of a run."""

    training: _Training


class _Finished(Schema):
    """``finished.json`` of training on a plan's states."""

    rollout: Rollout


class Stages:
    """The training of a refiner; ``visited`` is the plan to train on the states of."""

    def __init__(
        self,
        model: Field,
        config: RefinerConfig,
        initial: InitialStateSampler,
        refiner: VelocityRefiner,
        recipe: JsonObject,
        visited: Plan | None,
        processes: Processes,
        report: Report | None,
    ) -> None:
        self.model, self.config, self.initial, self.refiner = model, config, initial, refiner
        self.recipe, self.visited, self.processes, self.report = recipe, visited, processes, report

    def run(self, out: Path) -> None:
        """Make the refiner in ``out``, or the parts of it that are missing."""
        config, folder, processes = self.config, out / RUN, self.processes
        iterations = config.iterations
        if iterations is None:
            iterations = processes.first(partial(self._iterations, folder))
        training = config.training(iterations)
        made: dict[str, JsonObject] = {
            "refiner": self.recipe,
            "training": training.to_dict(),
            "field": {"identity": self._identity()},
        }
        processes.claim(folder / "config.json", made)
        generate = lambda: generate_trajectories(
            self.model,
            folder,
            self.initial,
            config.steps,
            config.trajectories,
            shift=config.shift,
            jitter=config.jitter,
            bf16=config.bf16,
            report=self.report,
        )
        trajectories = processes.in_turn(generate)
        second, section = _on_policy_folder(folder)
        later = self.visited is not None and (second / "finished.json").is_file()

        def write(
            refiner: VelocityRefiner, training: JsonObject, measured: JsonObject | None = None
        ) -> None:
            found = {**held_out_errors(refiner, trajectories), **(measured or {})}
            refiner.card = {"recipe": self.recipe, "training": training, "measured": found}
            if measured is None:  # stays as it is after the first stage
                save_refiner(folder, refiner, self.model)
            if measured is not None or not later:
                save_refiner(out, refiner, self.model)

        objective = VelocityRegression(self.refiner, [trajectories], write)
        trained = run(objective, folder, training, made, processes, self.report)
        if self.visited is not None:
            training = replace(training, steps=max(1, iterations // 4), lr=training.lr / 4)
            made = {
                "training": training.to_dict(),
                section: {"plan": json.loads(self.visited.to_json())},
            }
            trained = trained.to(self.initial.device)
            self._on_policy(trained, self.visited, trajectories, second, training, made, write)

    def _on_policy(
        self,
        trained: VelocityRefiner,
        plan: Plan,
        trajectories: Trajectories,
        folder: Path,
        config: TrainConfig,
        made: dict[str, JsonObject],
        write: Callable[[VelocityRefiner, JsonObject, JsonObject], None],
    ) -> None:
        """Train a quarter as many iterations more, half of each batch on the plan's states.

        The result is kept if the plan ends closer to the reference solution, on other states.
        """
        initial, used = self.initial, len(trajectories.arrays)
        self.processes.claim(folder / "config.json", made)
        rollout = self.processes.first(lambda: _finished(folder / "finished.json"))
        fresh = range(used, used + max(16, used // 2))
        check = range(fresh.stop, fresh.stop + max(16, used // 16))
        if rollout is None:
            error = self._rollout_error(plan, check)
            before = error(trained)
        states = LazySource(
            lambda: collect(trained, self.model, plan, initial, fresh, bf16=self.config.bf16)
        )
        objective = VelocityRegression(
            copy.deepcopy(trained), [trajectories, states], lambda network, training: None
        )
        tuned = run(
            objective, folder, config, made, self.processes, self.report,
            stage="on-policy training",
        )  # fmt: skip
        if rollout is None:
            after = error(tuned.to(initial.device))
            rollout = Rollout(
                plan=plan.name,
                images=len(check),
                reference=Plan.parse(REFERENCE).name,
                before=before,
                after=after,
                kept=after["rmse"] < before["rmse"],
            )
        chosen, result = (tuned if rollout.kept else trained), {"rollout": rollout.model_dump()}

        def finish() -> None:
            write(chosen, config.to_dict(), result)
            write_json(folder / "finished.json", result)

        self.processes.first(finish)

    def _rollout_error(
        self, plan: Plan, rows: range
    ) -> Callable[[VelocityRefiner], dict[str, float]]:
        """The error of ``plan`` with a refiner, from initial states ``rows``."""
        x0, cond, w = self.initial.rows(rows.start, rows.stop)
        teacher = self.initial.guided(self.model, w)
        exact = sample(Plan.parse(REFERENCE), teacher, x0, cond)
        return lambda refiner: rollout_error(refiner, plan, teacher, x0, cond, exact)

    def _identity(self) -> str:
        x, cond, w = self.initial.rows(0, min(8, self.config.trajectories))
        scale = 1.0 if self.initial.guidance == (1.0, 1.0) else w
        return identity(self.model, x, cond, guidance=scale)

    def _iterations(self, folder: Path) -> int:
        """How many iterations fit into the minutes, as recorded in ``folder`` or timed here."""
        config, path = self.config, folder / "config.json"
        if path.is_file():
            return read_json(path, _Options).training.steps
        trial = copy.deepcopy(self.refiner)
        steps = optimizers(trial, config.training(1))
        x, cond, w = self.initial.rows(0, config.batch)
        t = torch.full_like(w, 0.3)
        b = Batch(x, 2 * t, cond, (t, x), (t / 2, x), w, x)
        for i in range(4):
            if i == 1:
                start = time.perf_counter()
            with autocast(x.device, config.bf16):
                loss = relative_error(trial, b)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in steps:
                optimizer.step()
            loss.item()  # waits for the device
        return max(1, round(60 * config.minutes / (time.perf_counter() - start) * 3))


def _on_policy_folder(run: Path) -> tuple[Path, str]:
    """Where on-policy training is kept, and the section of its ``config.json`` with the plan.

    Both had other names in runs of earlier versions.
    """
    if (run / "own-states").is_dir():
        return run / "own-states", "own states"
    return run / "on-policy", "on-policy"


def _finished(path: Path) -> Rollout | None:
    """The errors that on-policy training ended with, else None."""
    if not path.is_file():
        return None
    try:
        return read_json(path, _Finished).rollout
    except ValueError:
        warn_damaged(path, "damaged")
        return None
