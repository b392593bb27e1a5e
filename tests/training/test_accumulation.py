"""Gradient accumulation: the result of a batch that many times as large."""

from __future__ import annotations

import pytest
import torch
from runs import NETWORK, QUICK, same, toy, toy_run
from safetensors.torch import load_file

import flowturbo as ft
from flowturbo.progress import Progress
from flowturbo.training import PaperRefinerConfig, TrainConfig, train, train_paper_refiner


def test_passes_add_up_to_one_large_batch(tmp_path):
    one = train(NETWORK, toy(), tmp_path / "one", **{**QUICK, "batch": 12}, steps=4)
    parts = train(
        NETWORK, toy(), tmp_path / "parts", **{**QUICK, "batch": 3}, steps=4, accumulate=4
    )
    name = "checkpoints/step-00000004.safetensors"
    a, b = load_file(one / name), load_file(parts / name)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
    assert [ft.load(out).card["training"].get("accumulate") for out in (one, parts)] == [None, 4]


def test_the_papers_refiner_accumulates_too(tmp_path):
    model = ft.load(toy_run(tmp_path / "model"))
    trained = []
    for batch, accumulate in ((6, 1), (3, 2)):
        config = PaperRefinerConfig(steps=2, batch=batch, accumulate=accumulate, lr=1e-3)
        out = tmp_path / str(batch)
        trained.append(train_paper_refiner(model, toy(), out, config).state_dict())
    for key, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][key], rtol=1e-3, atol=1e-4)


def test_an_accumulating_run_resumes_to_the_bit(tmp_path):
    def stop(progress: Progress) -> None:
        if progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "stopped", accumulate=2, report=stop)
    for name in ("stopped", "whole"):
        toy_run(tmp_path / name, accumulate=2)
    same(tmp_path / "stopped", tmp_path / "whole")


def test_accumulate_is_a_count():
    with pytest.raises(ValueError, match=r"^accumulate=0: must be a whole number from 1"):
        TrainConfig(accumulate=0)
