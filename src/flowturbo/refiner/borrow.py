"""A one-block network that takes over weights of a SiT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowturbo.models.sit import SiT, SiTConfig

__all__ = ["borrowed", "network_of"]


def network_of(model: object) -> SiT:
    """The SiT of a model, or ``model`` itself if it is one.

    Raises:
        ValueError: if it is another kind of field.
    """
    network = getattr(model, "network", model)
    if not isinstance(network, SiT):
        raise ValueError(
            f"{type(network).__name__}: only the blocks of a SiT can be borrowed; "
            "take kind='conv' for other fields"
        )
    return network


def borrowed(model: object, config: SiTConfig, block: int, *, images: int, numbers: int) -> SiT:
    """A SiT of ``config`` with the embedders, modulation and one block of ``model``, as its first.

    Parameters of another shape are initialised as in a new network. Images after the first enter
    with weight 0, and the last layer is 0, so the output of the network is 0.

    Raises:
        ValueError: if ``model`` is no SiT or has no such block.
    """
    source = network_of(model)
    depth = len(source.blocks)
    if not -depth <= block < depth:
        raise ValueError(f"block={block}: the model has 0 to {depth - 1}, or -1 for the last")
    network = SiT(config, images=images, numbers=numbers)
    chosen = f"blocks.{block % depth}."
    given = {
        k.replace(chosen, "blocks.0."): p
        for k, p in source.state_dict().items()
        if k.startswith(chosen) or not k.startswith("blocks.")
    }
    with torch.no_grad():
        for name, p in network.state_dict().items():
            if name in given:
                _copy(p, given[name])
        last: nn.Module = network.head if config.stem == "conv" else network.final_layer.linear
        for p in last.parameters():
            nn.init.zeros_(p)
    return network.to(next(source.parameters()).device)


def _copy(p: Tensor, given: Tensor) -> None:
    """``given`` into ``p`` if it fits, or into its first input channels, the others 0."""
    if p.shape == given.shape:
        p.copy_(given)
    elif p.ndim == 4 and (p.shape[0], p.shape[2:]) == (given.shape[0], given.shape[2:]):
        p.zero_()
        p[:, : given.shape[1]] = given
