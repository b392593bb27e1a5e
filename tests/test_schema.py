"""What is read from files: how large, of which kind, and what is said where it is not as asked."""

from __future__ import annotations

import os
import zipfile

import pytest

from flowturbo.files import open_regular
from flowturbo.schema import Schema, check, open_archive, parse_json, read_bytes, read_json


class Inner(Schema):
    names: list[str]


class Outer(Schema):
    count: int
    size: float = 1.0
    inner: Inner | None = None


def test_what_fits_is_read_and_what_is_not_named_is_kept(tmp_path):
    (tmp_path / "a.json").write_text('{"count": 3, "size": 2, "inner": {"names": []}, "more": 1}')
    made = read_json(tmp_path / "a.json", Outer)
    assert (made.count, made.size, made.inner) == (3, 2.0, Inner(names=[]))
    assert made.model_extra == {"more": 1}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "count: is missing"),
        ([], "must be an object"),
        ({"count": "3"}, "count: '3': Input should be a valid integer"),
        ({"count": True}, "count: True: "),
        ({"count": 3.0}, "count: 3.0: "),
        ({"count": 3, "size": False}, "size: False: Input should be a valid number"),
        ({"count": 3, "size": float("nan")}, "size: nan: Input should be a finite number"),
        ({"count": 3, "size": 10**400}, "size: a number: "),
        ({"count": 3, "inner": 5}, "inner: 5: must be an object"),
        ({"count": 3, "inner": {"names": ["a", 3]}}, "inner.names.1: 3: "),
        ({"count": "x" * 500, "size": []}, r"count: 'x{59}\.\.\.: .*; size: a list of 0: "),
        ({"size": [], "inner": 3}, r"\(and 1 more\)"),
    ],
)
def test_what_does_not_fit_is_named_with_its_key_and_value(value, message):
    with pytest.raises(ValueError, match=rf"^here: .*{message}.*; correct it$") as e:
        check(value, Outer, "here", "correct it")
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        (b"\xff", "invalid start byte"),
        ("\ufeff1", "BOM"),
        ("1".encode("utf-16"), "invalid start byte"),
        ('{"a": 1, "a": 1}', "a key is given twice"),
        ("[NaN]", "NaN is not allowed"),
        ("[-Infinity]", "-Infinity is not allowed"),
        ("[1e999]", "1e999 is not finite"),
        ("9" * 5000, "digits"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("[" * 100_000, "nested too deep"),
        ('{"a": "\\ud800"}', "surrogates"),
        ("\ud800", "surrogates"),
        ("[" + "1," * 5_000_000 + "1]", "too many values"),
        ("[" + "[]," * 2_000_000 + "1]", "too many values"),
        ('["' + 'a","' * 2_500_000 + '"]', "too many values"),
    ],
)
def test_json_is_read_strictly(text, message):
    with pytest.raises(ValueError, match=rf"^here: not JSON \(.*{message}.*\); restore the file$"):
        parse_json(text, "here")


def test_what_json_may_hold():
    assert parse_json('{"a": "\\ud83d\\ude00", "b": [1e308, -0.5, null]}', "") == {
        "a": "\U0001f600",
        "b": [1e308, -0.5, None],
    }
    assert parse_json("[" * 64 + "]" * 64, "")


def test_only_regular_files_of_a_size_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link", 4) == b"1234"
    with pytest.raises(ValueError, match=r"link: larger than 3 bytes; not read"):
        read_bytes(tmp_path / "link", 3)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused = {
        tmp_path: "not a regular file",
        tmp_path / "pipe": "not a regular file",
        tmp_path / "zero": "not a regular file",
        tmp_path / "loop": "Too many levels of symbolic links",
        tmp_path / "none": "No such file",
        tmp_path / "a\0b": "null byte",
    }
    for path, reason in refused.items():
        with pytest.raises(OSError, match=rf"^cannot read .*: .*{reason}"):
            open_regular(path)
        with pytest.raises(ValueError, match=rf"^cannot read .*: .*{reason}"):
            read_json(path, Outer)


def test_an_archive_that_is_damaged_or_unpacks_to_more_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"content")
    with open_archive(path) as archive:
        assert archive.read("a") == b"content"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"content", b"contents"[:7][::-1]))
    with (
        pytest.raises(ValueError, match=r"a\.zip: damaged \(Bad CRC"),
        open_archive(path) as archive,
    ):
        archive.read("a")
    for damaged in (b"", data[:20], data[:-30], data.replace(b"PK\x01\x02", b"PK\x01\x03")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.zip: damaged"), open_archive(path):
            pass
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10**6))
    with pytest.raises(ValueError, match="unpacks to more than its size"), open_archive(path):
        pass
