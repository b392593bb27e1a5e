"""What a search keeps in its folder: whose it is, and that damage is noticed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import warnings

import pytest
import torch
from fields import gaussian, mixture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated

import flowturbo as ft
from flowturbo.files import exclusive
from flowturbo.tuning.journal import Journal

EXAMPLES = int(os.environ.get("FLOWTURBO_EXAMPLES", "100"))
NOISE = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(40) % 4
FEW = dict(nfe=2, noise=NOISE, search=False)


def to_classes(x, t, cond):
    return cond[:, None] - x


class Reuse:
    """A refiner that gives a share of the last velocity."""

    distinct_times = 1

    def __init__(self, share):
        self.share = share

    def __call__(self, x, t, cond, history):
        return self.share * history[-1][1]


def fresh(field=mixture, **options):
    return ft.tune(field, **FEW | options)


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (dict(field=mixture), dict(field=gaussian), "field="),
        (
            dict(field=lambda x, t, cond: 1 - x),
            dict(field=lambda x, t, cond: 1.01 - x),
            "field=",
        ),
        (
            dict(field=to_classes, cond=CLASSES),
            dict(field=to_classes, cond=CLASSES.flip(0)),
            "condition=",
        ),
        (dict(field=to_classes, cond=CLASSES), dict(field=to_classes, cond=CLASSES.float()), ""),
        (dict(noise=NOISE), dict(noise=NOISE.double()), "noise="),
        (dict(noise=NOISE), dict(noise=NOISE.flip(0)), "noise="),
        (dict(direction="forward"), dict(direction="backward"), "direction="),
        (dict(preserve_contrast=False), dict(preserve_contrast=True), "contrast="),
        (dict(seed=0), dict(seed=1), "seed="),
    ],
)
def test_a_folder_is_of_one_problem(tmp_path, first, second, named):
    ft.tune(**{"model": first.pop("field", mixture)} | FEW | first, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=rf"holds a run with .*{named}"):
        ft.tune(**{"model": second.pop("field", mixture)} | FEW | second, cache_dir=tmp_path)


def test_a_module_without_a_fingerprint_is_known_by_its_weights(tmp_path):
    class Field(torch.nn.Linear):
        def forward(self, x, t, cond):
            return super().forward(x)

    torch.manual_seed(0)
    field = Field(2, 2).eval()
    plan = fresh(field, cache_dir=tmp_path)
    assert fresh(field, cache_dir=tmp_path) == plan
    with torch.no_grad():
        field.weight *= 1.01
    with pytest.raises(ValueError, match="field="):
        fresh(field, cache_dir=tmp_path)


def test_refiners_without_a_fingerprint_are_kept_apart(tmp_path):
    plans = [
        fresh(refiner=Reuse(s), refiner_cost=0, cache_dir=tmp_path / "one")
        for s in (1.0, -1.0, 1.0)
    ]
    alone = [
        fresh(refiner=Reuse(s), refiner_cost=0, cache_dir=tmp_path / f"{s}") for s in (1.0, -1.0)
    ]
    assert plans == [*alone, alone[0]]
    keys = [json.loads(x)[0] for x in (tmp_path / "one/journal.jsonl").read_text().splitlines()]
    assert len({k for k in keys if "FR" in k}) > len({k for k in keys if "FF " in k})


def test_guidance_is_part_of_it(tmp_path):
    field = lambda x, t, cond: cond[:, None] - x
    field.null_condition = torch.zeros_like
    options = dict(cond=CLASSES, cache_dir=tmp_path)
    fresh(field, guidance=2.0, **options)
    with pytest.raises(ValueError, match=r"guidance=2\.0 there, 3\.0 now"):
        fresh(field, guidance=3.0, **options)
    field.null_condition = torch.ones_like
    with pytest.raises(ValueError, match=r"field="):
        fresh(field, guidance=2.0, **options)


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    with exclusive(tmp_path), pytest.raises(ValueError, match="in use by another run"):
        fresh(cache_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    assert fresh(cache_dir=tmp_path) == fresh()


def test_two_searches_at_once_one_is_told(tmp_path):
    told = []

    def again(line):
        if not told:
            told.append(line)
            with pytest.raises(ValueError, match="in use by another run"):
                fresh(cache_dir=tmp_path)

    assert fresh(cache_dir=tmp_path, report=again) == fresh()
    assert told


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    plan = fresh(cache_dir=tmp_path)
    names = {p.suffix for p in tmp_path.iterdir()}
    assert names == {".json", ".jsonl", ".safetensors", ""}
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(torch, "save", None)
    calls = ft.CountCalls(mixture)
    assert fresh(calls, cache_dir=tmp_path) == plan
    assert calls.calls < 20


def test_what_killed_runs_left_half_written_is_removed(tmp_path):
    fresh(cache_dir=tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    (tmp_path / ".reference-000000.writing-abcdefgh.safetensors").write_bytes(b"half")
    (tmp_path / ".other.writing-abcdefgh.json").write_bytes(b"half")
    fresh(cache_dir=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return folder, fresh(cache_dir=folder)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    return iter(tmp_path_factory.mktemp("copies") / str(i) for i in range(1_000_000))


@pytest.mark.parametrize(
    "end", ['["half a li', '["a", 1, "0123456789abcdef"]', '["score", 0.0]\n', "[" * 100_000 + "\n"]
)
def test_lines_that_are_damaged_or_made_up_are_left_out(kept, tmp_path, end):
    folder, plan = kept
    shutil.copytree(folder, tmp_path / "a")
    with (tmp_path / "a" / "journal.jsonl").open("a") as f:
        f.write(end)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert fresh(cache_dir=tmp_path / "a") == plan
    assert len(told) == end.endswith("\n")
    journal = "journal.jsonl"
    assert (tmp_path / "a" / journal).read_bytes() == (folder / journal).read_bytes()


def test_lines_of_another_search_are_left_out(kept, tmp_path):
    folder, _ = kept
    fresh(gaussian, cache_dir=tmp_path)
    plan = fresh(gaussian)
    shutil.copy(folder / "journal.jsonl", tmp_path)
    shutil.copy(folder / "reference-000000.safetensors", tmp_path)
    damaged = pytest.warns(UserWarning, match=r"reference-0+\.safetensors: damaged")
    with damaged, pytest.warns(UserWarning, match=r"journal\.jsonl: .* lines are damaged"):
        assert fresh(gaussian, cache_dir=tmp_path) == plan


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_mutated_journals_give_what_was_kept_or_less(kept, copies, data):
    folder, _ = kept
    options = json.loads((folder / "options.json").read_text())["search"]
    del options["format"]
    whole = Journal(folder, options).entries
    copy = next(copies)
    copy.mkdir()
    content = mutated((folder / "journal.jsonl").read_bytes(), data.draw)
    (copy / "journal.jsonl").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Journal(copy, options).entries
    assert found.items() <= whole.items()
    assert Journal(copy, options).entries == found  # and is whole now, without a warning


@pytest.mark.parametrize("name", ["options.json", "reference-000000.safetensors"])
@settings(
    max_examples=max(1, EXAMPLES // 10),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_mutated_folders_end_the_same_or_are_refused_by_name(kept, copies, name, data):
    folder, plan = kept
    copy = next(copies)
    shutil.copytree(folder, copy)
    (copy / name).write_bytes(mutated((folder / name).read_bytes(), data.draw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert fresh(cache_dir=copy) == plan
            return
        except (ValueError, OSError) as e:
            message = str(e)
    assert str(copy) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("most", "name"), [(100, "options"), (3_000, "reference"), (1_000, "journal")]
)
def test_a_full_disk_is_one_line_and_what_was_kept_stays(kept, tmp_path, most, name):
    folder, plan = kept
    if name == "journal":
        shutil.copy(folder / "reference-000000.safetensors", tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
    try:
        with pytest.raises(OSError, match=rf"cannot write .*{name}\S*: .*File too large"):
            fresh(cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not [*tmp_path.glob("*writing*")]
    assert fresh(cache_dir=tmp_path) == plan
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
