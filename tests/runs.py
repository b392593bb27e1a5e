"""Tiny runs of both commands, and what may happen to their folders."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

import flowturbo as ft
from flowturbo.models.sit import SiTConfig
from flowturbo.training import ArrayData, TrainConfig, train

NETWORK = SiTConfig(size=4, channels=1, patch=2, width=8, depth=1, heads=1, classes=2)
QUICK = dict(batch=2, compile=False, bf16=False, warmup=2)
PICKLES = (
    "custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "optimizer_1.bin",
    "scheduler.bin", "sampler.bin", "scaler.pt", "pytorch_model.bin", "model.pt",
)  # fmt: skip


def toy(labels: str = "ab", bright: int = 200) -> ArrayData:
    """Four pictures of two classes."""
    images = torch.tensor([10, bright, 20, 210], dtype=torch.uint8)[:, None, None, None]
    classes = {"kind": "class", "labels": list(labels)}
    return ArrayData(images.expand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1]), classes)


def toy_run(out: Path, data: ArrayData | None = None, report=None, **changes) -> Path:
    """Six steps with three checkpoints."""
    options = {**QUICK, "steps": 6, "save_every": 2, "preview_every": 3, **changes}
    config = TrainConfig(**options)
    return train(NETWORK, data or toy(), out, config, card={"name": "toy"}, report=report)


def waves(x, t, cond):
    """A field without a fingerprint."""
    return torch.cos(4 * t + x)


def refiner_run(out: Path, field=waves, **changes) -> ft.refiner.VelocityRefiner:
    """Four iterations and a second phase of one, on trajectories of three batches."""
    noise = torch.randn(130, 2, generator=torch.Generator().manual_seed(0))
    few = dict(iterations=4, save_every=2, batch=4, steps=4, width=8, bf16=False)
    options = {"kind": "conv", "guidance": 1.0, "noise": noise, "plan": "AB2:FFRR"}
    return ft.train_refiner(field, folder=out, **options | few | changes)


def same(one: Path, two: Path, *names: str) -> None:
    """Both folders hold the same bytes under these names."""
    for name in names or ("model.safetensors", "card.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return Path.mkdir, (self.sprung,)


def trap(sprung: Path) -> bytes:
    """A pickle that makes a folder when it is loaded."""
    return pickle.dumps(Trap(sprung), protocol=2)
