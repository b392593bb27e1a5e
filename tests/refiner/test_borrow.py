"""What a one-block network takes over from a SiT."""

from __future__ import annotations

import pytest
import torch
from refiners import KINDS, random_weights

from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner, VelocityRefiner


def test_a_refiner_borrows_embedders_block_and_modulation():
    model = random_weights(SiT(SiTConfig(**KINDS["text, conv, shared, data"])))
    refiner = VelocityRefiner.from_model(model, block=0).network
    ours, theirs = refiner.state_dict(), model.state_dict()
    assert torch.equal(ours["blocks.0.attn.qkv.weight"], theirs["blocks.0.attn.qkv.weight"])
    assert torch.equal(ours["text_embedder.mlp.0.weight"], theirs["text_embedder.mlp.0.weight"])
    assert torch.equal(ours["adaLN_modulation.1.weight"], theirs["adaLN_modulation.1.weight"])
    assert torch.equal(ours["stem.weight"][:, :2], theirs["stem.weight"])
    assert not ours["stem.weight"][:, 2:].any()
    last = PaperRefiner.from_model(model).network.blocks[0].attn.qkv.weight
    assert torch.equal(last, model.blocks[1].attn.qkv.weight)
    with pytest.raises(ValueError, match="block=2: the model has 0 to 1"):
        PaperRefiner.from_model(model, block=2)
    with pytest.raises(ValueError, match="kind='conv'"):
        VelocityRefiner.from_model(lambda x, t, c: x)
