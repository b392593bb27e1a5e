"""The training loop, on accelerate: one process or many, resumable to the bit.

Step ``s`` draws its images, noise, times and dropped conditions from a generator seeded with the
run's seed, ``s`` and the process, so a run that was killed and resumed repeats nothing and ends
with the weights of a run that was not.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from flowturbo import noise
from flowturbo.files import claim, replacing
from flowturbo.images import save_png, sheet, to_pil
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.codec import Codec, Pixels
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.plan import Plan
from flowturbo.sampler import sample
from flowturbo.train.data import Data
from flowturbo.train.objectives import (
    Times,
    draw_times,
    drop_condition,
    flow_loss,
    noise_loss,
)

__all__ = ["FlowMatching", "Objective", "Run", "TrainConfig", "run", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a flow model is trained.

    Attributes:
        steps: optimizer steps in all.
        batch: images a step and process.
        lr: peak learning rate, above 0.
        warmup: steps of linear warm-up.
        schedule: after it: "constant", "cosine" to 0, or "trapezoid": constant, then linearly to 0
            over the last ``tail`` of the steps.
        tail: share of the steps, in (0, 1].
        optimizer: "adamw", or "muon" for the matrices of the blocks and AdamW for the rest.
        weight_decay: of the optimizer.
        ema: decay of the averaged weights, which are what is exported; rises to it from 0.
        clip: largest norm of the gradient.
        times: distribution of training times.
        dropout: share of conditions replaced by the null condition, for guidance.
        seed: of everything random.
        bf16: run the network under bfloat16 autocast, where the device computes in it.
        compile: compile the network.
        save_every: steps between checkpoints.
        preview_every: steps between preview sheets, 0 for none.
    """

    steps: int = 20_000
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 200
    schedule: Literal["constant", "cosine", "trapezoid"] = "trapezoid"
    tail: float = 0.3
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    times: Times = "logit-normal"
    dropout: float = 0.1
    seed: int = 0
    bf16: bool = True
    compile: bool = True
    save_every: int = 1000
    preview_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be above 0")
        for name in ("ema", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be in [0, 1)")
        if not 0 <= self.seed < 2**23:
            raise ValueError(f"seed={self.seed}: must be from 0 to 2**23 - 1")
        if not 0 < self.tail <= 1:
            raise ValueError(f"tail={self.tail}: must be in (0, 1]")
        allowed = {
            "schedule": ("constant", "cosine", "trapezoid"),
            "optimizer": ("adamw", "muon"),
            "times": ("uniform", "logit-normal", "diffusion"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {values}")

    def lr_at(self, step: int) -> float:
        """The learning rate of step ``step``, from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "cosine":
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.lr * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done))))
        left = (self.steps - step) / (self.tail * self.steps)
        return self.lr * (min(1.0, left) if self.schedule == "trapezoid" else 1.0)


def train(
    architecture: SiTConfig,
    data: Data,
    out: str | Path,
    config: TrainConfig | None = None,
    *,
    card: dict[str, Any] | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Path:
    """Train a SiT on ``data`` into the folder ``out``, resuming what is there.

    ``out`` gets the exported model (``card.json``, ``model.safetensors``: the averaged weights in
    half precision), ``config.json``, ``log.jsonl`` (a line at least every 50 steps), ``loss.png``,
    ``previews/`` and ``checkpoints/`` (the last one only).

    Args:
        architecture: of the network; must fit ``data.shape``.
        data: what to train on: pixels in [-1, 1], or states of its ``codec``, if it has one, as
            `flowturbo.train.LatentData`; the card then names that.
        out: the folder.
        config: how; the defaults of `TrainConfig` if not given.
        card: entries for the model's card: name, licences, defaults.
        report: called with (step, loss) at each line of the log.

    Returns:
        ``out``.

    Raises:
        ValueError: if the data do not fit, ``out`` holds a run of another configuration, or the
            loss is not finite.
        ImportError: if accelerate is missing: ``pip install 'flowturbo[train]'``.
    """
    config = config or TrainConfig()
    objective = FlowMatching(architecture, data, Path(out), config, card or {})
    made = {"architecture": architecture.to_dict(), "training": asdict(config)}
    run(objective, out, config, made, report)
    return Path(out)


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """Autocast to bfloat16, if so; not on a CPU without instructions for it, 100 times slower."""
    enabled = bf16 and (device.type != "cpu" or has_bf16())
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def moved(device: torch.device, *drawn: Tensor | None) -> list[Any]:
    """What was drawn on the CPU, on ``device``; a CUDA device is not waited for."""
    pin = device.type == "cuda"
    return [
        a if a is None else (a.pin_memory() if pin else a).to(device, non_blocking=pin)
        for a in drawn
    ]


def has_bf16() -> bool:
    """Whether the CPU computes in bfloat16."""
    there = torch.backends.mkldnn.is_available()
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Objective(Protocol):
    """What a run optimises."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        ...

    def loss(self, forward: Any, generator: torch.Generator, device: torch.device) -> Tensor:
        """The loss of a batch drawn by ``generator``; ``forward`` is the network as it is run."""
        ...

    def export(self, network: Any, training: dict[str, Any]) -> None:
        """Write the averaged network, with how it was trained."""
        ...

    def preview(self, network: Any, step: int) -> None:
        """Draw what the averaged network can do."""
        ...


def run(
    objective: Objective,
    out: str | Path,
    config: TrainConfig,
    made: dict[str, dict[str, Any]],
    report: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Run an objective to the last step in the folder ``out``, resuming what is there.

    ``made`` says by what options; a folder holds one run. Returns the averaged network. Raises as
    `train` does.
    """
    state = Run(objective, Path(out), config, made)
    state.resume()
    state.loop(report)
    return state.average.module  # type: ignore[no-any-return]


class FlowMatching:
    """Flow matching of a SiT on data; a SiT that predicts the noise is trained on the noise."""

    def __init__(
        self,
        architecture: SiTConfig,
        data: Data,
        out: Path,
        config: TrainConfig,
        card: dict[str, Any],
    ) -> None:
        self.data, self.out, self.config = data, out, config
        condition = {"condition": data.condition} if data.condition else {}
        self.codec: Codec = getattr(data, "codec", None) or Pixels()
        self.card = {"path": "linear", "codec": self.codec.entry, **condition, **card}
        torch.manual_seed(config.seed)
        self.network = SiT(architecture)
        if self.network.shape != data.shape:
            raise ValueError(f"the network draws {self.network.shape}, the data are {data.shape}")

    def loss(self, forward: Any, generator: torch.Generator, device: torch.device) -> Tensor:
        """The loss of a batch with some conditions dropped."""
        config = self.config
        x1, cond = self.data.batch(config.batch, generator)
        x0 = torch.randn(x1.shape, generator=generator)
        t = draw_times(len(x1), config.times, generator)
        if cond is not None:
            null = self.network.null_condition(cond)
            cond = drop_condition(cond, null, config.dropout, generator)
        loss = noise_loss if self.network.config.prediction == "noise" else flow_loss
        return loss(forward, *moved(device, x0, x1, t, cond))

    def export(self, network: Any, training: dict[str, Any]) -> None:
        """Write the model."""
        self.codec.save(self.out)
        save_folder(self.out, network, {**self.card, "training": training})

    @torch.no_grad()
    def preview(self, network: Any, step: int) -> None:
        """A sheet of 40 pictures, the same seeds each time."""
        model = Model(network, self.card, codec=self.codec)
        x0 = noise.draw(range(40), model.shape, device=model.device)
        cond = self.data.examples(40)
        guidance = 1.0 if cond is None else 2.0
        cond = None if cond is None else cond.to(x0.device)
        x1 = sample(Plan.parse("AB2:12", shift=1.6), model, x0, cond, guidance=guidance)
        pictures = model.decode(x1)
        page = sheet(to_pil(pictures), 10, scale=2 if pictures.shape[2] <= 64 else 1)
        meta = {"step": str(step), "guidance": str(guidance)}
        save_png(page, self.out / "previews" / f"step-{step:08d}.png", meta)


class Run:
    """The state of a run: network, average, optimizers, step."""

    def __init__(
        self, objective: Objective, out: Path, config: TrainConfig, made: dict[str, Any]
    ) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as e:
            raise ImportError("training needs accelerate: pip install 'flowturbo[train]'") from e
        self.out, self.config, self.objective = out, config, objective
        claim(out / "config.json", made)
        self.accelerator = Accelerator(project_dir=str(out))
        network = objective.network
        average: Any = torch.optim.swa_utils.AveragedModel(
            network, device=self.accelerator.device, multi_avg_fn=_ema(config.ema)
        )
        self.average = average
        groups = optimizers(network, config)
        self.network, *self.optimizers = self.accelerator.prepare(network, *groups)
        self.accelerator.register_for_checkpointing(average)
        self.forward = torch.compile(self.network) if config.compile else self.network
        self.step = 0

    def resume(self) -> None:
        """Load the last whole checkpoint, if there is one, and cut the log to it."""
        found = sorted((self.out / "checkpoints").glob("step-*"))
        if not found:
            (self.out / "log.jsonl").unlink(missing_ok=True)
            return
        self.accelerator.load_state(str(found[-1]))
        self.step = int(found[-1].name.removeprefix("step-"))
        lines = [x for x in self._log() if x["step"] <= self.step]
        with replacing(self.out / "log.jsonl") as path:
            path.write_text("".join(json.dumps(x) + "\n" for x in lines))

    def loop(self, report: Callable[[int, float], None] | None) -> None:
        """Run to the last step, logging, saving and drawing on the way."""
        config, start, losses = self.config, time.perf_counter(), []
        interval = math.gcd(50, config.save_every)  # a resumed run logs the same lines
        while self.step < config.steps:
            losses.append(self.advance())
            self.step += 1
            last = self.step == config.steps
            if self.step % interval == 0 or last:
                loss = float(torch.stack(losses).mean())
                losses = []
                if not loss < float("inf"):
                    raise ValueError(
                        f"the loss is {loss} at step {self.step}: start again in another folder "
                        f"with a lower lr than {config.lr}"
                    )
                seconds = round(time.perf_counter() - start, 1)
                self._write_log({"step": self.step, "loss": loss, "seconds": seconds})
                if report and self.accelerator.is_main_process:
                    report(self.step, loss)
            # the checkpoint comes last: killed before it, a resumed run does the rest again
            due = config.preview_every and (self.step % config.preview_every == 0 or last)
            if due and self.accelerator.is_main_process:
                self.objective.preview(self.average.module, self.step)
            if self.step % config.save_every == 0 or last:
                self._save()

    def advance(self) -> Tensor:
        """One step; returns its loss."""
        config, device = self.config, self.accelerator.device
        process = self.accelerator.process_index
        generator = torch.Generator().manual_seed((config.seed << 40) + (process << 32) + self.step)
        with autocast(device, config.bf16):
            loss = self.objective.loss(self.forward, generator, device)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.network.parameters(), config.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.average.update_parameters(self.accelerator.unwrap_model(self.network))
        return loss.detach()

    def _save(self) -> None:
        """Write the exported model and a checkpoint; remove the checkpoint before."""
        folder = self.out / "checkpoints"
        temporary = folder / "writing"
        shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.save_state(str(temporary))
        if not self.accelerator.is_main_process:
            return
        training = {**asdict(self.config), "step": self.step, "torch": torch.__version__}
        self.objective.export(self.average.module, training)  # first: a checkpoint says it is done
        self._plot()
        kept = folder / f"step-{self.step:08d}"
        shutil.rmtree(kept, ignore_errors=True)
        temporary.rename(kept)
        for old in folder.glob("step-*"):
            if old != kept:
                shutil.rmtree(old)

    def _log(self) -> list[dict[str, Any]]:
        path = self.out / "log.jsonl"
        if not path.is_file():
            return []
        lines = path.read_text().splitlines()
        return [json.loads(x) for x in lines if x.endswith("}")]

    def _write_log(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.out / "log.jsonl").open("a") as f:
                f.write(json.dumps(line) + "\n")

    def _plot(self) -> None:
        from matplotlib.figure import Figure

        lines = self._log()
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([x["step"] for x in lines], [x["loss"] for x in lines], linewidth=1)
        axes.set(xlabel="step", ylabel="loss (mean square)", yscale="log")
        with replacing(self.out / "loss.png") as path:
            figure.savefig(path, dpi=150)


def _ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """Averaging for AveragedModel, with a decay that rises from 0.1 to ``decay``."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, number: Any) -> None:
        n = int(number)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def optimizers(network: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Those of ``config.optimizer`` for the parameters of ``network``."""
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    chosen = [config.optimizer == "muon" and "blocks." in n and p.ndim == 2 for n, p in named]
    matrices = [p for (_, p), c in zip(named, chosen, strict=True) if c]
    rest = [p for (_, p), c in zip(named, chosen, strict=True) if not c]
    decay = config.weight_decay
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, config.lr, (0.9, 0.99), weight_decay=decay)
    ]
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f"optimizer='muon' needs torch 2.9 or later: this is {torch.__version__}"
            )
        alike = "match_rms_adamw"
        found.append(torch.optim.Muon(matrices, config.lr, weight_decay=decay, adjust_lr_fn=alike))
    return found
