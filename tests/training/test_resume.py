"""A run that is resumed: with what it began with, whatever happened to its folder meanwhile."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import NETWORK, PICKLES, QUICK, Trap, refiner_run, same, toy, toy_run, trap, waves
from safetensors.torch import load_file, save_file

import flowturbo as ft
from flowturbo.files import exclusive
from flowturbo.progress import Progress
from flowturbo.training import (
    ArrayData,
    PaperRefinerConfig,
    TrainConfig,
    train,
    train_paper_refiner,
)

LAST, BEFORE = (f"checkpoints/step-0000000{step}.safetensors" for step in (6, 4))
REFINER = ("refiner.safetensors", "refiner.json", "refiner-run/refiner.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return toy_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def refined(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("refined") / "run"
    refiner_run(out)
    return out


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def refiner(refined, tmp_path) -> Path:
    return Path(shutil.copytree(refined, tmp_path / "refiner"))


def _stop_after(step: int):
    def report(progress: Progress) -> None:
        if progress.done == step:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("stopped", [3, 6])
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (dict(bright=201), "digest="),
        (dict(labels="ba"), r"labels=\['a', 'b'\] there, \['b', 'a'\] now"),
    ],
)
def test_other_data_are_refused_whether_the_run_has_ended_or_not(
    tmp_path, whole, stopped, changes, what
):
    if stopped < 6:
        with pytest.raises(KeyboardInterrupt):
            toy_run(tmp_path, report=_stop_after(4))
    else:
        tmp_path = whole
    card = (tmp_path / "card.json").read_bytes()
    with pytest.raises(ValueError, match=rf"{what}.*another folder"):
        toy_run(tmp_path, toy(**changes))
    assert (tmp_path / "card.json").read_bytes() == card


def test_another_accumulation_is_refused(tmp_path):
    toy_run(tmp_path, steps=1, accumulate=2)
    with pytest.raises(ValueError, match=r"accumulate=2 there, None now.*another folder"):
        toy_run(tmp_path, steps=1)


class ImageCache:
    """Data of one's own, without a digest or a length."""

    condition, shape = None, (1, 4, 4)

    def __init__(self, level: float) -> None:
        self.level = level

    def batch(self, n, generator):
        return self.level + torch.rand(n, 1, 4, 4, generator=generator), None

    def examples(self, n):
        return None


def test_data_of_ones_own_are_known_by_what_they_draw(tmp_path):
    toy_run(tmp_path, ImageCache(0.0), steps=1)
    toy_run(tmp_path, ImageCache(0.0), steps=1)
    with pytest.raises(ValueError, match="digest="):
        toy_run(tmp_path, ImageCache(0.1), steps=1)


def test_data_that_the_network_has_no_embeddings_for_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"classes=2, the data need 3; pass SiTConfig\(classes=3"):
        toy_run(tmp_path / "run", toy(labels="abc"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_ended_is_exported_again_with_the_card_that_is_asked_for(run, whole):
    for name in ("card.json", "model.safetensors"):
        (run / name).unlink()
    toy_run(run)
    same(run, whole)
    config = TrainConfig(**QUICK, steps=6, save_every=2, preview_every=3)
    train(NETWORK, toy(), run, config, card={"name": "other"})
    assert ft.load(run).name == "other"
    same(run, whole, "model.safetensors")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _of_another_run(path: Path) -> None:
    tensors = load_file(path)
    save_file({k: 0 * p for k, p in tensors.items()}, path)


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _of_another_run])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(run, whole, damage):
    damage(run / LAST)
    with pytest.warns(UserWarning, match=LAST) as told:
        toy_run(run)
    assert any("going on from this older" in str(w.message) for w in told)
    same(run, whole, "model.safetensors", "card.json", LAST)


def test_without_a_whole_checkpoint_a_run_is_refused(run):
    for name in (LAST, BEFORE):
        _flip(run / name)
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match=r"no whole checkpoint.*restore one, or remove the folder"),
    ):
        toy_run(run)
    shutil.rmtree(run / "checkpoints")
    toy_run(run)


def test_the_last_two_checkpoints_are_kept(run):
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        Path(BEFORE).name,
        Path(LAST).name,
    ]


@pytest.mark.parametrize(
    "text",
    [
        *[b'{"step": 1, "lo', b"}", b"]", b"[1]", b'{"step": "a"}', b"{}", b"\xff}", b"NaN"],
        *[b'{"step": 1, "loss": NaN, "seconds": 1.0}', b"[" * 100_000],
    ],
)
def test_damaged_lines_of_a_log_are_left_out_and_told(run, text):
    log = run / "log.jsonl"
    lines = log.read_bytes()
    log.write_bytes(lines + text)
    with pytest.warns(UserWarning, match="log.jsonl: left out 1 damaged line"):
        toy_run(run)
    assert log.read_bytes() == lines


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"architecture": 1}', "null"])
def test_a_damaged_config_is_refused(run, text):
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json: not of such a run; choose another folder"):
        toy_run(run)


def test_a_run_of_an_older_version_is_refused(run):
    config = json.loads((run / "config.json").read_text())
    del config["run"]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="choose another folder"):
        toy_run(run)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("command", ["train", "train-refiner"])
def test_stopped_at_any_file_and_resumed_equals_uninterrupted(
    command, error, whole, refined, tmp_path, monkeypatch
):
    again = toy_run if command == "train" else refiner_run
    replace, stopped, more, told = os.replace, 0, True, []
    while more:
        left = [stopped]

        def failing(*paths, left=left):
            if left[0] == 0:
                raise error
            left[0] -= 1
            replace(*paths)

        monkeypatch.setattr(os, "replace", failing)
        try:
            again(tmp_path / "run")
            more = False
        except KeyboardInterrupt:
            stopped += 1
        except OSError as e:
            told.append(str(e))
            stopped += 1
    monkeypatch.undo()
    assert stopped > 3
    assert all("cannot write" in line and "No space left" in line for line in told)
    names = () if command == "train" else REFINER
    same(tmp_path / "run", whole if command == "train" else refined, *names)
    left = [p for p in (tmp_path / "run").rglob(".*") if p.name != ".lock"]
    assert left == []


def test_a_folder_in_use_is_refused(tmp_path):
    for folder, again in ((tmp_path, toy_run), (tmp_path / "refiner-run", refiner_run)):
        with exclusive(folder), pytest.raises(ValueError, match="in use by another run"):
            again(tmp_path)
        assert [p.name for p in folder.iterdir() if p.is_file()] == [".lock"]


@pytest.mark.parametrize("command", ["train", "train-refiner"])
def test_no_pickle_is_loaded_under_any_name(command, run, refiner, whole, refined, tmp_path):
    """What torch, accelerate or numpy would unpickle, planted everywhere, does not run."""
    folder, again = (run, toy_run) if command == "train" else (refiner, refiner_run)
    sprung = tmp_path / "sprung"
    content = trap(sprung)
    own = [p for p in folder.rglob("*") if p.is_file()]
    for place in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        (place / "step-00000009").mkdir()
        for name in (*PICKLES, "step-00000008.safetensors"):
            (place / name).write_bytes(content)
            (place / "step-00000009" / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again(folder)
        names = () if command == "train" else REFINER
        same(folder, whole if command == "train" else refined, *names)
        kinds = [p.parent.name == "checkpoints" or 2 * (p.name == "config.json") for p in own]
        for kind in (0, 1, 2):
            for path in [p for p, k in zip(own, kinds, strict=True) if k == kind]:
                path.write_bytes(content)
                if path.suffix == ".npy":
                    with path.open("wb") as file:
                        np.save(file, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
            if kind == 0:
                again(folder)
            else:
                with pytest.raises(ValueError, match=r"choose another folder|start again"):
                    again(folder)
    assert not sprung.exists()


def test_a_refiner_of_another_field_or_condition_is_refused(refined, tmp_path):
    with pytest.raises(ValueError, match=r"identity=.*another folder"):
        refiner_run(refined, field=lambda x, t, cond: waves(x, t, cond) + 0.01)
    field = lambda x, t, cond: cond[:, None] * x
    options = dict(field=field, plan=None, iterations=1)
    refiner_run(tmp_path, cond=torch.ones(130), **options)
    refiner_run(tmp_path, cond=torch.ones(130), **options)
    cond = torch.ones(130)
    cond[77] = 2
    with pytest.raises(ValueError, match=r"given=.*another folder"):
        refiner_run(tmp_path, cond=cond, **options)


def test_the_refiner_that_is_returned_is_the_one_that_is_asked_for(refiner):
    tuned = refiner_run(refiner).card
    assert "rollout" in tuned["measured"]
    assert "rollout" not in refiner_run(refiner, plan=None).card["measured"]
    assert refiner_run(refiner).card == tuned


def test_damaged_parts_of_a_refiners_run_are_told_and_made_again(refiner, refined):
    run = refiner / "refiner-run"
    for name, damage in (
        ("trajectories.npy", _flip),
        ("trajectories.npy", _cut),
        ("trajectories.npy", _empty),
        ("trajectories.json", _cut),
        ("on-policy/finished.json", _cut),
        ("on-policy/checkpoints/step-00000001.safetensors", None),
        ("checkpoints/step-00000004.safetensors", _flip),
    ):
        for wanted in REFINER:
            (refiner / wanted).unlink()
        if damage is None:
            (run / name).unlink()
            refiner_run(refiner)
        else:
            damage(run / name)
            with pytest.warns(UserWarning, match=name.replace(".json", ".(json|npy)")):
                refiner_run(refiner)
        same(refiner, refined, *REFINER, "refiner-run/trajectories.npy")


def test_a_run_of_a_refiner_with_the_earlier_names_is_resumed(refiner, refined):
    """On-policy states were called own states, in the names of the folder and of a section."""
    run = refiner / "refiner-run"
    shutil.rmtree(run / "on-policy")
    (run / "own-states").mkdir()
    refiner_run(refiner)
    assert "own states" in json.loads((run / "own-states" / "config.json").read_text())
    assert not (run / "on-policy").exists()
    same(refiner, refined, *REFINER)


def test_a_refiners_run_without_minutes_to_be_read_is_refused(tmp_path):
    options = dict(iterations=None, minutes=0.001, plan=None)
    refiner_run(tmp_path, **options)
    (tmp_path / "refiner-run" / "config.json").write_text('{"training": {"steps": "many"}}')
    with pytest.raises(ValueError, match=r"config.json: training.steps: 'many'"):
        refiner_run(tmp_path, **options)


def test_other_data_for_the_papers_refiner_are_refused(whole, tmp_path):
    model, data = ft.load(whole), toy()
    config = PaperRefinerConfig(steps=1, batch=2)
    for _ in range(2):
        train_paper_refiner(model, data, tmp_path, config)
    other = ArrayData(data.images.flip(0), data.cond, data.condition)
    with pytest.raises(ValueError, match=r"digest=.*another folder"):
        train_paper_refiner(model, other, tmp_path, config)
