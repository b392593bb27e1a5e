"""The model `avatars`: text-to-image, people of 32 x 32 pixels in three styles.

    python recipes/avatars/data.py --out avatars-data
    python recipes/avatars/train.py --data avatars-data --out runs/avatars

trains it, or resumes an interrupted run. The output folder is the model.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data import load
from people import WORDS, Person, caption, sentence
from torch import Tensor

from flowturbo.models.sit import SiTConfig
from flowturbo.models.tokenizer import Tokenizer, build_vocabulary
from flowturbo.training import TrainConfig, train

LENGTH = 16
CAPTIONS = 8  # drawn for each image, once
ARCHITECTURE: dict[str, Any] = dict(
    size=32, channels=3, patch=4, width=256, depth=6, heads=8, text_length=LENGTH,
    modulation="shared",
)  # fmt: skip
TRAINING = TrainConfig(
    steps=4000, batch=128, lr=2e-3, optimizer="muon", warmup=150, tail=0.4, ema=0.999,
    save_every=100, preview_every=500,
)  # fmt: skip


class AvatarData:
    """People with random captions; conditions are the style, from 1, and the tokens of a caption.

    Args:
        folder: what data.py made.
    """

    def __init__(self, folder: str | Path) -> None:
        images, style, words, self.about = load(folder, ARCHITECTURE["size"])
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        rng, self.styles = random.Random(0), list(self.about["styles"])
        people = [Person(self.styles[s], tuple(w), ()) for s, w in zip(style, words, strict=True)]
        texts = [caption(person, rng) for person in people for _ in range(CAPTIONS)]
        self.tokenizer = Tokenizer(build_vocabulary(texts, 100), LENGTH)
        tokens = self.tokenizer.encode(texts).view(len(people), CAPTIONS, LENGTH)
        numbers = torch.from_numpy(style).long() + 1
        self.cond = torch.cat([numbers[:, None, None].expand(-1, CAPTIONS, 1), tokens], 2)
        self.condition = {
            "kind": "text",
            "styles": self.styles,
            "groups": {name.title(): list(words) for name, words in WORDS.items()},
            "tokenizer": self.tokenizer.to_json(),
        }

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self), (n,), generator=generator)
        which = torch.randint(CAPTIONS, (n,), generator=generator)
        return self.images[rows] / 127.5 - 1, self.cond[rows, which]

    def examples(self, n: int) -> Tensor:
        """Full captions: in turn each style, and the next words of all attributes."""
        at = lambda words, i: words[i % len(words)]
        texts = [sentence({a: at(words, i) for a, words in WORDS.items()}) for i in range(n)]
        styles = torch.arange(n)[:, None] % len(self.styles) + 1
        return torch.cat([styles, self.tokenizer.encode(texts)], 1)


def card(data: AvatarData) -> dict[str, Any]:
    return {
        "name": "avatars",
        "description": "Drawn people with hair, glasses and a mouth from words, in three styles.",
        "data": {
            "name": "Pixel Art, Open Peeps and Lorelei of DiceBear, rendered on white",
            "images": len(data),
            "packages": {
                k: f"{p['version']}, {p['licence']}" for k, p in data.about["packages"].items()
            },
            "licence": "CC0-1.0 (designs), MIT (code that draws them)",
        },
        "recipe": "recipes/avatars/train.py",
        "defaults": {"guidance": 2.0, "plan": "AB2:12@1.6"},
    }


def architecture(data: AvatarData) -> SiTConfig:
    text = dict(vocabulary=len(data.tokenizer), styles=len(data.styles))
    return SiTConfig(**ARCHITECTURE, **text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that data.py made")
    parser.add_argument("--out", default="runs/avatars")
    options = parser.parse_args()
    data = AvatarData(options.data)
    train(
        architecture(data),
        data,
        options.out,
        TRAINING,
        card=card(data),
        report=partial(print, flush=True),
    )


if __name__ == "__main__":
    main()
