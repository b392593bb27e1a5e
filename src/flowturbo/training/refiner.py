r"""Training of a velocity refiner on stored teacher trajectories: no data, no teacher calls.

The loss is the mean square of the refiner's velocity at the state ``x_k`` of a trajectory minus
the stored ``v_k``, where the refiner is shown ``v_a`` and ``v_b`` of the same trajectory, with gaps
from one step to a quarter of the steps between them. Each row's is divided by its squared change by
linear extrapolation, and a tenth of the batch's mean of that, so that small gaps count as well. A
second phase goes on with the states that a given plan visits when it runs with the refiner.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field as Entry
from torch import Tensor

from flowturbo import checks
from flowturbo.checks import did_you_mean, known_keywords, number, one_of, shown, whole
from flowturbo.digests import content
from flowturbo.field import Field
from flowturbo.files import write_json
from flowturbo.models.model import Model
from flowturbo.plan import Plan, Row
from flowturbo.provenance import identity
from flowturbo.refiner.binding import check_refiner
from flowturbo.refiner.checkpoint import load_refiner, save_refiner
from flowturbo.refiner.history import VelocityRefiner
from flowturbo.sampling import sample
from flowturbo.schema import Schema, read_json
from flowturbo.stores import warn_damaged
from flowturbo.training.loop import TrainConfig, autocast, optimizers, run
from flowturbo.training.on_policy import collect, mixed_plan, rollout_error
from flowturbo.training.processes import Processes
from flowturbo.training.trajectories import Batch, Starts, Trajectories, draw_trajectories, scales

__all__ = ["RefinerConfig", "Report", "held_out_errors", "train_refiner"]

RUN = "refiner-run"
MOST_CLASSES = 1_000_000  # each has a vector in a small network
CONVERGED = "AB4RK:73@0.5"  # for what is compared
Report = Callable[[str, int, int], None]


@known_keywords
@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """How a velocity refiner is trained.

    Attributes:
        kind: "velocity" borrows a block of a SiT; "conv" is a small network for any field.
        guidance: the scale, or (lowest, highest) to serve a range.
        trajectories: how many to draw; with ``noise``, a row each.
        steps: evaluations of the model on each, at least 3.
        shift: of their grid.
        jitter: how far its times are moved at random, in steps, below 0.5.
        minutes: of training, about, once the trajectories are drawn.
        iterations: of training, instead of ``minutes``.
        block: which of the SiT to borrow, by default the last.
        width: of the network; the model's, or 40 of a small one, by default.
        batch: velocities a step.
        optimizer: see `TrainConfig`; "muon", where torch has it, by default.
        lr: peak learning rate; 2e-3, or 5e-4 of AdamW on a block, by default.
        ema: decay of the averaged weights, which are what is exported.
        seed: of everything random.
        bf16: draw and train under bfloat16 autocast, where the device computes in it.
        compile: compile the refiner for training.
        save_every: iterations between checkpoints.
    """

    kind: Literal["velocity", "conv"] = "velocity"
    guidance: float | tuple[float, float] = (1.0, 4.0)
    trajectories: int = 2048
    steps: int = 16
    shift: float = 1.6
    jitter: float = 0.3
    minutes: float = 10.0
    iterations: int | None = None
    block: int = -1
    width: int | None = None
    batch: int = 64
    optimizer: Literal["adamw", "muon"] | None = None
    lr: float | None = None
    ema: float = 0.999
    seed: int = 0
    bf16: bool = False
    compile: bool = False
    save_every: int = 500

    def __post_init__(self) -> None:
        keep = lambda name, value: object.__setattr__(self, name, value)
        one_of("kind", self.kind, ("velocity", "conv"))
        low, high = scales(self.guidance)
        keep("guidance", (low, high))
        for name, least in (("trajectories", 2), ("steps", 3), ("iterations", 1), ("width", 1)):
            value = getattr(self, name)
            if value is not None or name in ("trajectories", "steps"):
                keep(name, whole(name, value, least, 2**31 - 1))
        keep("block", whole("block", self.block))
        for name in ("shift", "minutes"):
            keep(name, number(name, getattr(self, name), above=0))
        keep("jitter", number("jitter", self.jitter, 0))
        if self.jitter >= 0.5:
            raise ValueError(f"jitter={self.jitter}: must be below 0.5, for times to stay in order")
        self.training(1)

    def training(self, iterations: int) -> TrainConfig:
        """The same for the training loop."""
        names = ("batch", "ema", "seed", "bf16", "compile", "save_every")
        optimizer = self.optimizer
        if optimizer is None:
            optimizer = "muon" if hasattr(torch.optim, "Muon") else "adamw"
        slow = (self.kind, optimizer) == ("velocity", "adamw")
        lr = (5e-4 if slow else 2e-3) if self.lr is None else self.lr
        return TrainConfig(
            steps=iterations,
            optimizer=optimizer,
            lr=lr,
            warmup=min(100, 1 + iterations // 10),
            schedule="cosine",
            preview_every=0,
            **{name: getattr(self, name) for name in names},
        )


def train_refiner(
    model: Field,
    *,
    noise: Tensor | None = None,
    cond: Any = None,
    folder: str | Path | None = None,
    plan: Plan | str | None = None,
    report: Report | None = None,
    **options: Any,
) -> VelocityRefiner:
    """Train a `VelocityRefiner` for ``model``; with a ``folder``, go on where a killed run stopped.

    Args:
        model: the teacher, any field.
        noise: (N, ...), what trajectories start from; by default standard normal noise of
            ``model.shape``.
        cond: conditions, a row for each of ``noise``, else rows to draw from. By default random
            labels or prompts of the model's card, or none.
        folder: gets ``refiner.safetensors`` and ``refiner.json``; the trajectories and the state of
            the run are in ``refiner-run`` in it, with the refiner as it is before it goes on with
            the states of a plan. It may be the model's. By default a temporary one.
        plan: go on with the states this plan visits, and keep that if its error falls; a text such
            as "MMRMRMRM" is Adams-Bashforth on the grid of the trajectories.
        report: called with (what is done, done, all).
        options: fields of `RefinerConfig`: ``guidance``, ``minutes``, ``kind`` and so on.

    Returns:
        The refiner as it was written, for inference; ``card["measured"]`` has its held-out errors.

    Raises:
        ValueError: if an argument does not do, or ``folder`` is in use, or holds a run of another
            field or with other arguments.
        OSError: if the trajectories do not fit on the disk, or it is full; the last whole
            checkpoint stays.
        ImportError: if accelerate is missing: ``pip install 'flowturbo[train]'``.

    Warns:
        UserWarning: if what the folder holds is damaged, and made again.
    """
    config = _config(options)
    folder = None if folder is None else checks.path("folder", folder)
    if report is not None:
        checks.function("report", report, "what, done, all")
    starts = Starts.of(model, config.guidance, config.seed, noise, cond)
    own = _plan(plan, config.shift)
    torch.manual_seed(config.seed)
    refiner = _new(model, config, starts)
    if own is not None:
        check_refiner(own, refiner, starts.guidance[0])
    if noise is not None:
        config = replace(config, trajectories=len(noise))
    recipe = {
        **asdict(config),
        "guidance": list(starts.guidance),
        "model": model.fingerprint if isinstance(model, Model) else None,
        "given": content([starts.noise, starts.cond]),
    }
    stages = _Stages(model, config, starts, refiner, recipe, own, report)
    with ExitStack() as stack:
        temporary = lambda: stack.enter_context(tempfile.TemporaryDirectory())
        out = Path(stages.processes.first(temporary)) if folder is None else folder
        with stages.processes.exclusive(out / RUN):
            stages.into(out)
        made = load_refiner(out, device=starts.device)
        stages.processes.first(lambda: None)  # all have read it
        return made  # type: ignore[return-value]


class _Stages:
    """A training of a refiner in its stages: trajectories, iterations, the states of a plan."""

    def __init__(
        self,
        model: Field,
        config: RefinerConfig,
        starts: Starts,
        refiner: VelocityRefiner,
        recipe: dict[str, Any],
        own: Plan | None,
        report: Report | None,
    ) -> None:
        self.model, self.config, self.starts, self.refiner = model, config, starts, refiner
        self.recipe, self.own, self.report = recipe, own, report
        self.processes = Processes()

    def into(self, out: Path) -> None:
        """Make the refiner in ``out``, or what of it is missing."""
        config, starts, folder, report = self.config, self.starts, out / RUN, self.report
        trial = lambda: _iterations(folder, config, self.refiner, starts)
        iterations = config.iterations
        if iterations is None:
            iterations = self.processes.first(trial)
        training = config.training(iterations)
        made = {
            "refiner": self.recipe,
            "training": asdict(training),
            "field": {"identity": _identity(self.model, starts, config.trajectories)},
        }
        self.processes.claim(folder / "config.json", made)
        draw = lambda: draw_trajectories(
            self.model,
            folder,
            starts,
            config.steps,
            config.trajectories,
            shift=config.shift,
            jitter=config.jitter,
            bf16=config.bf16,
            report=report and partial(report, "trajectories"),
        )
        drawn = self.processes.in_turn(draw)
        second = folder / "own-states"
        later = self.own is not None and (second / "finished.json").is_file()

        def write(refiner: Any, training: dict[str, Any], measured: dict[str, Any]) -> None:
            first = "rollout" not in measured
            measured = {**held_out_errors(refiner, drawn), **measured}
            refiner.card = {"recipe": self.recipe, "training": training, "measured": measured}
            if first:  # stays as it is after the first phase
                save_refiner(folder, refiner, self.model)
            if not (first and later):
                save_refiner(out, refiner, self.model)

        objective = _Prediction(self.refiner, [drawn], config.batch, partial(write, measured={}))
        steps = partial(_report, report, "iterations", iterations)
        trained: Any = run(objective, folder, training, made, self.processes, steps)
        if self.own is not None:
            training = replace(training, steps=max(1, iterations // 4), lr=training.lr / 4)
            self.on_own_states(trained.to(starts.device), self.own, drawn, second, training, write)

    def on_own_states(
        self,
        trained: Any,
        plan: Plan,
        drawn: Trajectories,
        folder: Path,
        config: TrainConfig,
        write: Callable[..., None],
    ) -> None:
        """A quarter of the iterations more, half of each batch on the plan's own states."""
        starts, used = self.starts, len(drawn.arrays)
        steps = partial(_report, self.report, "on the plan's states", config.steps)
        made = {"training": asdict(config), "own states": {"plan": json.loads(plan.to_json())}}
        self.processes.claim(folder / "config.json", made)
        measured = self.processes.first(lambda: _finished(folder / "finished.json"))
        if measured is None:
            steps(0, 0.0)
        fresh = range(used, used + max(16, used // 2))
        check = range(fresh.stop, fresh.stop + max(16, used // 16))
        reference = Plan.parse(CONVERGED)
        x0, cond, w = starts.rows(check.start, check.stop)
        teacher = starts.guided(self.model, w)
        if measured is None:
            exact = sample(reference, teacher, x0, cond)
            error = lambda r: rollout_error(r, plan, teacher, x0, cond, exact)
            before = error(trained)
        states = _Later(lambda: collect(trained, self.model, plan, starts, fresh, bf16=config.bf16))
        objective = _Prediction(copy.deepcopy(trained), [drawn, states], config.batch)
        tuned: Any = run(objective, folder, config, made, self.processes, steps)
        if measured is None:
            after = error(tuned.to(starts.device))
            measured = {
                "plan": plan.name,
                "images": len(check),
                "reference": reference.name,
                "before": before,
                "after": after,
                "kept": after["rmse"] < before["rmse"],
            }
        chosen = tuned if measured["kept"] else trained
        result = {"rollout": measured}

        def finish() -> None:
            write(chosen, asdict(config), measured=result)
            write_json(folder / "finished.json", result)

        self.processes.first(finish)


@torch.no_grad()
def held_out_errors(
    refiner: VelocityRefiner, drawn: Trajectories, rows: int = 256
) -> dict[str, Any]:
    """Mean squares of the predicted velocity minus the teacher's, on trajectories held out.

    Returns:
        for gaps of up to 3 steps and of all sizes trained on, the errors of the refiner, of the
        last velocity again, and of linear extrapolation.
    """
    errors = {}
    for gap in sorted({min(3, drawn.gap), drawn.gap}):
        b = drawn.batch(rows, torch.Generator().manual_seed(0), gap=gap, held_out=True)
        b = b.to(next(refiner.parameters()).device)
        last = b.a[1]
        guesses = {
            "refiner": refiner.predict(b.x, b.t, b.cond, b.a, b.b, b.guidance),
            "last velocity": last,
            "linear extrapolation": last + b.step,
        }
        off = {name: float((guess - b.v).square().mean()) for name, guess in guesses.items()}
        errors[f"mean square, gaps of 1 to {gap} steps"] = off
    return errors


class _Source(Protocol):
    def batch(self, n: int, generator: torch.Generator) -> Batch: ...


class _Later:
    """A source that is made when it is first drawn from: not at all by a run that has ended."""

    def __init__(self, make: Callable[[], _Source]) -> None:
        self.make = cache(make)

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        return self.make().batch(n, generator)


class _Prediction:
    """The mean square of predicted velocities, an equal part of the batch from each source."""

    def __init__(
        self,
        network: VelocityRefiner,
        sources: Sequence[_Source],
        batch: int,
        write: Callable[[Any, dict[str, Any]], None] | None = None,
    ) -> None:
        self.network, self.sources, self.write = network, sources, write
        self.rows = max(1, batch // len(sources))

    def loss(self, forward: Any, generator: torch.Generator, device: torch.device) -> Tensor:
        batches = (s.batch(self.rows, generator).to(device) for s in self.sources)
        losses = [_loss(forward, b) for b in batches]
        return torch.stack(losses).mean()

    def export(self, network: Any, training: dict[str, Any]) -> None:
        if self.write:
            self.write(network, training)

    def preview(self, network: Any, step: int) -> None:
        pass


def _loss(forward: Any, b: Batch) -> Tensor:
    """Mean squares over rows, each divided by the change that linear extrapolation makes."""
    square = lambda a: a.square().flatten(1).mean(1)
    off = square(forward(b.x, b.t, b.cond, [b.b, b.a], b.guidance) - b.v)
    change = square(b.step)
    # fields that are constant in time change by nothing
    return (off / (change + 0.1 * change.mean()).clamp(min=1e-12)).mean()


def _new(model: Any, config: RefinerConfig, starts: Starts) -> VelocityRefiner:
    """The refiner before training."""
    if config.kind == "velocity":
        return VelocityRefiner.from_model(
            model, starts.guidance, block=config.block, width=config.width
        )
    cond, classes = starts.cond, 0
    if isinstance(cond, Tensor) and cond.ndim == 1 and not cond.is_floating_point():
        null = model.null_condition(cond) if hasattr(model, "null_condition") else cond
        every = torch.cat([cond, null.to(cond)]).long()
        if every.min() < 0 or every.max() >= MOST_CLASSES:
            raise ValueError(
                f"cond={shown(cond)}: holds {int(every.min())} to {int(every.max())}; number the "
                f"classes from 0, below {MOST_CLASSES:,}, or pass floating point conditions"
            )
        classes = 1 + int(every.max())
    width = {} if config.width is None else {"width": config.width}
    refiner = VelocityRefiner.small(starts.shape, starts.guidance, classes=classes, **width)
    return refiner.to(starts.device)


class _Training(Schema):
    """Of the options in ``config.json`` of a run."""

    steps: int = Entry(ge=1)


class _Options(Schema):
    training: _Training


class _Rollout(Schema):
    """What ``finished.json`` says of the second phase."""

    plan: str
    images: int
    reference: str
    before: dict[str, float]
    after: dict[str, float]
    kept: bool


class _Finished(Schema):
    rollout: _Rollout


def _finished(path: Path) -> dict[str, Any] | None:
    """The measured numbers of a second phase that has ended, else None."""
    if not path.is_file():
        return None
    try:
        return read_json(path, _Finished).rollout.model_dump()
    except ValueError:
        warn_damaged(path, "damaged")
        return None


def _config(options: dict[str, Any]) -> RefinerConfig:
    known = [f.name for f in fields(RefinerConfig)]
    for name, value in options.items():
        if name not in known:
            near = did_you_mean(name, [*known, "noise", "cond", "folder", "plan", "report"])
            raise ValueError(
                f"train_refiner({name}={shown(value)}): has no argument {name!r}"
                f"{near or '; it takes ' + ', '.join(known)}"
            )
    return RefinerConfig(**options)


def _plan(plan: Plan | str | None, shift: float) -> Plan | None:
    """The plan whose states a second phase goes on with."""
    if plan is None:
        return None
    made = mixed_plan(plan, shift) if isinstance(plan, str) else plan
    if not isinstance(made, Plan):
        raise ValueError(f"plan={shown(plan)}: must be a Plan, or a text such as 'MMRMRMRM'")
    asked = [
        row.model_time not in {t for _, t in row.history} for row in made.rows if _refines(row)
    ]
    if not any(asked):
        raise ValueError(f"plan {made.name!r}: asks the refiner nothing; take one with R")
    if (made.times[0], made.times[-1]) != (0, 1):
        raise ValueError(f"plan {made.name!r}: must lead from noise (t=0) to data (t=1)")
    return made


def _refines(row: Row) -> bool:
    return row.evaluator == "refiner"


def _identity(model: Field, starts: Starts, trajectories: int) -> str:
    x, cond, w = starts.rows(0, min(8, trajectories))
    return identity(model, x, cond, guidance=1.0 if starts.guidance == (1.0, 1.0) else w)


def _iterations(
    folder: Path, config: RefinerConfig, refiner: VelocityRefiner, starts: Starts
) -> int:
    """How many fit into the minutes: as a run in ``folder`` found out, or by three on trial."""
    path = folder / "config.json"
    if path.is_file():
        return read_json(path, _Options).training.steps
    trial = copy.deepcopy(refiner)
    steps = optimizers(trial, config.training(1))
    x, cond, w = starts.rows(0, config.batch)
    t = torch.full_like(w, 0.3)
    b = Batch(x, 2 * t, cond, (t, x), (t / 2, x), w, x)
    for i in range(4):
        if i == 1:
            start = time.perf_counter()
        with autocast(x.device, config.bf16):
            loss = _loss(trial, b)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in steps:
            optimizer.step()
        loss.item()  # waits for the device
    return max(1, round(60 * config.minutes / (time.perf_counter() - start) * 3))


def _report(report: Report | None, what: str, steps: int, step: int, loss: float) -> None:
    if report:
        report(what, step, steps)
