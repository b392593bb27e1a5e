"""The cache of an evaluation: damage is noticed, and a full disk loses nothing."""

from __future__ import annotations

import os
import resource
import shutil
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated

from flowturbo.evaluate.image_cache import ImageCache

EXAMPLES = int(os.environ.get("FLOWTURBO_EXAMPLES", "100"))
OPTIONS = {"guidance": 2.0, "seed": 0}


def rows(folder, options=OPTIONS, calls=None, name="plan"):
    def make(rows):
        if calls is not None:
            calls.append(rows.start)
        x = torch.arange(rows.start, rows.stop).float()[:, None] + torch.arange(3)
        return {"states": x, "features": x.flip(1)}

    return ImageCache(folder, options, 4).rows(name, 10, make, 24)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return folder, rows(folder)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    return iter(tmp_path_factory.mktemp("copies") / str(i) for i in range(1_000_000))


def test_what_is_whole_is_not_made_again(kept, tmp_path):
    folder, whole = kept
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    calls = []
    assert equal(rows(tmp_path, calls=calls), whole)
    assert calls == []
    (tmp_path / "plan-000004.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"plan-000004\.safetensors: damaged"):
        assert equal(rows(tmp_path, calls=calls), whole)
    assert calls == [4]


def test_chunks_of_other_options_rows_or_plans_are_not_taken(kept, tmp_path):
    folder, _ = kept
    other = rows(tmp_path / "other", OPTIONS | {"seed": 1})
    for name in ("plan-000000.safetensors", "plan-000004.safetensors"):
        shutil.copy(folder / name, tmp_path / "other")
    shutil.copy(folder / "plan-000000.safetensors", tmp_path / "other/twin-000000.safetensors")
    for name in ("plan", "twin"):
        calls = []
        with pytest.warns(UserWarning, match="damaged, or of another run"):
            assert equal(rows(tmp_path / "other", OPTIONS | {"seed": 1}, calls, name), other)
        assert calls[0] == 0
    with pytest.raises(ValueError, match="seed=1 there, 0 now"):
        rows(tmp_path / "other")


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_mutated_files_end_the_same_or_are_refused_by_name(kept, copies, data):
    folder, whole = kept
    copy = next(copies)
    shutil.copytree(folder, copy)
    path = copy / data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
    path.write_bytes(mutated(path.read_bytes(), data.draw))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert equal(rows(copy), whole)
        return
    except (ValueError, OSError) as e:
        message = str(e)
    finally:
        shutil.rmtree(copy)
    assert str(copy) in message
    assert "\n" not in message


@pytest.mark.parametrize("most", [50, 300])
def test_a_full_disk_is_one_line_and_what_was_kept_stays(kept, tmp_path, most):
    folder, whole = kept
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*(json|safetensors): .*File too large"):
            rows(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not [*tmp_path.glob("*writing*")]
    assert equal(rows(tmp_path), whole)
    assert (tmp_path / "options.json").read_bytes() == (folder / "options.json").read_bytes()
