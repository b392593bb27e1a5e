"""Where and in what precision training computes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["autocast", "has_bf16", "to_device", "use_bf16"]


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """Autocast to bfloat16, if `use_bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(device, bf16))


def use_bf16(device: torch.device, bf16: bool) -> bool:
    """``bf16``, except on a CPU without instructions for it, where it is 100 times slower."""
    return bf16 and (device.type != "cpu" or has_bf16())


def has_bf16() -> bool:
    """Whether the CPU computes in bfloat16."""
    there = torch.backends.mkldnn.is_available()
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor moved to ``device``, without waiting for a CUDA device."""
    pin = device.type == "cuda"
    return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)
