"""Options of training are numbers of the right kind and size, or refused by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fields import gaussian
from runs import toy

import flowturbo as ft
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.training import (
    PaperRefinerConfig,
    RefinerConfig,
    TrainConfig,
    train,
    train_paper_refiner,
)

WHOLE = ("steps", "batch", "accumulate", "save_every", "warmup", "preview_every", "seed")
REAL = ("lr", "tail", "weight_decay", "ema", "clip", "dropout")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [1.5, 2.0, "3", True, None, -1, 2**40, math.nan, [1], 1j])
def test_counts_of_training(name, value):
    with pytest.raises(ValueError, match=rf"^{name}="):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", ["3", True, None, -0.1, math.nan, math.inf, (1,), 1j])
def test_numbers_of_training(name, value):
    with pytest.raises(ValueError, match=rf"^{name}="):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    "name", ["lr", "clip", "tail", "steps", "batch", "save_every", "accumulate"]
)
def test_zero_is_not_taken_for_the_default(name):
    with pytest.raises(ValueError, match=rf"^{name}="):
        TrainConfig(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value"),
    [("bf16", 1), ("compile", "no"), ("schedule", 3), ("optimizer", None), ("times", "log")],
)
def test_choices_of_training(name, value):
    with pytest.raises(ValueError, match=rf"^{name}="):
        TrainConfig(**{name: value})


def test_numbers_of_numpy_become_plain_ones():
    config = TrainConfig(steps=np.int64(3), lr=np.float64(1e-2), dropout=0)
    assert [type(v) for v in (config.steps, config.lr, config.dropout)] == [int, float, float]


def test_a_misspelled_option_is_told_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        TrainConfig(step=3)
    with pytest.raises(ValueError, match="did you mean 'lr'"):
        PaperRefinerConfig(lrr=3)
    with pytest.raises(ValueError, match=r"train_refiner\(minuts=1\): .* did you mean 'minutes'"):
        ft.train_refiner(gaussian, minuts=1)


NOISE = torch.ones(4, 2)
COUNTS = ("trajectories", "steps", "iterations", "width", "block", "batch", "save_every", "seed")
NUMBERS = ("shift", "jitter", "minutes", "lr", "ema", "guidance")


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n in COUNTS for v in (1.5, "3", True, math.nan)]
    + [(n, 0) for n in COUNTS if n not in ("block", "seed")]
    + [(n, v) for n in NUMBERS for v in ("3", True, math.nan, math.inf)]
    + [(n, v) for n in ("shift", "minutes", "lr") for v in (0, -1)]
    + [("jitter", 0.5), ("ema", 1), ("guidance", (1, 2, 3)), ("guidance", (4, 1)), ("kind", "x")]
    + [("guidance", None), ("guidance", torch.ones(2)), ("optimizer", "sgd"), ("bf16", "no")],
)
def test_options_of_a_refiner(name, value):
    with pytest.raises(ValueError, match=rf"^{name}="):
        RefinerConfig(**{name: value})
    with pytest.raises(ValueError, match=rf"^{name}="):
        ft.train_refiner(gaussian, **{"kind": "conv", "noise": NOISE, name: value})


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    network = SiT(SiTConfig(size=4, channels=1, patch=2, width=8, depth=1, heads=1, classes=2))
    return Model(network, {"name": "tiny", "condition": toy().condition}).eval()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("depth", 0), ("depth", 1.5), ("block", 0.5), ("block", None), ("width", 0)],
        *[("width", 8.0), ("dt", "1"), ("dt", 0), ("dt", math.nan), ("dt", True)],
        ("config", {"steps": 3}),
    ],
)
def test_options_of_the_papers_refiner(name, value, model, tmp_path):
    with pytest.raises(ValueError, match=rf"^{name}="):
        train_paper_refiner(model, toy(), tmp_path / "run", **{name: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["architecture", "config"])
def test_what_is_no_configuration(name, tmp_path):
    given = {"architecture": SiTConfig(size=4), "config": TrainConfig(), name: {"size": 4}}
    with pytest.raises(ValueError, match=rf"^{name}=.*must be a \w+Config"):
        train(given["architecture"], toy(), tmp_path / "run", given["config"])
    assert not (tmp_path / "run").exists()


FEW = dict(kind="conv", iterations=1, steps=4, batch=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(guidance=(1, 4)), r"guidance=\(1.0, 4.0\): no cond is given; pass guidance=1"),
        (dict(guidance=2.0, cond=torch.ones(4)), r"guidance=.*has no null_condition\(cond\)"),
        (dict(noise=None), "noise=None: the field has no shape"),
        (dict(noise=[[1.0, 2.0]] * 4), "noise=.*must be a tensor"),
        (dict(noise=np.ones((4, 2))), r"noise=.*pass torch.as_tensor\(noise\)"),
        (dict(noise=torch.ones(4, 2, dtype=torch.int64)), "noise=.*must be of"),
        (dict(noise=torch.ones(4)), "noise=.*must be a tensor"),
        (dict(noise=torch.full((4, 2), math.nan)), "noise=.*must be finite"),
        (dict(noise=torch.ones(1, 2)), "trajectories=1: must be a whole number from 2"),
        (dict(noise=torch.ones(0, 2)), "trajectories=0: must be a whole number from 2"),
        (dict(cond=torch.ones(3)), "cond of 3 rows: must be 4, one for each of noise"),
        (dict(cond=torch.ones(5)), "cond of 5 rows: must be 4"),
        (dict(cond=torch.tensor(1.0)), "cond=.*must be a tensor with a row"),
        (dict(cond=[1, 2, 3, 4]), r"cond=\[1, 2, 3, 4\]: must be a tensor.*as_tensor"),
        (dict(cond=np.ones(4)), "cond=.*must be a tensor"),
        (dict(cond=["a"] * 4), "cond=.*must be a tensor"),
        (dict(cond={"a": torch.ones(4), "b": torch.ones(3)}), "cond of 3, 4 rows"),
        (dict(cond=()), "cond of  ?rows"),
        (dict(plan=5), "plan=5: must be a Plan"),
        (dict(plan="AB2:3"), "asks the refiner nothing"),
        (dict(plan="FFR"), "plan 'FFR': expected"),
        (dict(plan=ft.Plan.parse("AB2:4")), "asks the refiner nothing"),
        (dict(plan=ft.Plan.parse("E1R1")), "2"),
        (dict(plan=ft.Plan.parse("H2R1").restrict(0.3)), "must lead from noise"),
        (dict(kind="velocity"), "kind='conv'"),
        (dict(report=3), "report=3: must be a function"),
        (dict(cond=torch.tensor([0, -1, 1, 2])), "cond=.*holds -1 to 2; number the classes from 0"),
        (dict(cond=torch.tensor([0, 10**12, 1, 2])), "cond=.*below 1,000,000"),
    ],
)
def test_arguments_for_plain_fields_that_do_not_do_are_one_line(changes, message, tmp_path):
    options = {**FEW, "guidance": 1.0, "noise": NOISE, **changes}
    with pytest.raises(ValueError, match=message) as e:
        ft.train_refiner(gaussian, folder=tmp_path / "run", **options)
    assert len(str(e.value).splitlines()) == 1
    assert len(str(e.value)) < 400
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", [None, "digits", 3])
def test_what_is_no_field(field):
    with pytest.raises(ValueError, match=r"^model=.*must be a function \(x, t, cond\)"):
        ft.train_refiner(field, noise=NOISE, **FEW)


def test_noise_that_is_not_of_the_fields_shape(model):
    with pytest.raises(ValueError, match=r"noise=.*the shape \(1, 4, 4\)"):
        ft.train_refiner(model, noise=torch.ones(4, 1, 8, 8), iterations=1)


@pytest.mark.parametrize("folder", [3, "", b"run"])
def test_what_is_no_folder(folder):
    with pytest.raises(ValueError, match=r"^folder=.*must be a path"):
        ft.train_refiner(gaussian, noise=NOISE, guidance=1.0, folder=folder, **FEW)
    with pytest.raises(ValueError, match=r"^out=.*must be a path"):
        train(SiTConfig(size=4), toy(), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data=[1]), r"^data=\[1\]: must be data such as load_data returns"),
        (dict(data=None), "^data=None"),
        (dict(card=[1]), "^card=.*must be a dictionary"),
        (dict(card={"a": object()}), "^card=.*must be what JSON can hold"),
        (dict(card={"a": math.nan}), "^card=.*must be what JSON can hold"),
        (dict(report=3), "^report=3: must be a function"),
        (dict(reprot=print), "did you mean 'report'"),
    ],
)
def test_arguments_of_training_that_do_not_do(changes, message, tmp_path):
    network = SiTConfig(size=4, channels=1, patch=2, width=8, depth=1, heads=1, classes=2)
    options = {"architecture": network, "data": toy(), "out": tmp_path / "run", **changes}
    with pytest.raises(ValueError, match=message):
        train(**options)
    assert not (tmp_path / "run").exists()


def test_conditions_of_any_whole_numbers_are_classes_to_a_small_network():
    field = lambda x, t, cond: x * cond[:, None]
    for dtype, classes in ((torch.bool, 2), (torch.uint8, 4), (torch.int16, 4)):
        options = dict(noise=torch.randn(4, 2), guidance=1.0, **FEW)
        refiner = ft.train_refiner(field, cond=torch.arange(4).to(dtype), **options)
        assert refiner.network.classes.num_embeddings == classes


@pytest.mark.parametrize("speed", [0.0, 3.0])
def test_fields_that_are_constant_can_be_taught_from(speed):
    options = dict(noise=torch.randn(4, 2), guidance=1.0, **FEW)
    refiner = ft.train_refiner(lambda x, t, cond: 0 * x + speed, **options)
    errors = refiner.card["measured"]["mean square, gaps of 1 to 1 steps"]
    assert errors["refiner"] < 1e-6


def test_weights_that_are_not_finite_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="start again in another folder with a lower lr than 1e"):
        ft.train_refiner(
            gaussian, noise=torch.randn(4, 2), guidance=1.0, lr=1e30, folder=tmp_path, **FEW
        )
