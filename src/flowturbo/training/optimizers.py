"""Optimizers, and the exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

from flowturbo.training.config import TrainConfig
from flowturbo.training.devices import has_bf16

__all__ = ["averaged", "optimizers"]

T = TypeVar("T")
Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


def optimizers(network: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of ``config.optimizer`` for the parameters of ``network``."""
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
        muon = torch.optim.Muon(matrices, config.lr, weight_decay=decay, adjust_lr_fn=alike)
        if matrices[0].device.type == "cpu" and not has_bf16():
            muon.step = _in_float32(muon.step)  # type: ignore[method-assign]
        found.append(muon)
    return found


class _Float32(TorchFunctionMode):
    """Casts to float32 what is cast to bfloat16."""

    def __torch_function__(
        self, func: Callable[..., T], types: object, args: Any = (), kwargs: Any = None
    ) -> T:
        if func is Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)  # type: ignore[no-any-return]
        return func(*args, **(kwargs or {}))


def _in_float32(step: Callable[..., T]) -> Callable[..., T]:
    """``step`` of Muon, which orthogonalizes in bfloat16: much slower on CPUs without it."""

    def in_float32(*args: Any) -> T:
        with _Float32():
            return step(*args)

    return in_float32


def averaged(network: nn.Module, decay: float, device: torch.device) -> AveragedModel:
    """A copy of ``network`` for its moving average, with a decay that rises from 0.1 to ``decay``.

    ``update_parameters(network)`` moves it.
    """

    @torch.no_grad()
    def update(average: Tensors, current: Tensors, number: Tensor | int) -> None:
        n = int(number)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, device=device, multi_avg_fn=update)  # type: ignore[no-untyped-call]
