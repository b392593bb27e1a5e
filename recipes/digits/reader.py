"""Train the CNN that reads digits, used to check the images of a generator of digits.

    python recipes/digits/reader.py --data mnist.npz --out tests/data/digit_reader.safetensors

The data file holds `images` (N, 28, 28) uint8 and `labels` (N,). A permutation of fixed seed, not
stratified and independent of `--seed`, puts the 10,000 test images last; the rest is for training.
The accuracy recorded in the file is that of the file itself: weights rounded to half precision,
written and loaded again. `--sample` also writes the first 200 test images.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flowturbo.training.devices import autocast

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from digit_reader import DigitReader, load_reader, to_input

SPLIT_SEED, TEST, SAMPLE = 0, 10_000, 200


def split(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,) in the order of the fixed permutation, test set last."""
    with np.load(path) as data:
        order = np.random.default_rng(SPLIT_SEED).permutation(len(data["labels"]))
        return data["images"][order], data["labels"][order]


def augment(x: Tensor) -> Tensor:
    """Random small affine map, shift of at most 2 pixels, and noise; x (B, 1, 32, 32)."""
    n = len(x)
    angle, shear, *shift = (
        bound * (2 * torch.rand(n) - 1) for bound in (math.radians(12), 0.15, 2 / 16, 2 / 16)
    )
    scale = 1 + 0.12 * (2 * torch.rand(n, 2) - 1)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos, shear - sin, shift[0], sin, cos, shift[1]]
    theta = torch.stack(rows, dim=1).view(n, 2, 3)
    theta[:, :, :2] *= scale[:, :, None]
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    # Sampling fills with 0 outside the image; black is -1.
    x = nn.functional.grid_sample(x + 1, grid, align_corners=False) - 1
    return (x + 0.2 * torch.rand(n, 1, 1, 1) * torch.randn_like(x)).clamp(-1, 1)


def train(x: Tensor, y: Tensor, *, epochs: int, batch: int, seed: int) -> DigitReader:
    """Cross-entropy with AdamW and a one-cycle rate, in bfloat16 where the CPU computes in it."""
    torch.manual_seed(seed)
    net = DigitReader().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=6e-3, total_steps=epochs * steps, pct_start=0.2
    )
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x))[: steps * batch].split(batch):
            images = augment(to_input(x[rows]))
            with autocast(images.device, bf16=True):
                logits = net(images)
            loss = nn.functional.cross_entropy(logits.float(), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}", flush=True)
    return net


def save(net: DigitReader, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights in half precision."""
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in net.state_dict().items()
    }
    save_file(weights, path, metadata)


@torch.no_grad()
def accuracy(path: Path, x: Tensor, y: Tensor) -> float:
    reader = load_reader(path)
    read = torch.cat([reader(to_input(part)).argmax(1) for part in x.split(500)])
    return (read == y).double().mean().item()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="npz of images and labels")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--sample", type=Path, help="npz to write 200 test digits to")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)

    images, labels = split(args.data)
    if args.sample:
        rows = slice(len(images) - TEST, len(images) - TEST + SAMPLE)
        np.savez_compressed(args.sample, images=images[rows], labels=labels[rows])
    x, y = torch.from_numpy(images), torch.from_numpy(labels).long()
    net = train(x[:-TEST], y[:-TEST], epochs=args.epochs, batch=args.batch, seed=args.seed)

    metadata = {
        "architecture": "DigitReader of tests/digit_reader.py: 4 convolutions, batch norm, linear",
        "input": "(B, 1, 32, 32) in [-1, 1], digits of 28 x 28 padded with -1",
        "data": f"MNIST, {len(x) - TEST} training images of {len(x)}",
        "split": f"last {TEST} of numpy.random.default_rng({SPLIT_SEED}).permutation({len(x)})",
        "seed": str(args.seed),
        "command": f"python recipes/digits/reader.py --data {args.data.name} --out {args.out.name}"
        f" --epochs {args.epochs} --batch {args.batch} --seed {args.seed}",
    }
    temporary = args.out.with_name(args.out.name + ".tmp")
    save(net, temporary, {})
    result = accuracy(temporary, x[-TEST:], y[-TEST:])
    save(net, temporary, {**metadata, "test_accuracy": f"{result:.4f}", "test_images": str(TEST)})
    os.replace(temporary, args.out)
    print(f"{args.out}: {args.out.stat().st_size} bytes, test accuracy {result:.4f}")


if __name__ == "__main__":
    main()
