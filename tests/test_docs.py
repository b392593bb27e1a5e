"""The documents name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(tests/\S+?)::(\w+)`", (ROOT / "docs/reliability.md").read_text("utf-8"))


def test_promises_name_tests():
    assert len(NAMED) > 30


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED)))
def test_a_test_that_shows_a_promise_is_there(path, name):
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.M)
