r"""Training of a velocity refiner on stored teacher trajectories: no data, no teacher calls.

The loss is the mean square of the refiner's velocity at the state ``x_k`` of a trajectory minus
the stored ``v_k``, where the refiner is shown ``v_a`` and ``v_b`` of the same trajectory, with gaps
from one step to a quarter of the steps between them. Each row's is divided by its squared change by
linear extrapolation, and a tenth of the batch's mean of that, so that small gaps count as well. A
second phase goes on with the states that a given plan visits when it runs with the refiner.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flowturbo.field import Field, map_condition
from flowturbo.files import claim, write_json
from flowturbo.models.model import Model
from flowturbo.plan import Plan
from flowturbo.refiner.checkpoint import load_refiner, save_refiner
from flowturbo.refiner.velocity import VelocityRefiner
from flowturbo.sampler import sample
from flowturbo.train.loop import TrainConfig, autocast, optimizers, run
from flowturbo.train.own_states import collect, mixed_plan, rollout_error
from flowturbo.train.trajectories import Batch, Starts, Trajectories, draw_trajectories

__all__ = ["RefinerConfig", "Report", "held_out_errors", "train_refiner"]

RUN = "refiner-run"
CONVERGED = "AB4RK:73@0.5"  # for what is compared
Report = Callable[[str, int, int], None]


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
        if self.kind not in ("velocity", "conv"):
            raise ValueError(f"kind={self.kind!r}: must be 'velocity' or 'conv'")
        if not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes}: must be above 0")
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: must be at least 1")
        self.training(1)

    def training(self, iterations: int) -> TrainConfig:
        """The same for the training loop."""
        names = ("batch", "ema", "seed", "bf16", "compile", "save_every")
        optimizer = self.optimizer or ("muon" if hasattr(torch.optim, "Muon") else "adamw")
        slow = (self.kind, optimizer) == ("velocity", "adamw")
        return TrainConfig(
            steps=iterations,
            optimizer=optimizer,
            lr=self.lr or (5e-4 if slow else 2e-3),
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
        ValueError: if an argument does not do, or ``folder`` holds a run with others.
        OSError: if the trajectories do not fit on the disk.
        ImportError: if accelerate is missing: ``pip install 'flowturbo[train]'``.
    """
    config = RefinerConfig(**options)
    starts = Starts.of(model, config.guidance, config.seed, noise, cond)
    own = mixed_plan(plan, config.shift) if isinstance(plan, str) else plan
    torch.manual_seed(config.seed)
    refiner = _new(model, config, starts)
    if noise is not None:
        config = replace(config, trajectories=len(noise))
    recipe = {
        **asdict(config),
        "guidance": list(starts.guidance),
        "model": model.fingerprint if isinstance(model, Model) else None,
        "given": _digest(noise, cond),
    }
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(folder or temporary)
        iterations = config.iterations or _iterations(out / RUN, config, refiner, starts)
        training = config.training(iterations)
        made = {"refiner": recipe, "training": asdict(training)}
        claim(out / RUN / "config.json", made)
        drawn = draw_trajectories(
            model,
            out / RUN,
            starts,
            config.steps,
            config.trajectories,
            shift=config.shift,
            jitter=config.jitter,
            bf16=config.bf16,
            report=report and partial(report, "trajectories"),
        )

        def write(refiner: Any, training: dict[str, Any], measured: dict[str, Any]) -> None:
            measured = {**held_out_errors(refiner, drawn), **measured}
            refiner.card = {"recipe": recipe, "training": training, "measured": measured}
            save_refiner(out, refiner, model)
            if "rollout" not in measured:
                save_refiner(out / RUN, refiner, model)  # stays as it is after the first phase

        objective = _Prediction(refiner, [drawn], config.batch, partial(write, measured={}))
        steps = partial(_report, report, "iterations", iterations)
        trained: Any = run(objective, out / RUN, training, made, steps)
        if own is not None:
            steps = partial(_report, report, "on the plan's states", max(1, iterations // 4))
            trained = trained.to(starts.device)
            _own_states(trained, model, own, drawn, out / RUN, training, write, steps)
        return load_refiner(out, device=starts.device)  # type: ignore[return-value]


def _own_states(
    refiner: Any,
    model: Field,
    plan: Plan,
    drawn: Trajectories,
    out: Path,
    config: TrainConfig,
    write: Callable[..., None],
    report: Callable[[int, float], None],
) -> None:
    """A quarter of the iterations more, half of each batch on the plan's own states."""
    starts, used = drawn.starts, len(drawn.arrays)
    fresh = range(used, used + max(16, used // 2))
    check = range(fresh.stop, fresh.stop + max(16, used // 16))
    reference = Plan.parse(CONVERGED)
    config = replace(config, steps=max(1, config.steps // 4), lr=config.lr / 4)
    made = {"training": asdict(config), "own states": {"plan": json.loads(plan.to_json())}}
    finished = out / "own-states" / "finished.json"
    claim(out / "own-states" / "config.json", made)
    if finished.is_file():
        return
    x0, cond, scales = starts.rows(check.start, check.stop)
    teacher = starts.guided(model, scales)
    exact = sample(reference, teacher, x0, cond)
    error = lambda r: rollout_error(r, plan, teacher, x0, cond, exact)
    states = collect(refiner, model, plan, starts, fresh, bf16=config.bf16)
    sources: list[_Source] = [drawn, states]
    before = error(refiner)
    objective = _Prediction(copy.deepcopy(refiner), sources, config.batch)
    tuned: Any = run(objective, out / "own-states", config, made, report)
    after = error(tuned.to(starts.device))
    kept = after["rmse"] < before["rmse"]
    measured = {
        "rollout": {
            "plan": plan.name,
            "images": len(check),
            "reference": reference.name,
            "before": before,
            "after": after,
            "kept": kept,
        }
    }
    write(tuned if kept else refiner, asdict(config), measured=measured)
    write_json(finished, measured)


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
    return (off / (change + 0.1 * change.mean())).mean()


def _new(model: Any, config: RefinerConfig, starts: Starts) -> VelocityRefiner:
    """The refiner before training."""
    if config.kind == "velocity":
        return VelocityRefiner.from_model(
            model, starts.guidance, block=config.block, width=config.width
        )
    cond, classes = starts.cond, 0
    if isinstance(cond, Tensor) and cond.ndim == 1 and not cond.is_floating_point():
        null = model.null_condition(cond) if hasattr(model, "null_condition") else cond
        classes = 1 + int(max(cond.max(), null.max()))
    width = {} if config.width is None else {"width": config.width}
    refiner = VelocityRefiner.small(starts.shape, starts.guidance, classes=classes, **width)
    return refiner.to(starts.device)


def _iterations(
    folder: Path, config: RefinerConfig, refiner: VelocityRefiner, starts: Starts
) -> int:
    """How many fit into the minutes: as a run in ``folder`` found out, or by three on trial."""
    path = folder / "config.json"
    if path.is_file():
        return int(json.loads(path.read_text())["training"]["steps"])
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


def _digest(*given: Any) -> str:
    digest = hashlib.sha256()

    def add(c: Any) -> None:
        digest.update(c.cpu().numpy().tobytes() if isinstance(c, Tensor) else repr(c).encode())

    for value in given:
        map_condition(add, value)
    return digest.hexdigest()[:16]
