"""Makes a trained `emoji` keep more strictly to the style it is asked for.

    python recipes/emoji/style.py --data emoji-data --start runs/emoji --out runs/emoji-styled

goes on training for 500 steps towards velocities pushed away from those of the same caption without
its style, by the model as it was: guidance that is learned (arXiv 2502.12154) and costs nothing
when pictures are drawn. The captions' contents are left to guidance as it is.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train import EmojiData, card

import flowturbo as ft
from flowturbo.path import interpolate, velocity
from flowturbo.train import TrainConfig
from flowturbo.train.loop import FlowMatching, moved, run
from flowturbo.train.objectives import draw_times, drop_condition

PUSH = 5.0  # at the most, at t = 3/4, times the difference that the style makes
GUIDANCE = 1.5  # of its pictures: less than before, since the style needs none
TRAINING = TrainConfig(
    steps=500, batch=128, lr=8e-4, optimizer="muon", warmup=20, tail=1.0, ema=0.99,
    times="uniform", save_every=100, preview_every=500,
)  # fmt: skip


class StyleGuided(FlowMatching):
    """Flow matching of data, pushed by a frozen copy of the network it starts from."""

    def __init__(self, model: ft.Model, data: EmojiData, out: Path) -> None:
        about = card(data, model.name)
        about |= {
            "recipe": "recipes/emoji/train.py, then recipes/emoji/style.py",
            "defaults": about["defaults"] | {"guidance": GUIDANCE},
            "start": {"fingerprint": model.fingerprint, "training": model.card["training"]},
            "push": PUSH,
        }
        super().__init__(model.network.config, data, out, TRAINING, about)
        self.network.load_state_dict(model.network.state_dict())
        self.start = model.fingerprint
        teacher = model.network.requires_grad_(False)
        self.teacher = torch.compile(teacher) if TRAINING.compile else teacher
        word = {w: i + 1 for i, w in enumerate(data.tokenizer.vocabulary)}
        self.ending = torch.tensor([[word[s], word["style"]] for s in data.styles])

    def loss(self, forward: Any, generator: torch.Generator, device: torch.device) -> Tensor:
        x1, cond = self.data.batch(TRAINING.batch, generator)
        x0 = torch.randn(x1.shape, generator=generator)
        t = draw_times(len(x1), TRAINING.times, generator)
        null = self.network.null_condition(cond)
        cond = drop_condition(cond, null, TRAINING.dropout, generator)
        plain = without_ending(cond, self.ending)
        x0, x1, t, cond, plain = moved(device, x0, x1, t, cond, plain)
        x = interpolate(x0, x1, t)
        target = velocity(x0, x1) + push(self.teacher, x, t, cond, plain)
        return (forward(x, t, cond).float() - target).square().mean()


@torch.no_grad()
def push(teacher: Any, x: Tensor, t: Tensor, cond: Tensor, plain: Tensor) -> Tensor:
    """How far velocities at states (B, C, H, W) and times (B,) are pushed, by what the style makes:
    the teacher's with the caption ``cond`` less those with ``plain``, which does not name it.
    Little early, where shapes are made, and none at t = 1, where it would add grain.
    """
    doubled = torch.cat([x, x]), torch.cat([t, t]), torch.cat([cond, plain])
    styled, not_styled = teacher(*doubled).float().chunk(2)
    share = 256 / 27 * t**3 * (1 - t)
    return PUSH * share.reshape(-1, 1, 1, 1) * (styled - not_styled)


def without_ending(ids: Tensor, endings: Tensor) -> Tensor:
    """Token ids (B, L), padded with 0, less a last pair that is one of ``endings`` (N, 2)."""
    ids = ids.clone()
    n = (ids != 0).sum(1)
    rows = (n > 1).nonzero()[:, 0]
    at = torch.stack([n[rows] - 2, n[rows] - 1], 1)
    last = ids[rows].gather(1, at)
    known = (last[:, None] == endings).all(-1).any(1)
    ids[rows[known, None], at[known]] = 0
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that data.py made")
    parser.add_argument("--start", default="runs/emoji", help="what train.py left")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-styled"))
    options = parser.parse_args()
    model = ft.load(options.start, device="cuda" if torch.cuda.is_available() else "cpu")
    objective = StyleGuided(model, EmojiData(options.data, model.shape[1]), options.out)
    made = {
        "training": asdict(TRAINING),
        "start": {"fingerprint": objective.start, "push": PUSH},
    }
    report = lambda step, loss: print(f"step {step:6d}  loss {loss:.4f}", flush=True)
    run(objective, options.out, TRAINING, made, report)


if __name__ == "__main__":
    main()
