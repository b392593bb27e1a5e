"""The bundled model `emoji`: text-to-image, 64 x 64, in five styles.

    python recipes/emoji/data.py --out emoji-data
    python recipes/emoji/train.py --data emoji-data --out runs/emoji

trains it, or resumes an interrupted run. The output folder is the model.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from augment import augment
from data import aliases, caption, load, weights
from torch import Tensor

from flowturbo.models.sit import SiTConfig
from flowturbo.models.tokenizer import Tokenizer, build_vocabulary
from flowturbo.training import TrainConfig, train

LENGTH = 16
VOCABULARY = 4000
CAPTIONS = 24  # drawn for each picture, once
ALONE = 0.05  # share of captions without their style, and of styles without their caption
ARCHITECTURE: dict[str, Any] = dict(
    size=64, channels=3, patch=8, width=320, depth=7, heads=10, text_length=LENGTH,
    modulation="shared", stem="conv", stem_width=16, head_blocks=1, prediction="data",
)  # fmt: skip
TRAINING = TrainConfig(
    steps=6_500, batch=128, lr=2e-3, optimizer="muon", warmup=150, tail=0.4, ema=0.999,
    save_every=100, preview_every=1000,
)  # fmt: skip


class EmojiData:
    """Pictures, moved a little, with random captions, drawn by the weights of `data.weights`.

    Conditions are the style, from 1, and the tokens of a caption that does not name it.

    Args:
        folder: what data.py made.
        held: take the pictures never to be trained on instead.
    """

    def __init__(self, folder: str | Path, *, held: bool = False) -> None:
        images, concept, style, about = load(folder)
        pairs = {(c, s) for c, s in about["held"]}
        kept = [(int(c), int(s)) in pairs for c, s in zip(concept, style, strict=True)]
        rows = np.flatnonzero(np.array(kept) == held)
        self.concepts, self.styles, self.about = about["concepts"], list(about["styles"]), about
        self.concept, self.style = concept[rows], style[rows]
        self.images = torch.from_numpy(images[rows]).permute(0, 3, 1, 2).contiguous()
        self.weights = torch.from_numpy(weights(self.concepts, self.concept, self.style))
        rng = random.Random(0)
        texts = [
            [caption(self.concepts[c], "", rng) for _ in range(CAPTIONS)] for c in self.concept
        ]
        every = [c["name"] for c in self.concepts]
        vocabulary = build_vocabulary([*every, *(t for ts in texts for t in ts)], VOCABULARY)
        self.tokenizer = Tokenizer(vocabulary, LENGTH, aliases(self.concepts))
        tokens = torch.stack([self._encode(t) for t in texts])
        numbers = torch.from_numpy(self.style.astype(np.int64) + 1)
        self.cond = torch.cat([numbers[:, None, None].expand(-1, CAPTIONS, 1), tokens], 2)
        groups: dict[str, list[str]] = {}
        for c in sorted(self.concepts, key=lambda c: (not c["group"], c["group"])):
            groups.setdefault(c["group"] or "Other", []).append(c["name"])
        self.condition = {
            "kind": "text",
            "styles": self.styles,
            "groups": groups,
            "tokenizer": self.tokenizer.to_json(),
        }

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        which = torch.randint(CAPTIONS, (n,), generator=generator)
        cond, u = self.cond[rows, which], torch.rand(n, generator=generator)
        cond[u < ALONE, 0] = 0
        cond[u > 1 - ALONE, 1:] = 0
        return augment(self.images[rows] / 127.5 - 1, generator), cond

    def examples(self, n: int) -> Tensor:
        """The names held out, in every style."""
        names = list(self.about["held_names"])
        pairs = [(s, m) for s in range(len(self.styles)) for m in names]
        tokens = self.tokenizer.encode([pairs[i % len(pairs)][1] for i in range(n)])
        styles = torch.tensor([pairs[i % len(pairs)][0] + 1 for i in range(n)])
        return torch.cat([styles[:, None], tokens], 1)

    def _encode(self, texts: list[str]) -> Tensor:
        """Captions to ids; a caption too long for the network loses its last words."""
        rows = torch.zeros(len(texts), LENGTH, dtype=torch.long)
        wide = Tokenizer(self.tokenizer.vocabulary, 4 * LENGTH)
        for row, text in zip(rows, texts, strict=True):
            try:
                ids = wide.encode([text])[0]
            except ValueError:  # another name, alone, of no known word: trained as no condition
                continue
            ids = ids[ids != 0][:LENGTH]
            row[: len(ids)] = ids
        return rows


def card(data: EmojiData) -> dict[str, Any]:
    return {
        "name": "emoji",
        "description": "Emoji from words, in five styles.",
        "data": {
            "name": "Noto Emoji, Fluent Emoji (gradients, flat, 3D), FxEmojis, rendered on white",
            "images": len(data),
            "packages": {
                k: f"{p['version']}, {p['licence']}" for k, p in data.about["packages"].items()
            },
            "licence": "Apache-2.0 (Noto, FxEmojis), MIT (Fluent)",
        },
        "recipe": "recipes/emoji/train.py",
        "defaults": {"guidance": 2.0, "plan": "AB2:12@1.6"},
    }


def architecture(data: EmojiData) -> SiTConfig:
    text = dict(vocabulary=len(data.tokenizer), styles=len(data.styles))
    return SiTConfig(**ARCHITECTURE, **text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the folder that data.py made")
    parser.add_argument("--out", default="runs/emoji")
    options = parser.parse_args()
    data = EmojiData(options.data)
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
