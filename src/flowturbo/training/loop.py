"""The training loop, on accelerate: one process or many, resumable to the bit.

Step ``s`` draws its images, noise, times and dropped conditions from a generator seeded with the
run's seed, ``s`` and the process, so a run that was killed and resumed repeats nothing and ends
with the weights of a run that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flowturbo import noise
from flowturbo.progress import Progress, Report
from flowturbo.training.checkpoints import Checkpoints, restore, tensors_of
from flowturbo.training.config import TrainConfig
from flowturbo.training.devices import autocast, use_bf16
from flowturbo.training.log import Log
from flowturbo.training.optimizers import averaged, optimizers
from flowturbo.training.processes import Processes
from flowturbo.training.throughput import Throughput, peak_rate
from flowturbo.types import JsonObject

__all__ = ["Objective", "Run", "run"]

REPORTED = 1.0  # seconds between reports, about
COUNTED = 2  # images that operations are counted on

N = TypeVar("N", bound=nn.Module)
B = TypeVar("B")


class Objective(Protocol[N, B]):
    """What a run optimises."""

    @property
    def network(self) -> N:
        """What is trained."""
        ...

    def draw(self, n: int, generator: torch.Generator) -> B:
        """A batch of ``n`` images with all random values, as nested tensors of ``n`` rows."""
        ...

    def loss(self, forward: Callable[..., Tensor], batch: B, device: torch.device) -> Tensor:
        """The mean loss of a batch or of a part of it; ``forward`` is the network as it is run."""
        ...

    def export(self, network: N, training: JsonObject) -> None:
        """Write the averaged network, with a record of how it was trained."""
        ...

    def preview(self, network: N, step: int) -> None:
        """Show what the averaged network can do."""
        ...


def run(
    objective: Objective[N, B],
    out: Path,
    config: TrainConfig,
    made: dict[str, JsonObject],
    processes: Processes,
    report: Report | None = None,
    *,
    stage: str = "training",
) -> N:
    """Run an objective to the last step in the folder ``out``, resuming what is there.

    ``out`` must be held by this run; ``made`` is what the result depends on, and a folder contains
    one run. A run that has ended is exported again. Returns the averaged network. Raises as
    `flowturbo.training.train` does.
    """
    state = Run(objective, out, config, made, processes)
    state.resume()
    if state.step == config.steps:
        state.export()
    state.loop(report, stage)
    return state.averaged_network


class Run(Generic[N, B]):
    """The state of a run: network, average, optimizers, step."""

    def __init__(
        self,
        objective: Objective[N, B],
        out: Path,
        config: TrainConfig,
        made: dict[str, JsonObject],
        processes: Processes,
    ) -> None:
        self.config, self.objective, self.processes = config, objective, processes
        folder = out / "checkpoints"
        empty = not folder.is_dir()  # killed before there was anything to resume
        self.checkpoints = Checkpoints(
            folder, processes.claim(out / "config.json", made, empty=empty)
        )
        self.log = Log(out)
        network = objective.network
        self.average = averaged(network, config.ema, processes.device)
        self.network = processes.parallel(network)
        self.optimizers = optimizers(network, config)
        self.forward: Callable[..., Tensor] = (
            torch.compile(self.network) if config.compile else self.network
        )
        self.step = 0

    @property
    def averaged_network(self) -> N:
        """The network with the averaged weights."""
        return cast(N, self.average.module)

    def resume(self) -> None:
        """Load the last intact checkpoint, if there is one, and truncate the log to it."""
        step, tensors = self.processes.in_turn(self.checkpoints.last)
        if step:
            restore(tensors, self._modules, self.optimizers)
        self.step = step
        self.processes.first(lambda: self.log.cut(step))

    def loop(self, report: Report | None, stage: str) -> None:
        """Run to the last step, logging, saving and exporting on the way."""
        config, start = self.config, time.perf_counter()
        losses: list[Tensor] = []
        interval = math.gcd(50, config.save_every)  # a resumed run logs the same lines
        watched = self.processes.index == 0 and (report is not None or self.processes.tracked)
        speed = self._throughput(watched and self.step < config.steps)
        if config.compile and watched and report and self.step < config.steps:
            report(Progress("compilation, with the first step", 0, None))
        while self.step < config.steps:
            losses.append(self.advance())
            self.step += 1
            last = self.step == config.steps
            logged = self.step % interval == 0 or last
            if logged:
                seconds = time.perf_counter() - start
                self.processes.first(lambda: self._log(losses, seconds))  # noqa: B023
            if self.processes.index == 0 and (logged or speed.seconds > REPORTED):
                values = {"loss": _mean(losses), **speed.values(self.step)}
                if report:
                    report(Progress(stage, self.step, config.steps, **values))
                if logged:
                    values["lr"] = config.lr_at(self.step - 1)
                    self.processes.track(values, self.step)
            losses = [] if logged else losses
            # the checkpoint comes last: killed before it, a resumed run does the rest again
            if config.preview_every and (self.step % config.preview_every == 0 or last):
                preview = lambda: self.objective.preview(self.averaged_network, self.step)
                self.processes.first(preview)
            if self.step % config.save_every == 0 or last:
                self.export()
                self.processes.first(self._save)

    def advance(self) -> Tensor:
        """One step; returns its loss."""
        config, index, n = self.config, self.processes.index, self.config.accumulate
        generator = torch.Generator().manual_seed(noise.mixed(config.seed, index, self.step))
        batch = self.objective.draw(n * config.batch, generator)
        losses = []
        for i in range(n):
            with self.processes.synchronized(self.network, i == n - 1):
                losses.append(self._backward(self.forward, _part(batch, i, n), n))
        nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.average.update_parameters(self.objective.network)
        return torch.stack(losses).mean()

    def _backward(self, forward: Callable[..., Tensor], batch: B, passes: int = 1) -> Tensor:
        """Add the gradients of one of the batches of a step; returns its loss."""
        device = self.processes.device
        with autocast(device, self.config.bf16):
            loss = self.objective.loss(forward, batch, device)
        (loss / passes).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def export(self) -> None:
        """Write the averaged network, and the plot."""
        training = {**self.config.to_dict(), "step": self.step, "torch": torch.__version__}

        def write() -> None:
            if not all(p.half().isfinite().all() for p in self.average.parameters()):
                raise ValueError(self._diverged("the weights are not finite in half precision"))
            self.objective.export(self.averaged_network, training)
            self.log.plot()

        self.processes.first(write)

    def _save(self) -> None:
        self.checkpoints.write(self.step, tensors_of(self._modules, self.optimizers))

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"network": self.objective.network, "average": self.average}

    def _log(self, losses: list[Tensor], seconds: float) -> None:
        """Add a line to the log; refuses a loss that is not finite."""
        loss = _mean(losses)
        if not math.isfinite(loss):
            raise ValueError(self._diverged(f"the loss is {loss}"))
        self.log.add(self.step, loss, seconds)

    def _diverged(self, what: str) -> str:
        return (
            f"{what} at step {self.step}: start again in another folder with a lower lr than "
            f"{self.config.lr}"
        )

    def _throughput(self, watched: bool) -> Throughput:
        """The speed of the steps to come, compared with the peak of the devices if ``watched``."""
        config, count, peak = self.config, self.processes.count, None
        if watched:
            batch = self.objective.draw(COUNTED, torch.Generator().manual_seed(config.seed))
            step = lambda: self._backward(self.objective.network, batch)
            device = self.processes.device
            dtype = torch.bfloat16 if use_bf16(device, config.bf16) else torch.float32
            peak = peak_rate(step, COUNTED, device, dtype)
            self.network.zero_grad()
        images = config.batch * config.accumulate * count
        return Throughput(images, self.step, config.steps, peak and peak * count)


def _part(batch: B, i: int, n: int) -> B:
    """Rows of part ``i`` of ``n`` of the tensors of a batch."""
    if n == 1:
        return batch
    rows = lambda a: a.chunk(n)[i] if isinstance(a, Tensor) and a.ndim else a
    return cast(B, tree_map(rows, batch))


def _mean(losses: list[Tensor]) -> float:
    return float(torch.stack(losses).mean())
