"""The training loop, on accelerate: one process or many, resumable to the bit.

Step ``s`` draws its images, noise, times and dropped conditions from a generator seeded with the
run's seed, ``s`` and the process, so a run that was killed and resumed repeats nothing and ends
with the weights of a run that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from flowturbo import checks, noise
from flowturbo.checks import flag, known_keywords, number, one_of, shown, whole
from flowturbo.digests import content
from flowturbo.files import atomic_write
from flowturbo.images import image_grid, save_png, to_pil
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.codec import Codec, Pixels
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.plan import Plan
from flowturbo.sampling import sample
from flowturbo.schema import Schema, check
from flowturbo.training.checkpoints import Checkpoints, restore, tensors_of
from flowturbo.training.data import Data
from flowturbo.training.objectives import (
    Times,
    draw_times,
    drop_condition,
    flow_loss,
    noise_loss,
)
from flowturbo.training.processes import Processes

__all__ = ["FlowMatching", "Objective", "Run", "TrainConfig", "identified", "run", "train"]

REPORTED = 1.0  # seconds between reports, about
_WHOLE = {"steps": 1, "batch": 1, "save_every": 1, "warmup": 0, "preview_every": 0}


@known_keywords
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
        keep = lambda name, value: object.__setattr__(self, name, value)
        for name, least in _WHOLE.items():
            keep(name, whole(name, getattr(self, name), least, 2**32 - 1))
        keep("seed", whole("seed", self.seed, 0, 2**23 - 1))
        for name in ("lr", "clip"):
            keep(name, number(name, getattr(self, name), above=0))
        keep("weight_decay", number("weight_decay", self.weight_decay, 0))
        keep("tail", number("tail", self.tail, above=0, most=1))
        for name in ("ema", "dropout"):
            keep(name, number(name, getattr(self, name), 0))
            if getattr(self, name) >= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be below 1")
        one_of("schedule", self.schedule, ("constant", "cosine", "trapezoid"))
        one_of("optimizer", self.optimizer, ("adamw", "muon"))
        one_of("times", self.times, ("uniform", "logit-normal", "diffusion"))
        for name in ("bf16", "compile"):
            flag(name, getattr(self, name))

    def lr_at(self, step: int) -> float:
        """The learning rate of step ``step``, from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "cosine":
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.lr * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done))))
        left = (self.steps - step) / (self.tail * self.steps)
        return self.lr * (min(1.0, left) if self.schedule == "trapezoid" else 1.0)


@known_keywords
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
    ``previews/`` and ``checkpoints/`` (the last two).

    Args:
        architecture: of the network; must fit ``data``.
        data: what to train on: pixels in [-1, 1], or states of its ``codec``, if it has one, as
            `flowturbo.training.LatentData`; the card then names that.
        out: the folder.
        config: how; the defaults of `TrainConfig` if not given.
        card: entries for the model's card: name, licences, defaults.
        report: called with (step, loss), about every second and at each line of the log.

    Returns:
        ``out``.

    Raises:
        ValueError: if the data do not fit, ``out`` is in use, holds a run of another configuration
            or of other data, or no whole checkpoint, or the loss is not finite.
        OSError: if the disk is full; the last whole checkpoint stays.
        ImportError: if accelerate is missing: ``pip install 'flowturbo[train]'``.

    Warns:
        UserWarning: if a checkpoint is damaged, and the one before it is taken.
    """
    config = TrainConfig() if config is None else config
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config={shown(config)}: must be a TrainConfig")
    if not isinstance(architecture, SiTConfig):
        raise ValueError(f"architecture={shown(architecture)}: must be a SiTConfig")
    out, card = checks.path("out", out), {} if card is None else _checked_card(card)
    if report is not None:
        checks.function("report", report, "step, loss")
    check_data(data)
    objective = FlowMatching(architecture, data, out, config, card)
    made = {
        "architecture": architecture.to_dict(),
        "training": asdict(config),
        "data": identified(data),
    }
    processes = Processes()
    with processes.exclusive(out):
        run(objective, out, config, made, processes, report)
    return out


def _checked_card(card: Any) -> dict[str, Any]:
    """``card``, which must be what a JSON object can hold."""
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise ValueError(f"card={shown(card)}: must be what JSON can hold ({e})") from None
    if not isinstance(card, dict):
        raise ValueError(f"card={shown(card)}: must be a dictionary")
    return card


def check_data(data: Any) -> None:
    """Refuse what cannot be trained on."""
    if not all(hasattr(data, name) for name in ("shape", "batch", "examples", "condition")):
        raise ValueError(f"data={shown(data)}: must be data such as load_data returns")


def identified(data: Data) -> dict[str, Any]:
    """What a run may not be resumed with another of: number, labels and content of the data.

    Data without a ``digest()`` are known by a batch that they draw and their examples.
    """
    condition = data.condition or {}
    if hasattr(data, "digest"):
        digest = data.digest()
    else:
        drawn = data.batch(64, torch.Generator().manual_seed(0))
        digest = content([drawn, data.examples(16), condition])
    return {
        "images": len(data) if isinstance(data, Sized) else None,
        "labels": condition.get("labels"),
        "digest": digest,
    }


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
    out: Path,
    config: TrainConfig,
    made: dict[str, dict[str, Any]],
    processes: Processes,
    report: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Run an objective to the last step in the folder ``out``, resuming what is there.

    ``out`` must be held by this run; ``made`` says what the result follows from, and a folder holds
    one run. A run that has ended is exported again. Returns the averaged network. Raises as `train`
    does.
    """
    state = Run(objective, out, config, made, processes)
    state.resume()
    if state.step == config.steps:
        state.export()
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
        _check_condition(architecture, data.condition or {})

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
        page = image_grid(to_pil(pictures), 10, scale=2 if pictures.shape[2] <= 64 else 1)
        meta = {"step": str(step), "guidance": str(guidance)}
        save_png(page, self.out / "previews" / f"step-{step:08d}.png", meta)


class Run:
    """The state of a run: network, average, optimizers, step."""

    def __init__(
        self,
        objective: Objective,
        out: Path,
        config: TrainConfig,
        made: dict[str, dict[str, Any]],
        processes: Processes,
    ) -> None:
        self.out, self.config, self.objective, self.processes = out, config, objective, processes
        self.checkpoints = Checkpoints(
            out / "checkpoints", processes.claim(out / "config.json", made)
        )
        network = objective.network
        average: Any = torch.optim.swa_utils.AveragedModel(
            network, device=processes.device, multi_avg_fn=_ema(config.ema)
        )
        self.average = average
        self.network = processes.parallel(network)
        self.optimizers = optimizers(network, config)
        self.forward = torch.compile(self.network) if config.compile else self.network
        self.step = 0

    def resume(self) -> None:
        """Load the last whole checkpoint, if there is one, and cut the log to it."""
        step, tensors = self.processes.in_turn(self.checkpoints.last)
        if step:
            restore(tensors, self._modules, self.optimizers)
        self.step = step
        self.processes.first(self._cut_log)

    def loop(self, report: Callable[[int, float], None] | None) -> None:
        """Run to the last step, logging, saving and drawing on the way."""
        config, losses = self.config, []
        start = told = time.perf_counter()
        interval = math.gcd(50, config.save_every)  # a resumed run logs the same lines
        first = self.processes.index == 0
        while self.step < config.steps:
            losses.append(self.advance())
            self.step += 1
            last = self.step == config.steps
            logged, now = self.step % interval == 0 or last, time.perf_counter()
            if logged:
                self.processes.first(lambda: self._log(losses, now - start))  # noqa: B023
            if report and first and (logged or now - told > REPORTED):
                report(self.step, _mean(losses))
                told = now
            losses = [] if logged else losses
            # the checkpoint comes last: killed before it, a resumed run does the rest again
            if config.preview_every and (self.step % config.preview_every == 0 or last):
                preview = lambda: self.objective.preview(self.average.module, self.step)
                self.processes.first(preview)
            if self.step % config.save_every == 0 or last:
                self.export()
                self.processes.first(self._save)

    def advance(self) -> Tensor:
        """One step; returns its loss."""
        config, device, index = self.config, self.processes.device, self.processes.index
        generator = torch.Generator().manual_seed(noise.mixed(config.seed, index, self.step))
        with autocast(device, config.bf16):
            loss = self.objective.loss(self.forward, generator, device)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.average.update_parameters(self.objective.network)
        return loss.detach()

    def export(self) -> None:
        """Write the averaged network, and the plot."""
        training = {**asdict(self.config), "step": self.step, "torch": torch.__version__}

        def write() -> None:
            if not all(p.half().isfinite().all() for p in self.average.parameters()):
                raise ValueError(self._diverged("the weights are not finite in half precision"))
            self.objective.export(self.average.module, training)
            self._plot()

        self.processes.first(write)

    def _save(self) -> None:
        self.checkpoints.write(self.step, tensors_of(self._modules, self.optimizers))

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"network": self.objective.network, "average": self.average}

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines of the log; half a line, say of a run that was killed, is left out."""
        path = self.out / "log.jsonl"
        if not path.is_file():
            return []
        found, damaged = [], 0
        for text in path.read_bytes().splitlines():
            try:
                line = check(json.loads(text), _Line, str(path))
                found.append({"step": line.step, "loss": line.loss, "seconds": line.seconds})
            except (ValueError, RecursionError):
                damaged += 1
        if damaged:
            checks.warn(f"{path}: left out {damaged} damaged lines")
        return found

    def _cut_log(self) -> None:
        lines = [x for x in self._lines() if x["step"] <= self.step]
        if lines or (self.out / "log.jsonl").exists():
            with atomic_write(self.out / "log.jsonl") as path:
                path.write_text("".join(json.dumps(x) + "\n" for x in lines))

    def _log(self, losses: list[Tensor], seconds: float) -> None:
        """Add a line; refuses a loss that is not finite."""
        line = {"step": self.step, "loss": _mean(losses), "seconds": round(seconds, 1)}
        if not math.isfinite(line["loss"]):
            raise ValueError(self._diverged(f"the loss is {line['loss']}"))
        path = self.out / "log.jsonl"
        try:
            with path.open("a") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as e:
            raise OSError(
                f"cannot write {path}: {e.strerror or e}; make room and repeat the command, which "
                "goes on from the last checkpoint"
            ) from e

    def _diverged(self, what: str) -> str:
        return (
            f"{what} at step {self.step}: start again in another folder with a lower lr than "
            f"{self.config.lr}"
        )

    def _plot(self) -> None:
        from matplotlib.figure import Figure

        lines = self._lines()
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([x["step"] for x in lines], [x["loss"] for x in lines], linewidth=1)
        scale = "log" if all(x["loss"] > 0 for x in lines) else "linear"
        axes.set(xlabel="step", ylabel="loss (mean square)", yscale=scale)
        with atomic_write(self.out / "loss.png") as path:
            figure.savefig(path, dpi=150)


class _Line(Schema):
    """Of the log."""

    step: int
    loss: float
    seconds: float


def _mean(losses: list[Tensor]) -> float:
    return float(torch.stack(losses).mean())


def _check_condition(architecture: SiTConfig, condition: dict[str, Any]) -> None:
    """Refuse data whose labels or tokens the network has no embeddings for."""
    kind, wanted = condition.get("kind"), {}
    if kind == "class":
        wanted = {"classes": len(condition["labels"])}
    if kind == "text":
        tokenizer = condition["tokenizer"]
        words = len(tokenizer["vocabulary"]) + 1
        wanted = {"vocabulary": words, "text_length": tokenizer["length"]}
    for name, value in wanted.items():
        has = getattr(architecture, name)
        if has < value or (has > value and name != "vocabulary"):
            raise ValueError(
                f"the network has {name}={has}, the data need {value}; pass SiTConfig({name}="
                f"{value})"
            )


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
