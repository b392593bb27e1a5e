"""Optimizers, and the exponential moving average of the weights."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowturbo.training.config import TrainConfig

__all__ = ["averaged", "optimizers"]

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def optimizers(network: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Those of ``config.optimizer`` for the parameters of ``network``."""
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    chosen = [config.optimizer == "muon" and "blocks." in n and p.ndim == 2 for n, p in named]
    matrices = [p for (_, p), c in zip(named, chosen, strict=True) if c]
    rest = [p for (_, p), c in zip(named, chosen, strict=True) if not c]
    decay = config.weight_decay
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, config.lr, (0.9, 0.99), weight_decay=decay)
    ]
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                f"optimizer='muon' needs torch 2.9 or later: this is {torch.__version__}"
            )
        alike = "match_rms_adamw"
        found.append(torch.optim.Muon(matrices, config.lr, weight_decay=decay, adjust_lr_fn=alike))
    return found


def averaged(network: nn.Module, decay: float, device: torch.device) -> AveragedModel:
    """A copy of ``network`` for its moving average, with a decay that rises from 0.1 to ``decay``.

    ``update_parameters(network)`` moves it.
    """

    @torch.no_grad()
    def update(average: Tensors, current: Tensors, number: Tensor | int) -> None:
        n = int(number)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, device=device, multi_avg_fn=update)  # type: ignore[no-untyped-call]
