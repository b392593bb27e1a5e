"""How a flow model is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch

from flowturbo.checks import flag, known_keywords, number, one_of, whole
from flowturbo.training.objectives import Times
from flowturbo.types import JsonObject

__all__ = ["TrainConfig"]

_WHOLE = {"steps": 1, "batch": 1, "accumulate": 1, "save_every": 1, "warmup": 0, "preview_every": 0}


@known_keywords
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a flow model is trained.

    Attributes:
        steps: number of optimizer steps.
        batch: images per process in each forward and backward pass.
        accumulate: passes per optimizer step (gradient accumulation); the result is that of a batch
            this many times as large, in the memory of one.
        lr: peak learning rate.
        warmup: steps of linear learning rate warm-up, cut to a tenth of ``steps``.
        schedule: learning rate after the warm-up: constant, cosine decay to 0, or trapezoid, which
            is constant and decays linearly to 0 over the last ``tail`` of the steps.
        tail: fraction of the steps in which the trapezoid schedule decays, in (0, 1].
        optimizer: optimizer, adamw or muon; muon is for the weight matrices of the blocks, with
            AdamW for the rest.
        weight_decay: weight decay of the optimizer.
        ema: decay of the exponential moving average of the weights, which is what is exported; it
            is ramped up to this value.
        clip: largest norm of the gradient, beyond which it is scaled down.
        times: distribution of training times: uniform, logit-normal, or diffusion, which is uniform
            in the time of a diffusion model.
        dropout: probability of replacing a condition by the null condition, for guidance.
        seed: seed of all random numbers, from 0.
        bf16: run the network under bfloat16 autocast, if the device supports it.
        compile: compile the network with torch.compile.
        save_every: steps between checkpoints.
        preview_every: steps between preview images, 0 for none.
    """

    steps: int = 20_000
    batch: int = 128
    accumulate: int = 1
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
        warmup = min(self.warmup, self.steps // 10)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "cosine":
            done = (step - warmup) / max(1, self.steps - warmup)
            return self.lr * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * done))))
        left = (self.steps - step) / (self.tail * self.steps)
        return self.lr * (min(1.0, left) if self.schedule == "trapezoid" else 1.0)

    def to_dict(self) -> JsonObject:
        """The fields, for the records of a run; ``accumulate`` only if it is not 1.

        This allows runs from before gradient accumulation was added to be resumed.
        """
        return {k: v for k, v in asdict(self).items() if (k, v) != ("accumulate", 1)}
