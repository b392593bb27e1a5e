"""Small refiners with random weights, and velocities to show them."""

from __future__ import annotations

import torch
from torch import nn


def random_weights(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for p in module.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1)
    return module.eval().requires_grad_(False)


def random_history(times, n=3, shape=(2, 8, 8), dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [(t, torch.randn(n, *shape, generator=generator, dtype=dtype)) for t in times]


CLASSES = dict(size=8, channels=2, patch=2, width=32, depth=2, heads=2, classes=5)


TEXT = {**CLASSES, "classes": 0, "vocabulary": 11, "text_length": 3}


KINDS = {
    "class": CLASSES,
    "learned sigma": {**CLASSES, "learn_sigma": True},
    "text": TEXT,
    "text, conv, shared, data": {
        **TEXT, "stem": "conv", "modulation": "shared", "prediction": "data",
    },
}  # fmt: skip
