"""A small CNN that reads digits, to check what a generator draws.

`recipes/digits/reader.py` trains it; the weights are `tests/data/digit_reader.safetensors`.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["READER", "DigitReader", "load_reader", "to_input"]

READER = Path(__file__).parent / "data" / "digit_reader.safetensors"


class DigitReader(nn.Sequential):
    """Images (B, 1, 32, 32) in [-1, 1] -> logits (B, 10)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        # (channels in, channels out, stride); 32 x 32 becomes 16, 8, 8, 4.
        for c, d, stride in [(1, 24, 2), (24, 48, 2), (48, 88, 1), (88, 96, 2)]:
            layers += [
                nn.Conv2d(c, d, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(d),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 16, 10))


def load_reader(path: str | Path = READER) -> DigitReader:
    """The trained reader, in evaluation mode and float32 (the file holds half precision)."""
    reader = DigitReader()
    reader.load_state_dict(load_file(path))
    return reader.eval().requires_grad_(False)


def to_input(images: Tensor) -> Tensor:
    """Digits (B, 28, 28) uint8 -> (B, 1, 32, 32) in [-1, 1], zero-padded (black is -1)."""
    return nn.functional.pad(images[:, None].float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
