"""How a velocity refiner is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowturbo.checks import known_keywords, number, one_of, whole
from flowturbo.training.config import TrainConfig
from flowturbo.training.initial_states import guidance_range
from flowturbo.types import GuidanceRange

__all__ = ["RefinerConfig"]


@known_keywords
@dataclass(frozen=True, kw_only=True)
class RefinerConfig:
    """How a velocity refiner is trained.

    Attributes:
        kind: kind of network: velocity, a block of a SiT, or conv, a small network for any field.
        guidance: guidance scale, or range of scales, to train the refiner for.
        trajectories: number of teacher trajectories to train on; if noise is given, one for each
            noise sample.
        steps: evaluations of the model per trajectory, at least 3.
        shift: shift of the time grid of the trajectories.
        jitter: how far their times are moved at random, in steps, below 0.5.
        minutes: approximate training time, after the trajectories are computed.
        iterations: optimizer steps, instead of ``minutes``.
        block: index of the SiT block to start from; -1 is the last.
        width: width of the network; by default the model's, or 40 for a small one.
        batch: velocities per optimizer step.
        optimizer: optimizer, adamw or muon; by default muon, if torch has it.
        lr: peak learning rate; by default 2e-3, or 5e-4 with AdamW on a block.
        ema: decay of the exponential moving average of the weights, which is what is exported.
        seed: seed of all random numbers, from 0.
        bf16: run model and refiner under bfloat16 autocast, if the device supports it.
        compile: compile the refiner with torch.compile for training.
        save_every: iterations between checkpoints.
    """

    kind: Literal["velocity", "conv"] = "velocity"
    guidance: GuidanceRange = (1.0, 4.0)
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
        keep("guidance", guidance_range(self.guidance))
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
