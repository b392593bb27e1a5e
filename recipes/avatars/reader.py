"""Train the CNN that classifies hair, glasses and mouth, to check images of an avatars model.

    python recipes/avatars/reader.py --data avatars-data --out runs/avatars-reader.safetensors

takes a few minutes on one core. It is trained on distorted copies of the training images, and its
accuracy, in the file's metadata, is that on the pairs, which contain none of the same people.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from data import load, load_pairs
from people import WORDS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowturbo.files import atomic_write
from flowturbo.training.devices import autocast

sys.path.append(str(Path(__file__).parents[1] / "emoji"))
from classifiers import distort

__all__ = ["Reader", "load_reader", "to_input"]

SIZES = [len(words) for words in WORDS.values()]


class Reader(nn.Sequential):
    """Images (B, 3, 32, 32) in [-1, 1] -> logits (B, sum of `SIZES`), attribute after attribute."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        # (channels in, channels out, stride); 32 x 32 becomes 32, 16, 8, 4.
        for c, d, stride in [(3, 24, 1), (24, 48, 2), (48, 96, 2), (96, 96, 2)]:
            layers += [
                nn.Conv2d(c, d, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(d),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 16, sum(SIZES)))

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """The likeliest word of each attribute, (B, 3); in evaluation mode."""
        logits = torch.cat([self(part) for part in x.split(500)])
        return torch.stack([part.argmax(1) for part in logits.split(SIZES, 1)], 1)


def load_reader(path: str | Path) -> Reader:
    """The trained reader, in evaluation mode."""
    reader = Reader()
    reader.load_state_dict(load_file(path))
    return reader.eval().requires_grad_(False)


def to_input(images: Any) -> Tensor:
    """Images (B, 32, 32, 3) uint8 -> (B, 3, 32, 32) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(x: Tensor, words: Tensor, *, epochs: int, batch: int, seed: int) -> Reader:
    """Cross-entropy of all attributes with AdamW and a one-cycle rate."""
    torch.manual_seed(seed)
    net, generator = Reader().to(memory_format=torch.channels_last), torch.Generator()
    generator.manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=epochs * steps, pct_start=0.2
    )
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x), generator=generator)[: steps * batch].split(batch):
            images = 2 * distort(x[rows] / 2 + 0.5, generator) - 1
            with autocast(images.device, bf16=True):
                logits = net(images)
            heads = logits.float().split(SIZES, 1)
            loss = sum(map(nn.functional.cross_entropy, heads, words[rows].T), torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}", flush=True)
    return net.eval()


def accuracy(reader: Reader, x: Tensor, words: Tensor) -> dict[str, float]:
    """The share read right, of each attribute."""
    right = (reader.read(x) == words).double().mean(0)
    return dict(zip(WORDS, right.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that data.py made")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, _, words, _ = load(options.data)
    held = load_pairs(options.data)
    x = torch.cat([to_input(held[name]) for name in ("before", "after")])
    true = torch.from_numpy(held["words"]).long().transpose(0, 1).flatten(0, 1)
    how = dict(epochs=options.epochs, batch=options.batch, seed=options.seed)
    reader = train(to_input(images), torch.from_numpy(words).long(), **how)
    found = accuracy(reader, x, true)
    about = {"accuracy": json.dumps(found), "held_out_images": str(len(x)), **how}
    weights = {name: value.contiguous() for name, value in reader.state_dict().items()}
    with atomic_write(options.out) as temporary:
        save_file(weights, temporary, {key: str(value) for key, value in about.items()})
    print(f"{options.out}: {found}")


if __name__ == "__main__":
    main()
