"""Files: whether they can be written is found out without leaving a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowturbo.files import atomic_write, check_writable, exclusive


def test_whether_a_file_can_be_written_is_found_out_without_making_its_folder(
    tmp_path, monkeypatch
):
    made = []
    mkdir = Path.mkdir
    monkeypatch.setattr(
        Path, "mkdir", lambda self, *a, **k: (made.append(self.exists()), mkdir(self, *a, **k))
    )
    check_writable(tmp_path / "a" / "b" / "card.json")
    check_writable(tmp_path / "card.json")
    assert all(made)  # two runs that begin at once would remove each other's
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "card.json", tmp_path / "file" / "a" / "card.json"):
        with pytest.raises(OSError, match=f"cannot write {path}: .*choose another folder"):
            check_writable(path)


def test_what_killed_processes_left_is_removed_at_both_ends_of_a_run(tmp_path):
    names = [".a.writing-12345678.png", ".b.writing-12345678.png"]
    (tmp_path / names[0]).write_bytes(b"")
    with exclusive(tmp_path):
        assert not (tmp_path / names[0]).exists()
        (tmp_path / names[1]).write_bytes(b"")
        with atomic_write(tmp_path / "b.png", sweep=False) as temporary:
            temporary.write_bytes(b"whole")
        assert (tmp_path / names[1]).exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "b.png"]
