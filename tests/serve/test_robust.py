"""A server process among bad clients; `benchmarks/serve_abuse.py` with fewer of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import serve_abuse

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def test_it_answers_or_refuses_everyone_forgets_no_one_and_ends_in_order(text_model, tmp_path):
    found = serve_abuse.run(str(text_model), 200, 0, tmp_path / "log")
    assert found["wrong"] == []
    assert found["requests"] >= 200 + 2 * serve_abuse.CLIENTS
    kinds = {line.partition(",")[0] for line in found["statuses"]}
    assert kinds >= {"good", "stream", "malformed", "leaves", "slow reader", "terminated"}
    assert found["statuses"]["good, 200"] > 10


@pytest.mark.slow
def test_among_ten_thousand(text_model, tmp_path):
    found = serve_abuse.run(str(text_model), 10_000, 1, tmp_path / "log")
    assert found["wrong"] == []
