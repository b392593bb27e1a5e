"""Files: whether they can be written is found out without leaving a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowturbo.files import check_writable


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
