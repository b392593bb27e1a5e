"""Training of refiners: it learns, it resumes to the bit after kills, it refuses what cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fields import gaussian, mixture

import flowturbo as ft
from flowturbo.field import CountCalls
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.path import shifted
from flowturbo.training.initial_states import InitialStateSampler
from flowturbo.training.trajectories import generate_trajectories

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
import torch, accelerate, matplotlib.figure
import flowturbo as ft

torch.set_num_threads(1)
FIELD = lambda x, t, cond: time.sleep(0.002) or torch.cos(4 * t + x)

def start(out):
    child = os.fork()
    if child == 0:
        noise = torch.randn(160, 2, generator=torch.Generator().manual_seed(0))
        ft.train_refiner(
            FIELD, kind="conv", guidance=1.0, noise=noise, folder=out, iterations=40,
            save_every=10, batch=8, steps=8, width=8, plan="AB2:FFRR",
        )
        os._exit(0)
    return child

whole, killed = Path(sys.argv[1]), Path(sys.argv[2])
assert os.waitpid(start(whole), 0)[1] == 0
run = killed / "refiner-run"
for sign in ("trajectories.json", "checkpoints/step-*", "on-policy/checkpoints/step-*"):
    child = start(killed)
    while not list(run.glob(sign)):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    drawn = len(json.loads((run / "trajectories.json").read_text())["digests"])
    print(drawn, sorted(p.name for p in run.rglob("step-*")))
assert os.waitpid(start(killed), 0)[1] == 0
"""


def test_killed_in_each_stage_and_resumed_equals_uninterrupted(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(whole), str(killed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    drawing, training, tuning = done.stdout.splitlines()
    assert drawing.startswith(("1 ", "2 "))
    assert "step-00000040" not in training
    assert "step-00000040" in tuning
    assert "step-00000010" in tuning
    names = ["refiner.safetensors", "refiner.json", "refiner-run/trajectories.npy"]
    for name in names:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_a_finished_run_is_not_done_again(tmp_path):
    teacher, noise = CountCalls(gaussian), ft.noise.draw(range(20), (3,))
    options = dict(kind="conv", guidance=1.0, noise=noise, folder=tmp_path, plan="AB2:FFR")
    options["report"] = lambda progress: None
    first = ft.train_refiner(teacher, **options, iterations=2, batch=4, steps=4)
    teacher.calls = 0
    again = ft.train_refiner(teacher, **options, iterations=2, batch=4, steps=4)
    assert teacher.calls == 3  # to know it by
    assert again.card == first.card
    assert again.fingerprint == first.fingerprint
    with pytest.raises(ValueError, match="on-policy holds a run with plan"):
        ft.train_refiner(teacher, **{**options, "plan": "AB2:FFRF"}, iterations=2, batch=4, steps=4)


TINY = dict(iterations=2, batch=4, steps=4, trajectories=3, width=8)


def test_a_small_refiner_of_videos_is_trained_and_loaded(tmp_path):
    noise = ft.noise.draw(range(20), (2, 3, 4, 4))
    made = ft.train_refiner(
        gaussian, kind="conv", guidance=1.0, noise=noise, folder=tmp_path, **TINY
    )
    loaded = ft.load_refiner(tmp_path)
    history = [(0.0, noise), (0.2, 0.5 * noise)]
    torch.testing.assert_close(
        loaded(noise, 0.4, None, history), made(noise, 0.4, None, history), rtol=0, atol=1e-2
    )


def test_training_beats_extrapolation_and_on_policy_states_help():
    noise = ft.noise.draw(range(200), (2,))
    reports = []
    refiner = ft.train_refiner(
        mixture, kind="conv", guidance=1.0, noise=noise, iterations=300, batch=64, steps=12,
        lr=5e-3, ema=0.98, plan="AB2:FFRFR", report=reports.append, save_every=300,
    )  # fmt: skip
    measured = refiner.card["measured"]
    off = measured["mean square, gaps of 1 to 3 steps"]
    assert off["refiner"] < 0.25 * min(off["last velocity"], off["linear extrapolation"])
    rollout = measured["rollout"]
    assert rollout["kept"] == (rollout["after"]["rmse"] < rollout["before"]["rmse"])
    stages = list(dict.fromkeys(p.stage for p in reports))
    assert stages == ["trajectories", "training", "on-policy training"]
    assert (300, 300) in {(p.done, p.total) for p in reports if p.stage == "training"}
    plan, x = ft.Plan.parse("AB2:FFRFR@1.6"), ft.noise.draw(range(900, 964), (2,))
    exact = ft.sample(ft.Plan.rk4(32), mixture, x)
    error = lambda r: (ft.sample(plan, mixture, x, refiner=r) - exact).square().mean()
    assert error(refiner) < 0.5 * error(ft.refiner.VelocityRefiner.small((2,)))


def _model(**changes) -> Model:
    torch.manual_seed(0)
    config = dict(size=4, channels=1, patch=2, width=16, depth=2, heads=2, **changes)
    network = SiT(SiTConfig(**config))
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    kind = {"kind": "class", "labels": ["a", "b", "c"]}
    if changes.get("vocabulary"):
        tokenizer = {"vocabulary": ["red", "blue"], "length": 2}
        kind = {"kind": "text", "tokenizer": tokenizer}
    return Model(network, {"name": "tiny", "condition": kind}).eval().requires_grad_(False)


def test_one_refiner_for_a_range_of_guidance_written_with_its_card(tmp_path):
    model = _model(classes=3)
    refiner = ft.train_refiner(
        model, folder=tmp_path, plan="AB2:FFR", guidance=(1.0, 3.0), **{**TINY, "width": None}
    )
    card = json.loads((tmp_path / "refiner.json").read_text())
    assert card["guidance"] == [1.0, 3.0]
    assert card["model"] == {"name": "tiny", "fingerprint": model.fingerprint}
    assert card["recipe"]["trajectories"] == 3
    assert set(card["measured"]["rollout"]["before"]) == {"rmse", "median"}
    assert ft.load_refiner(tmp_path, model).kind == refiner.kind == "velocity"
    x, cond = ft.noise.draw(range(3), model.shape), model.condition(["a", "b", "c"])
    out = ft.sample(ft.Plan.parse("AB2:FFRF@1.6"), model, x, cond, guidance=2.5, refiner=refiner)
    assert out.isfinite().all()
    with pytest.raises(ValueError, match="made for 1 to 3"):
        ft.sample(ft.Plan.parse("AB2:FFRF@1.6"), model, x, cond, guidance=4.0, refiner=refiner)


def test_trajectories_are_the_guided_models(tmp_path):
    model = _model(classes=3)
    starts = InitialStateSampler.of(model, (1.0, 3.0), 7, None, None)
    drawn = generate_trajectories(model, tmp_path, starts, 5, 6, batch=4)
    assert drawn.arrays.shape == (6, 5, 2, 1, 4, 4)
    assert drawn.arrays.dtype == np.float16
    x, cond, w = starts.rows(0, 6)
    assert w.min() >= 1
    assert w.max() <= 3
    assert len(set(w.tolist())) == 6
    assert set(cond.tolist()) <= {0, 1, 2}
    velocity = ft.Guidance(model, w)(x, 0.0, cond)
    torch.testing.assert_close(torch.from_numpy(drawn.arrays[:, 0, 0]), x.half())
    torch.testing.assert_close(torch.from_numpy(drawn.arrays[:, 0, 1]), velocity.half())
    x = x + 0.2 * velocity
    torch.testing.assert_close(torch.from_numpy(drawn.arrays[:, 1, 0]), x.half(), rtol=0, atol=0.01)
    for held_out in (False, True):
        b = drawn.batch(64, torch.Generator().manual_seed(0), held_out=held_out)
        assert ((b.b[0] < b.a[0]) & (b.a[0] < b.t)).all()
        rows = {int((w == s).nonzero()) for s in b.guidance}
        assert rows == ({5} if held_out else {0, 1, 2, 3, 4})
    counted = CountCalls(model)
    again = generate_trajectories(counted, tmp_path, starts, 5, 6, batch=4)
    assert counted.calls == 0
    assert np.array_equal(again.arrays, drawn.arrays)


def test_trajectories_of_each_seed_start_at_noise_of_their_own():
    model = _model(classes=3)
    starts = [
        InitialStateSampler.of(model, 1.0, seed, None, None).rows(0, 3)[0] for seed in (0, 1, 256)
    ]
    assert not torch.equal(starts[0], ft.noise.draw(range(3), model.shape))  # of pictures
    assert len({bytes(x.numpy()) for x in starts}) == 3


def test_each_batch_of_trajectories_has_times_of_its_own(tmp_path):
    starts = InitialStateSampler.of(gaussian, 1.0, 0, ft.noise.draw(range(6), (3,)), None)
    drawn = generate_trajectories(gaussian, tmp_path, starts, 8, 6, shift=1.6, jitter=0.3, batch=4)
    assert drawn.times.shape == (6, 8)
    assert torch.equal(drawn.times[0], drawn.times[3])
    assert not torch.equal(drawn.times[0], drawn.times[4])
    assert drawn.times[:, 0].eq(0).all()
    assert (drawn.times.diff() > 0).all()
    even = torch.from_numpy(shifted(8, 1.6)[:-1]).float()
    assert 0 < (drawn.times - even).abs().max() < 0.3 / 8 * 1.6
    for row in (0, 5):  # what is kept was asked at those times
        x, v = (torch.from_numpy(drawn.arrays[row, :, i]).float() for i in (0, 1))
        told = torch.stack([gaussian(s, t) for s, t in zip(x, drawn.times[row], strict=True)])
        torch.testing.assert_close(v, told, rtol=0.01, atol=0.01)
    again = generate_trajectories(gaussian, tmp_path, starts, 8, 6, shift=1.6, jitter=0.3, batch=4)
    assert torch.equal(again.times, drawn.times)


def test_training_calls_no_teacher_and_no_data():
    teacher = CountCalls(gaussian)
    noise, calls = ft.noise.draw(range(70), (3,)), []
    ft.train_refiner(
        teacher, kind="conv", guidance=1.0, noise=noise, iterations=3, batch=4, steps=6,
        report=lambda progress: calls.append(teacher.calls),
    )  # fmt: skip
    assert set(calls[12:]) == {teacher.calls} == {3 + 2 * 6}


def test_text_models_take_prompts_from_the_caller_or_the_card():
    model = _model(vocabulary=3, text_length=2)
    with pytest.raises(ValueError, match=r"pass cond=model.condition"):
        ft.train_refiner(model, **TINY)
    cond = model.condition(["red", "blue"])
    assert ft.train_refiner(model, cond=cond, **{**TINY, "width": None}).kind == "velocity"
    model.card["condition"]["prompts"] = ["red"]
    ids = InitialStateSampler.of(model, 1.0, 0, None, None).rows(0, 4)[1]
    assert torch.equal(ids, model.condition(["red"] * 4))


def test_other_fields_with_conditions_of_any_structure():
    field = lambda x, t, cond: cond["level"][:, None] * x + cond["more"][0]
    noise = torch.randn(5, 3)
    cond = {"level": torch.randn(5), "more": (torch.randn(5, 3),)}
    refiner = ft.train_refiner(
        field, kind="conv", guidance=1.0, noise=noise, cond=cond, plan="AB2:FFR", **TINY
    )
    assert refiner.network.classes is None
    labels = ft.train_refiner(
        lambda x, t, cond: x * cond[:, None], kind="conv", guidance=1.0, noise=noise,
        cond=torch.arange(5), **TINY,
    )  # fmt: skip
    assert labels.network.classes.num_embeddings == 5


def test_minutes_are_kept_and_found_again(tmp_path):
    options = {**TINY, "iterations": None, "minutes": 0.002}
    for _ in range(2):
        refiner = ft.train_refiner(_model(classes=3), folder=tmp_path, **options)
    config = json.loads((tmp_path / "refiner-run" / "config.json").read_text())
    assert config["training"]["steps"] == refiner.card["training"]["steps"] >= 1


def test_a_disk_too_small_is_refused_before_drawing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda p: SimpleNamespace(free=1000))
    model = CountCalls(_model(classes=3))
    with pytest.raises(OSError, match=r"need 0.0 MB in .* fewer trajectories"):
        ft.train_refiner(model, folder=tmp_path, guidance=1.0, **{**TINY, "trajectories": 9})
    assert model.calls == 3  # to know it by
    assert not (tmp_path / "refiner-run" / "trajectories.npy").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(kind="unet"), "kind='unet'"),
        (dict(minutes=0), "minutes=0"),
        (dict(iterations=0), "iterations=0"),
        (dict(guidance=(4, 1)), "lowest, highest"),
        (dict(trajectories=1), "trajectories=1: must be a whole number from 2"),
        (dict(steps=2), "steps=2: must be a whole number from 3"),
        (dict(jitter=0.5), "jitter=0.5"),
        (dict(shift=0), "shift=0"),
        (dict(plan="AB2:RF"), "F, C and R from an F on"),
        (dict(lr=-1), "lr=-1"),
        (dict(seed=-1), "seed=-1"),
        (dict(batch=0), "batch=0"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ft.train_refiner(_model(classes=3), **{**TINY, **changes})


def test_fields_that_cannot_be_taught_from_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pass noise and cond"):
        ft.train_refiner(gaussian, **TINY)
    noise = torch.randn(4, 3)
    with pytest.raises(ValueError, match="kind='conv'"):
        ft.train_refiner(gaussian, noise=noise, guidance=1.0, **TINY)
    with pytest.raises(ValueError, match="not finite in half precision"):
        ft.train_refiner(lambda x, t, cond: 1e6 * x, noise=noise, kind="conv", guidance=1.0, **TINY)
    options = {**TINY, "kind": "conv", "folder": tmp_path, "guidance": 1.0}
    ft.train_refiner(gaussian, noise=noise, **options)
    with pytest.raises(ValueError, match=r"given=.*another folder"):
        ft.train_refiner(gaussian, noise=noise + 1, **options)
