"""`tune`, `evaluate`, `analyze` and `benchmark`: files in use, full disks, damaged records."""

from __future__ import annotations

import json
import os
import resource
import warnings
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated

from flowturbo.cli import main
from flowturbo.compiled import backend
from flowturbo.evaluate.analysis_figures import tables
from flowturbo.evaluate.records import read_analysis, read_evaluation
from flowturbo.evaluate.report import evaluations
from flowturbo.files import atomic_write, exclusive, reserved
from flowturbo.models.checkpoint import save_folder

EXAMPLES = int(os.environ.get("FLOWTURBO_EXAMPLES", "100"))
FEW = {
    "tune": ["--nfe", "2", "--trajectories", "4", "--no-search"],
    "evaluate": ["-n", "10", "--steps", "8", "--repeats", "0", "--no-features", "--plan", "E2"],
    "analyze": ["--trajectories", "3", "--steps", "8", "--nfe", "2,3", "--plan", "E2"],
    "benchmark": ["--no-baselines", "--batch", "1", "--repeats", "1", "--reference", "E4",
                  "--plan", "E2", "--scopes", "none"],
}  # fmt: skip


@pytest.fixture
def run(tiny, tmp_path, capsys, monkeypatch):
    """Runs a command on a tiny model; its status and the lines on standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backend, "_BACKEND", "aot_eager")
    card = {"condition": {"kind": "class", "labels": list("abcde")}}
    save_folder(tmp_path / "model", tiny, card)

    def run(command, *arguments):
        shared = ["-m", "model", "--device", "cpu", *FEW[command]]
        with pytest.raises(SystemExit) as end:
            main([command, *shared, *map(str, arguments)])
        return end.value.code or 0, capsys.readouterr().err.splitlines()

    return run


@contextmanager
def disk_of(most):
    """Files of at most so many bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("tune", "-o out.json"), ("tune", "--cache-dir kept"),
        ("evaluate", "-o out.json"), ("evaluate", "--cache-dir kept"),
        ("benchmark", "-o out.json"), ("benchmark", "--plot out.png"),
        ("analyze", "-o kept"),
    ],
)  # fmt: skip
def test_a_second_run_is_told_in_one_line(run, tmp_path, command, option):
    name = option.split()[1]
    hold = exclusive if name == "kept" else reserved
    with hold(tmp_path / name):
        status, lines = run(command, *option.split())
    assert status == 2
    assert len(lines) == 1
    assert "another run" in lines[0]
    assert name in lines[0]
    left = {p.name for p in tmp_path.iterdir()} - {"model", "kept"}
    assert not left
    assert run(command, *option.split())[0] == 0


def test_names_are_held_only_as_long_as_a_run_lives(tmp_path):
    path = tmp_path / "out.json"
    with reserved(path, None, tmp_path / "other.json"):
        with atomic_write(path) as temporary:  # the run itself writes
            temporary.write_text("1")
        told = pytest.raises(ValueError, match=r"out\.json is being written by another run")
        with told, reserved(path):
            pass
    (tmp_path / ".out.writing-abcdefgh.json").write_text("left by a killed run")
    (tmp_path / ".out.settings.json").write_text("of somebody else")
    with reserved(path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.settings.json", "out.json"]


@pytest.mark.parametrize(
    ("command", "most", "options", "written"),
    [
        ("tune", 300, "-o out.json", []),
        ("tune", 2_000, "-o out.json --cache-dir kept", ["journal.jsonl", "options.json"]),
        ("evaluate", 300, "-o out.json", []),
        ("evaluate", 1_000, "-o out.json --cache-dir kept", ["options.json"]),
        ("analyze", 300, "-o kept", []),
        ("analyze", 20_000, "-o kept", ["record.json"]),
        ("benchmark", 300, "-o out.json", []),
        ("benchmark", 5_000, "--plot out.png", []),
    ],
)
def test_a_full_disk_is_one_line_and_what_was_written_stays(
    run, tmp_path, command, most, options, written
):
    with disk_of(most):
        status, lines = run(command, *options.split())
    assert status == 1
    assert len(lines) == 1, lines
    assert "cannot write" in lines[0]
    assert "too large" in lines[0]
    kept = tmp_path / "kept"
    found = sorted(p.name for p in kept.iterdir()) if kept.exists() else []
    assert [n for n in found if n != ".lock"] == written
    assert not [*tmp_path.glob(".*writing*")]
    assert run(command, *options.split())[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [("-o out.txt", "a record is written as .json"), ("--plot out.foo", "one of .")],
)
def test_names_that_cannot_be_written_are_refused_before_anything_is_measured(
    run, tmp_path, options, message
):
    (tmp_path / "model" / "model.safetensors").unlink()  # it is not even looked at
    status, lines = run("benchmark", *options.split())
    assert (status, len(lines)) == (2, 1)
    assert message in lines[0]


@pytest.fixture
def records(run, tmp_path):
    assert run("analyze", "-o", "kept")[0] == 0
    assert run("evaluate", "-o", "out.json")[0] == 0
    return tmp_path / "kept" / "record.json", tmp_path / "out.json"


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_records_are_shown_or_refused_by_name(records, tmp_path, data):
    """Of bytes that were changed, and of values that were."""
    which = data.draw(st.sampled_from([0, 1]))
    read = (read_analysis, read_evaluation)[which]
    content = records[which].read_bytes()
    if data.draw(st.booleans()):
        content = mutated(content, data.draw)
    else:
        made = json.loads(content)
        place, key = made, data.draw(st.sampled_from(sorted(made)))
        while isinstance(place[key], (dict, list)) and place[key] and data.draw(st.integers(0, 4)):
            place = place[key]
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(keys))
        values = [None, "x", -1, 3.5, True, [], {}, 1e300, "$\\frac", [1, 2, 3]]
        place[key] = data.draw(st.sampled_from(values))
        content = json.dumps(made).encode()
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    try:
        record = read(path)
    except ValueError as e:
        message = str(e)
        assert message.startswith(str(path))
        assert "\n" not in message
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of axes without a span
        if which:
            evaluations([record])
        else:
            tables(record)
