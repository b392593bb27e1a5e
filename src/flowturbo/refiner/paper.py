r"""The velocity refiner of the FlowTurbo paper (Zhao et al. 2024, arXiv 2409.18128, section 3.2).

It predicts the offset of the velocity from the last known one,

.. math:: v(t) \approx r(x, v_\mathrm{prev}, t, c) + v_\mathrm{prev},

by one block of a SiT whose input is ``x`` and ``v_prev``, concatenated. Names and shapes of the
parameters are those of the authors' checkpoint ``SiT-XL-2-Refiner``. It refines single branches,
so under guidance each call is doubled, both branches with the same guided ``v_prev``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from flowturbo.digests import fingerprint
from flowturbo.field import embedded
from flowturbo.models import official
from flowturbo.models.checkpoint import read_tensors
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.models.weights import fill
from flowturbo.refiner.binding import History
from flowturbo.refiner.borrow import borrowed, network_of
from flowturbo.types import Condition, JsonObject, Time

__all__ = ["PaperRefiner"]


class PaperRefiner(nn.Module):
    """``(x, t, cond, history) -> v`` by an offset from the last velocity of ``history``.

    Attributes:
        network: a SiT with two input images, ``x`` and ``v_prev``; returns the offset.
        card: how it was made.
    """

    kind = "paper"
    distinct_times = 1
    per_image_times = True
    guided = False

    def __init__(self, network: SiT, card: JsonObject | None = None) -> None:
        super().__init__()
        self.network, self.card = network, card or {}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights in half precision."""
        return fingerprint(self.network)

    @classmethod
    def from_model(
        cls, model: object, *, block: int = -1, depth: int = 1, width: int | None = None
    ) -> PaperRefiner:
        """A refiner with the embedders and one block of a SiT, by default the last.

        It starts as the last velocity, unchanged. With another ``depth`` or ``width``, only
        parameters that fit are borrowed; heads stay as wide as the model's.

        Raises:
            ValueError: if ``model`` is not a SiT or has no such block, or the depth or width is not
                possible for a SiT.
        """
        config = network_of(model).config
        width = config.width if width is None else width
        heads = max(1, config.heads * width // config.width)
        config = replace(config, depth=depth, width=width, heads=heads, prediction="velocity")
        return cls(borrowed(model, config, block, images=2, numbers=0))

    @classmethod
    def from_official(cls, source: str | Path, config: SiTConfig | None = None) -> PaperRefiner:
        """The authors' checkpoint, read as plain tensors; by default of a SiT-XL/2.

        Raises:
            ValueError: if names or shapes are not those of ``config`` with one block.
        """
        config = replace(config or SiTConfig.named("XL/2"), depth=1)
        with torch.device("meta"):
            network = SiT(config, images=2)
        tensors = read_tensors(source)
        fill(network, tensors, str(source), torch.float32, official.fix(tensors, config, images=2))
        return cls(network).eval().requires_grad_(False)

    def check_inputs(self, x: Tensor, cond: Condition = None, negative: Condition = None) -> None:
        """Refuse states and conditions that its network cannot take, with a ``ValueError``."""
        self.network.check_inputs(x, cond, negative)

    def embed_condition(self, cond: Condition) -> Condition:
        """What is computed once per sample from ``cond``, to pass in its place."""
        return embedded(self.network, cond)

    def forward(self, x: Tensor, t: Time, cond: Condition, history: History) -> Tensor:
        """The velocity (B, C, H, W) at ``x``, ``t``, from the last of ``history``."""
        v = history[-1][1]
        dtype = self.network.pos_embed.dtype
        return v + self.network(torch.cat([x, v], dim=1).to(dtype), t, cond).to(x.dtype)
