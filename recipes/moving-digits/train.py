"""A small video model: two digits that bounce in a box, 8 frames of 32 x 32 pixels.

    python recipes/moving-digits/train.py --out runs/moving-digits

generates its own data, takes under an hour on two CPU cores and resumes an interrupted run.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from clips import LABELS, Clips, glyphs

from flowturbo.models.sit import SiTConfig
from flowturbo.training import TrainConfig, train

ARCHITECTURE = SiTConfig(
    size=64, channels=2, patch=8, width=256, depth=6, heads=8, classes=len(LABELS),
    modulation="shared", prediction="data",
)  # fmt: skip
TRAINING = TrainConfig(
    steps=3000, batch=64, lr=2e-3, optimizer="muon", warmup=100, tail=0.4, ema=0.998,
    save_every=100, preview_every=0,
)  # fmt: skip
CARD = {"name": "moving-digits", "defaults": {"guidance": 2.0, "plan": "AB2:12@1.6"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/moving-digits", type=Path)
    out = parser.parse_args().out
    kept = out.with_name(out.name + "-glyphs.pt")
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(glyphs(), kept)
    data = Clips(torch.load(kept, weights_only=True))
    train(ARCHITECTURE, data, out, TRAINING, card=CARD, report=partial(print, flush=True))


if __name__ == "__main__":
    main()
