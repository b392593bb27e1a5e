"""Attention for training SD3 without its third text encoder, at the cost of one more token.

If a `StableDiffusion3Pipeline` has no T5, it appends ``max_sequence_length`` tokens of zeros, 256
by default. They have no position, so all of them are the same token at every layer, and attending
to n of them is the same as attending to one with log(n) added to its logit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["JointAttention"]


class JointAttention:
    """In place of diffusers' `JointAttnProcessor2_0`; the last token of the context counts
    ``repeats`` times.

    As a product of matrices, whose backward is faster than the fused kernel's on CPUs.
    """

    def __init__(self) -> None:
        self.repeats = 1

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Images (B, N, width) and context (B, L, width) to as many of either."""
        heads = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        join = lambda a, b: torch.cat([a, b], dim=2)
        q, k, v = (heads(f(hidden_states)) for f in (attn.to_q, attn.to_k, attn.to_v))
        context = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        cq, ck, cv = (heads(f(encoder_hidden_states)) for f in context)
        if attn.norm_q is not None:
            q, k = attn.norm_q(q), attn.norm_k(k)
            cq, ck = attn.norm_added_q(cq), attn.norm_added_k(ck)
        q, k, v = join(q, cq), join(k, ck), join(v, cv)
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        last = torch.zeros(logits.shape[-1], dtype=logits.dtype, device=logits.device)
        last[-1] = math.log(self.repeats)
        out = ((logits + last).softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        n = hidden_states.shape[1]
        images, context = attn.to_out[0](out[:, :n]), out[:, n:]
        return images, context if attn.context_pre_only else attn.to_add_out(context)
