"""The whole way from a folder of pictures to a measured plan, by commands alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import flowturbo as ft
from flowturbo.cli import main


@pytest.fixture
def flowturbo(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder, and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> str:
        with pytest.raises(SystemExit) as e:
            main(line.split())
        said, errors = capsys.readouterr()
        assert e.value.code == 0, errors
        return said + errors

    return run


@pytest.mark.parametrize("ahead_of_time", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_whole_walk(flowturbo, tmp_path, ahead_of_time):
    """Each command takes what the one before it left, where it left it."""
    rng = np.random.default_rng(0)
    for name, shade in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            picture = np.clip(rng.normal(shade, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / name / f"{i}.png")
    small = "--size 8 --patch 4 --width 16 --depth 2 --heads 2 --batch 4 --steps 20 --lr 0.01"
    quick = "--no-compile --no-bf16 --preview-every 0"
    flowturbo(f"train --data data --out model {small} {quick}")
    few = "--iterations 20 --batch 8 --trajectories 8 --steps 4 --guidance 1-3"
    flowturbo(f"train-refiner -m model {few} -o refiner")
    said = flowturbo(
        "tune -m model --nfe 3 --refiner refiner --guidance 2 --trajectories 16 --no-search "
        "-o model/plans/three.json"
    )
    assert "-> model/plans/three.json" in said
    ft.Plan.parse("H1P1R1").save("with-refiner.json")  # a fit may leave the refiner out
    for i, plan in enumerate(("three", "model/plans/three.json", "with-refiner.json")):
        use = f"-m model --plan {plan} --refiner refiner --guidance 2"
        said = flowturbo(f"generate {use} dark light -n 2 -o pictures{i}")
        assert said.startswith("4 images, ")
        said = flowturbo(
            f"evaluate {use} -n 10 --steps 8 --repeats 0 --no-features --cache-dir drawn "
            "-o record.json"
        )
        assert json.loads((tmp_path / "record.json").read_text())["conditions"]["guidance"] == 2
    flowturbo(f"benchmark {use} --batch 2 --repeats 1 --scopes none --no-baselines -o bench.json")
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["methods"][0]["evaluations"] == {"model": 3, "conditional": 0, "refiner": 2}
    flowturbo(
        f"analyze {use} --trajectories 4 --steps 8 --nfe 2 --sections solvers,rows -o analysis"
    )
    assert {p.name for p in (tmp_path / "analysis").iterdir()} >= {"record.json", "rows.png"}
    if ahead_of_time:  # half a minute of compiling
        flowturbo(f"export {use} --batch 2 -o sampler.pt2")
        model = ft.load("model")
        x0, cond = ft.noise.draw([0, 1], model.shape), model.condition(["dark", "light"])
        plan, refiner = ft.Plan.load("with-refiner.json"), ft.load_refiner("refiner", model)
        wanted = ft.sample(plan, model, x0, cond, guidance=2.0, refiner=refiner)
        assert torch.allclose(ft.load_compiled("sampler.pt2")(x0, cond), wanted, atol=1e-4)
