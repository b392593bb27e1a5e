"""The paper's refiner against its equations, and the authors' checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from refiners import KINDS, random_history, random_weights
from torch import nn

import flowturbo as ft
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner


def _reference(network: SiT, x, v, t, cond):
    """The paper's offset, written out from the parameters."""
    p, c = network.state_dict(), network.config
    silu = nn.functional.silu
    linear = lambda h, name: h @ p[f"{name}.weight"].T + p[f"{name}.bias"]
    norm = lambda h: nn.functional.layer_norm(h, h.shape[-1:], eps=1e-6)
    n, heads = len(x), c.heads
    tokens = nn.functional.conv2d(
        torch.cat([x, v], 1), p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], c.patch
    )
    h = tokens.flatten(2).mT + p["pos_embed"]
    angles = t * 10000.0 ** -(torch.arange(128) / 128)
    waves = torch.cat([angles.cos(), angles.sin()])[None]
    e = linear(silu(linear(waves, "t_embedder.mlp.0")), "t_embedder.mlp.2")
    e = silu(e + p["y_embedder.embedding_table.weight"][cond])
    m = linear(e, "blocks.0.adaLN_modulation.1")[:, None].chunk(6, dim=-1)
    q, k, w = linear(norm(h) * (1 + m[1]) + m[0], "blocks.0.attn.qkv").chunk(3, dim=-1)
    q, k, w = (a.reshape(n, -1, heads, c.width // heads).transpose(1, 2) for a in (q, k, w))
    mixed = torch.softmax(q @ k.mT / (c.width // heads) ** 0.5, -1) @ w
    mixed = linear(mixed.transpose(1, 2).reshape(h.shape), "blocks.0.attn.proj")
    h = h + m[2] * mixed
    inner = linear(norm(h) * (1 + m[4]) + m[3], "blocks.0.mlp.fc1")
    inner = nn.functional.gelu(inner, approximate="tanh")
    h = h + m[5] * linear(inner, "blocks.0.mlp.fc2")
    m = linear(e, "final_layer.adaLN_modulation.1")[:, None].chunk(2, dim=-1)
    h = linear(norm(h) * (1 + m[1]) + m[0], "final_layer.linear")
    side, patch = c.size // c.patch, c.patch
    h = h.reshape(n, side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return h.reshape(n, -1, c.size, c.size)[:, : c.channels]


@pytest.mark.parametrize("shipped", [False, True])
def test_the_papers_blocks_equal_a_hand_written_sampler(shipped):
    model = random_weights(SiT(SiTConfig(**KINDS["learned sigma"])))
    refiner = random_weights(PaperRefiner.from_model(model))
    x0, cond, null, w = torch.randn(3, 2, 8, 8), torch.arange(3), torch.full((3,), 5), 1.5
    guide = lambda f: f(null) + w * (f(cond) - f(null))
    velocity = lambda x, t: guide(lambda c: model(x, t, c))
    offset = lambda x, v, t: guide(lambda c: _reference(refiner.network, x, v, t, c))
    h, x = 1 / 3, x0
    first = velocity(x, 0.0)
    last = velocity(x + h * first, h)
    x = x + h / 2 * (first + last)
    new = velocity(x + h * last, 2 * h)
    x, last = x + h / 2 * (last + new), new
    one = offset(x, last, 2 * h) + last
    two = offset(x + h * one, last if shipped else one, 1.0) + one
    x = x + h / 2 * (one + two)
    plan = ft.Plan.blocks("H1P1R1", shipped=shipped)
    out = ft.sample(plan, model, x0, cond, guidance=w, refiner=refiner)
    torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-4)


def test_official_names_and_shapes():
    with torch.device("meta"):
        network = SiT(replace(SiTConfig.named("XL/2"), depth=1), images=2)
    shapes = {k: tuple(p.shape) for k, p in network.state_dict().items()}
    wanted = {
        "x_embedder.proj.weight": (1152, 8, 2, 2), "x_embedder.proj.bias": (1152,),
        "t_embedder.mlp.0.weight": (1152, 256), "t_embedder.mlp.0.bias": (1152,),
        "t_embedder.mlp.2.weight": (1152, 1152), "t_embedder.mlp.2.bias": (1152,),
        "y_embedder.embedding_table.weight": (1001, 1152), "pos_embed": (1, 256, 1152),
        "blocks.0.attn.qkv.weight": (3456, 1152), "blocks.0.attn.qkv.bias": (3456,),
        "blocks.0.attn.proj.weight": (1152, 1152), "blocks.0.attn.proj.bias": (1152,),
        "blocks.0.mlp.fc1.weight": (4608, 1152), "blocks.0.mlp.fc1.bias": (4608,),
        "blocks.0.mlp.fc2.weight": (1152, 4608), "blocks.0.mlp.fc2.bias": (1152,),
        "blocks.0.adaLN_modulation.1.weight": (6912, 1152),
        "blocks.0.adaLN_modulation.1.bias": (6912,),
        "final_layer.linear.weight": (32, 1152), "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2304, 1152),
        "final_layer.adaLN_modulation.1.bias": (2304,),
    }  # fmt: skip
    assert shapes == wanted
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(29.7e6, rel=0.01)


def test_an_official_checkpoint_loads_by_name(tmp_path):
    config = SiTConfig(**KINDS["learned sigma"])
    made = random_weights(PaperRefiner.from_model(SiT(config)))
    torch.save({"ema": made.network.state_dict()}, tmp_path / "refiner.pt")
    loaded = PaperRefiner.from_official(tmp_path / "refiner.pt", config)
    x, history, cond = torch.randn(3, 2, 8, 8), random_history((0.1,)), torch.arange(3)
    assert torch.equal(loaded(x, 0.4, cond, history), made(x, 0.4, cond, history))
    with pytest.raises(ValueError, match=r"tensors missing|the config wants"):
        PaperRefiner.from_official(tmp_path / "refiner.pt")
