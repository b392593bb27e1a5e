"""SiT: official names, shapes, sizes and arithmetic; the options of our own."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from flowturbo.models.layers import Attention
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.models.sit_config import SIZES

OFFICIAL = {  # names and shapes in the official class-conditional checkpoints
    "pos_embed": "1 N D",
    "x_embedder.proj.weight": "D C P P",
    "x_embedder.proj.bias": "D",
    "t_embedder.mlp.0.weight": "D 256",
    "t_embedder.mlp.0.bias": "D",
    "t_embedder.mlp.2.weight": "D D",
    "t_embedder.mlp.2.bias": "D",
    "y_embedder.embedding_table.weight": "K+1 D",
    "final_layer.linear.weight": "P*P*2*C D",
    "final_layer.linear.bias": "P*P*2*C",
    "final_layer.adaLN_modulation.1.weight": "2*D D",
    "final_layer.adaLN_modulation.1.bias": "2*D",
}
OFFICIAL_BLOCK = {
    "attn.qkv.weight": "3*D D",
    "attn.qkv.bias": "3*D",
    "attn.proj.weight": "D D",
    "attn.proj.bias": "D",
    "mlp.fc1.weight": "4*D D",
    "mlp.fc1.bias": "4*D",
    "mlp.fc2.weight": "D 4*D",
    "mlp.fc2.bias": "D",
    "adaLN_modulation.1.weight": "6*D D",
    "adaLN_modulation.1.bias": "6*D",
}


def official_state(config: SiTConfig, std: float = 0.1) -> dict[str, torch.Tensor]:
    """A random state dict of the official names and shapes."""
    names = dict(OFFICIAL)
    for i in range(config.depth):
        names |= {f"blocks.{i}.{k}": v for k, v in OFFICIAL_BLOCK.items()}
    sizes = {"N": (config.size // config.patch) ** 2, "D": config.width, "C": config.channels}
    sizes |= {"P": config.patch, "K": config.classes}
    generator = torch.Generator().manual_seed(0)
    shapes = {k: [eval(s, {}, dict(sizes)) for s in v.split()] for k, v in names.items()}
    return {k: torch.randn(s, generator=generator) * std for k, s in shapes.items()}


def reference(p: dict[str, torch.Tensor], c: SiTConfig, x, t, y):
    """The forward pass of the paper, written out once more from its definition."""
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    emb = torch.cat([angles.cos(), angles.sin()], -1)
    lin = lambda name, h: h @ p[f"{name}.weight"].T + p[f"{name}.bias"]
    cond = lin("t_embedder.mlp.2", F.silu(lin("t_embedder.mlp.0", emb)))
    cond = cond + p["y_embedder.embedding_table.weight"][y]
    n = c.size // c.patch
    patches = x.reshape(len(x), c.channels, n, c.patch, n, c.patch)
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(len(x), n * n, -1)
    h = patches @ p["x_embedder.proj.weight"].flatten(1).T + p["x_embedder.proj.bias"]
    h = h + p["pos_embed"]
    norm = lambda h: (
        (h - h.mean(-1, True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    )
    for i in range(c.depth):
        b = f"blocks.{i}"
        s1, m1, g1, s2, m2, g2 = lin(f"{b}.adaLN_modulation.1", F.silu(cond)).chunk(6, -1)
        q = lin(f"{b}.attn.qkv", norm(h) * (1 + m1[:, None]) + s1[:, None])
        q, k, v = q.reshape(len(x), n * n, 3, c.heads, -1).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        h = h + g1[:, None] * lin(f"{b}.attn.proj", a.transpose(1, 2).reshape(h.shape))
        u = lin(f"{b}.mlp.fc1", norm(h) * (1 + m2[:, None]) + s2[:, None])
        h = h + g2[:, None] * lin(f"{b}.mlp.fc2", F.gelu(u, approximate="tanh"))
    s, m = lin("final_layer.adaLN_modulation.1", F.silu(cond)).chunk(2, -1)
    h = lin("final_layer.linear", norm(h) * (1 + m[:, None]) + s[:, None])
    h = h.reshape(len(x), n, n, c.patch, c.patch, -1)
    out = torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), -1, c.size, c.size)
    return out[:, : c.channels]


def test_parameter_counts_are_the_papers():
    wanted = {"S/2": 33.0, "B/2": 130.5, "L/2": 458.1, "XL/2": 675.1}
    for name, millions in wanted.items():
        with torch.device("meta"):
            network = SiT(SiTConfig.named(name))
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_official_state_dict_loads_and_computes_the_papers_forward_pass():
    config = SiTConfig(width=32, depth=2, heads=4, size=8, classes=7, learn_sigma=True)
    state = official_state(config)
    network = SiT(config)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in state.items()
    }
    network.load_state_dict(state)
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 3, 7])
    torch.testing.assert_close(network(x, t, y), reference(state, config, x, t, y))


def test_positions_are_those_of_a_sine_cosine_grid():
    """Columns in the first half of the channels, rows in the second (as in the official code)."""
    network = SiT(SiTConfig(size=6, patch=2, width=16, depth=1, heads=2))
    omega = 10000.0 ** -(torch.arange(4) / 4)
    one = lambda i: torch.cat([(i * omega).sin(), (i * omega).cos()])
    grid = torch.stack([torch.cat([one(c), one(r)]) for r in range(3) for c in range(3)])
    torch.testing.assert_close(network.pos_embed[0], grid)


def test_named_sizes_cover_the_paper():
    assert set(SIZES) == {"S", "B", "L", "XL"}
    assert SiTConfig.named("SiT-XL/2") == SiTConfig.named("xl/2")
    with pytest.raises(ValueError, match="XXL"):
        SiTConfig.named("XXL/2")


OPTIONS = [
    dict(classes=5),
    dict(vocabulary=9, text_length=4),
    dict(),
    dict(classes=5, stem="conv"),
    dict(classes=5, modulation="shared"),
    dict(
        vocabulary=9,
        text_length=4,
        stem="conv",
        head_blocks=1,
        modulation="shared",
        prediction="data",
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_runs_trains_and_takes_scalar_and_per_image_times(options):
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=8, channels=3, patch=2, width=32, depth=2, heads=2, **options))
    x = torch.randn(3, 3, 8, 8)
    cond = None
    if options.get("classes"):
        cond = torch.tensor([0, 1, 5])
    if options.get("vocabulary"):
        cond = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 8], [0, 0, 0, 0]])
    with torch.no_grad():  # away from zero initialisation, where most gradients vanish
        [p.normal_(std=0.2) for p in network.parameters() if p.requires_grad]
    network(x, 0.3, cond).square().mean().backward()
    still = [n for n, p in network.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not still
    one, many = network(x, 0.3, cond), network(x, torch.full((3,), 0.3), cond)
    assert one.shape == x.shape
    torch.testing.assert_close(one, many)
    alone = network(x[1:2], 0.3, None if cond is None else cond[1:2])
    torch.testing.assert_close(one[1:2], alone, rtol=1e-4, atol=1e-4)
    if cond is not None:  # no condition is the null condition
        null = network.null_condition(cond)
        torch.testing.assert_close(network(x, 0.3, None), network(x, 0.3, null))
        assert not torch.allclose(one, network(x, 0.3, null))


def test_times_are_scaled_before_they_are_embedded():
    config = dict(size=4, channels=1, patch=2, width=16, depth=1, heads=2)
    network = SiT(SiTConfig(**config, time_scale=1000.0))
    t = torch.tensor([0.25, 0.5])
    assert torch.equal(network.embed(t, None)[1], network.t_embedder(1000 * t))
    with pytest.raises(ValueError, match="time_scale=0"):
        SiTConfig(**config, time_scale=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_embedded_condition_gives_equal_velocities(options):
    network = SiT(SiTConfig(size=8, channels=3, patch=2, width=32, depth=1, heads=2, **options))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    cond = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 8]]) if network.config.vocabulary else None
    cond = torch.tensor([1, 5]) if network.config.classes else cond
    x = torch.randn(2, 3, 8, 8)
    embedded = network.embed_condition(cond)
    assert (embedded is None) == (cond is None)
    assert torch.equal(network(x, 0.3, embedded), network(x, 0.3, cond))


def test_the_style_is_a_condition_of_its_own():
    torch.manual_seed(0)
    made = dict(size=4, channels=1, patch=2, width=8, depth=1, heads=2, text_length=3)
    network = SiT(SiTConfig(**made, vocabulary=5, styles=2))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, cond = torch.randn(3, 1, 4, 4), torch.tensor([[0, 1, 2, 0], [1, 1, 2, 0], [2, 1, 2, 0]])
    a, b, c = network(x[:1].expand_as(x), 0.5, cond)
    assert not torch.allclose(a, b)
    assert not torch.allclose(b, c)
    plain = SiT(SiTConfig(**made, vocabulary=5))
    plain.load_state_dict(network.state_dict(), strict=False)
    with torch.no_grad():
        network.style_embedder.weight[0] = 0
    torch.testing.assert_close(network(x, 0.5, cond)[0], plain(x, 0.5, cond[:, 1:])[0])
    torch.testing.assert_close(network(x, 0.5), network(x, 0.5, network.null_condition(cond)))
    with pytest.raises(ValueError, match="styles=2: only text models"):
        SiTConfig(styles=2)


def test_data_prediction_is_the_velocity_to_that_image():
    network = SiT(SiTConfig(size=8, channels=1, width=32, depth=1, heads=2, prediction="data"))
    x = torch.randn(2, 1, 8, 8)  # zero-initialised: it predicts the clean image 0
    torch.testing.assert_close(network(x, 0.5), -x / 0.5)
    assert network(x, 1.0).isfinite().all()


def test_configuration_survives_a_dict_and_checks_itself():
    config = SiTConfig(size=8, classes=3, stem="conv")
    assert SiTConfig.from_dict(asdict(config)) == config
    with pytest.raises(ValueError, match="did you mean 'depth'"):
        SiTConfig.from_dict({"deph": 3})
    for bad in (
        dict(size=7, patch=2),
        dict(width=30, heads=4),
        dict(depth=0),
        dict(stem="cnn"),
        dict(head_blocks=1),
        dict(classes=2, vocabulary=2),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            SiTConfig(**bad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_below_single_precision_is_that_in_it(dtype):
    attention = Attention(32, 4)
    x = torch.randn(3, 10, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = attention(x), attention.to(dtype)(x.to(dtype)).float()
    away = float((got - wanted).abs().max() / wanted.abs().max())
    assert away < 8 * torch.finfo(dtype).eps
