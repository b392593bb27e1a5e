"""The paper's recipe: its loss, its data, and that the offset is learnt."""

from __future__ import annotations

import json

import pytest
import torch

import flowturbo as ft
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.refiner import PaperRefiner
from flowturbo.training import ArrayData, PaperRefinerConfig, train_paper_refiner
from flowturbo.training.paper_refiner import _Paper

LABELS = {"kind": "class", "labels": ["a", "b", "c"]}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    config = SiTConfig(size=4, channels=1, patch=2, width=16, depth=1, heads=2, classes=3)
    network = SiT(config)
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    return Model(network, {"name": "tiny", "condition": LABELS}).eval().requires_grad_(False)


@pytest.fixture
def data() -> ArrayData:
    images = torch.randint(0, 256, (30, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return ArrayData(images.byte(), torch.arange(30) % 3, LABELS)


def test_the_loss_is_the_papers(model, data):
    """What is asked of teacher and refiner, and the mean square of what is left."""
    asked = []

    def teacher(x, t, cond):
        asked.append((x, t, cond))
        return model(x, t, cond)

    def refiner(x, t, cond, history):
        ((before, v),) = history
        (x0, t0, cond0), (x1, t1, cond1) = asked
        dt = t1 - t0
        assert torch.equal(before, t0)
        assert torch.equal(x, x1)
        assert torch.equal(t, t1)
        assert torch.equal(cond, cond1)
        torch.testing.assert_close(x1, x0 + dt[:, None, None, None] * v)
        assert ((dt > 0) & (dt <= 0.12 + 1e-6)).all()
        assert (t1 <= 1).all()
        assert (cond0 < 3).all()
        dropped = cond1 == 3
        assert torch.equal(cond1[~dropped], cond0[~dropped])
        assert 0.05 < dropped.float().mean() < 0.15
        return model(x, t, cond) + 0.5

    teacher.device, teacher.null_condition = model.device, model.null_condition
    objective = _Paper(None, teacher, data, PaperRefinerConfig(), None)
    batch = objective.draw(2000, torch.Generator().manual_seed(0))
    loss = objective.loss(refiner, batch, torch.device("cpu"))
    assert loss.item() == pytest.approx(0.25)
    assert len(asked) == 2


@pytest.mark.parametrize("largest", [0.03, 0.5])
def test_dt_is_drawn_up_to_the_largest(model, data, largest):
    shown = []

    def refiner(x, t, cond, history):
        shown.append(t - history[0][0])
        return x

    objective = _Paper(None, model, data, PaperRefinerConfig(), None, largest)
    batch = objective.draw(2000, torch.Generator().manual_seed(0))
    objective.loss(refiner, batch, torch.device("cpu"))
    assert shown[0].min() > -1e-6
    assert shown[0].mean() == pytest.approx(largest / 2, rel=0.1)
    assert shown[0].max() == pytest.approx(largest, rel=0.02)


def test_a_refiner_of_another_shape_is_trained_and_read_back(model, data, tmp_path):
    config = PaperRefinerConfig(steps=1, batch=2)
    made = train_paper_refiner(model, data, tmp_path, config, depth=3, width=8, dt=0.25)
    assert len(made.network.blocks) == 3
    assert (made.network.config.width, made.network.config.heads) == (8, 1)
    assert json.loads((tmp_path / "refiner.json").read_text())["training"]["dt"] == 0.25
    with pytest.raises(ValueError, match=r"dt=0\.25 there, 0\.12 now"):
        train_paper_refiner(model, data, tmp_path, config, depth=3, width=8)
    for dt in (0.0, 1.5):
        with pytest.raises(
            ValueError, match=f"dt={dt}: must be a finite number above 0, at most 1"
        ):
            train_paper_refiner(model, data, tmp_path / "new", config, dt=dt)


def test_the_recipe_is_the_papers():
    config = PaperRefinerConfig()
    assert (config.steps, config.batch, config.lr, config.dropout) == (30_000, 18, 5e-5, 0.1)
    assert [config.lr_at(s) for s in (0, 10_000, 29_999)] == [5e-5] * 3


def test_the_offset_is_learnt_and_written(model, data, tmp_path):
    config = PaperRefinerConfig(steps=200, batch=32, lr=3e-3, ema=0.98, save_every=200)
    refiner = train_paper_refiner(model, data, tmp_path, config)
    x0, cond = ft.noise.draw(range(64), model.shape), torch.arange(64) % 3
    plan = ft.Plan.parse("H4R1")
    error = lambda r: (
        ft.sample(plan, model, x0, cond, refiner=r)
        - ft.sample(plan, model, x0, cond, refiner=lambda x, t, c, history: model(x, t, c))
    )
    new = PaperRefiner.from_model(model)
    assert error(refiner).square().mean() < 0.5 * error(new).square().mean()
    card = json.loads((tmp_path / "refiner.json").read_text())
    assert card["architecture"] == "paper"
    assert card["training"]["lr"] == 3e-3
    assert card["model"]["fingerprint"] == model.fingerprint


def test_data_of_another_model_are_refused(model, data, tmp_path):
    config = PaperRefinerConfig(steps=1, batch=2)
    for labels in ({"kind": "class", "labels": ["b", "a", "c"]}, None):
        wrong = ArrayData(data.images, data.cond, labels)
        with pytest.raises(ValueError, match="other labels or another tokenizer"):
            train_paper_refiner(model, wrong, tmp_path, config)
    with pytest.raises(ValueError, match="the data are"):
        train_paper_refiner(
            model, ArrayData(data.images[..., :2], data.cond, LABELS), tmp_path, config
        )
    text = {"kind": "text", "tokenizer": {"vocabulary": ["red"], "length": 2}}
    model.card["condition"] = text
    other = {"kind": "text", "tokenizer": {"vocabulary": ["blue"], "length": 2}}
    with pytest.raises(ValueError, match="another tokenizer"):
        train_paper_refiner(model, ArrayData(data.images, data.cond, other), tmp_path, config)
    assert not list(tmp_path.iterdir())
