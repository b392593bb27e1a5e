"""The requests that docs/serving.md and the README show are answered."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from servers import hole, photo, png, serving

import flowturbo as ft

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs/serving.md", ROOT / "README.md"]
LINES = [line for page in PAGES for line in re.findall("^curl .*$", page.read_text("utf-8"), re.M)]
CODE = re.search(r"^```py\n(.*?)^```$", PAGES[0].read_text("utf-8"), re.M | re.S)[1]
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(text_model):
    with serving(ft.load(text_model)) as running:
        yield running


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the examples run: with the images that they read."""
    (tmp_path / "apple.png").write_bytes(png(photo((8, 8))))
    (tmp_path / "mask.png").write_bytes(png(hole((8, 8))))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_requests():
    assert len(LINES) >= 5


@pytest.mark.parametrize("line", LINES)
def test_a_request_with_curl_is_answered(line, server, folder):
    command = shlex.split(line.replace(ADDRESS, server.url))
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)
    assert made.returncode == 0, made.stderr
    if "stream" in line:
        assert made.stdout.count("event: image_generation.") >= 1
        assert "event: error" not in made.stdout
    else:
        assert json.loads(made.stdout)["data"]


def test_openais_client_is_answered(server, folder, capsys):
    exec(CODE.replace(ADDRESS, server.url), {})
    assert "image_generation.completed" in capsys.readouterr().out
