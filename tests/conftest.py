"""Shared fixtures: small real components, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import flowturbo as ft
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.models.tokenizer import Tokenizer, build_vocabulary

if "PYTEST_XDIST_WORKER" in os.environ:  # and its processes: a core for each worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def digits() -> ft.Model:
    return ft.load("digits")


@pytest.fixture
def tiny() -> SiT:
    """A two-block class-conditional SiT whose output is not zero."""
    torch.manual_seed(0)
    config = SiTConfig(size=8, channels=2, patch=2, width=32, depth=2, heads=2, classes=5)
    network = SiT(config)
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    return network.eval().requires_grad_(False)


GROUPS = {
    "Animals & Nature": ["tiger", "tiger face", "octopus", "maple leaf"],
    "Food & Drink": ["red apple", "green apple", "pizza"],
    "Other": ["fire engine", "flat shoe"],
}


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained text model with a card such as `emoji` has."""
    styles = ["noto", "fluent", "flat", "fx"]
    names = [n for group in GROUPS.values() for n in group]
    words = build_vocabulary([f"{n}, {s} style" for n in names for s in styles], 100)
    vocabulary = ["a", "puppy", *words, "##s", "##es", "##gre", "tig"]
    tokenizer = Tokenizer(vocabulary, 8, {"\U0001f34e": "red apple", "\U0001f42f": "tiger face"})
    torch.manual_seed(0)
    config = SiTConfig(
        size=8, channels=3, patch=4, width=16, depth=1, heads=2,
        vocabulary=len(tokenizer), text_length=8,
    )  # fmt: skip
    network = SiT(config)
    for p in network.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3)
    condition = {
        "kind": "text",
        "styles": styles,
        "groups": GROUPS,
        "tokenizer": tokenizer.to_json(),
    }
    folder = tmp_path_factory.mktemp("text")
    card = {"name": "words", "description": "Small things.", "condition": condition}
    save_folder(folder, network, {**card, "defaults": {"guidance": 2.0, "plan": "E2"}})
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``cuda`` where there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
