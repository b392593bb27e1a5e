"""Options of the commands have the defaults of the library functions that the commands call."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer

import flowturbo as ft
from flowturbo.cli import app
from flowturbo.evaluate.analysis import analyze
from flowturbo.evaluate.benchmark import benchmark
from flowturbo.models.checkpoint import convert
from flowturbo.models.sit import SiTConfig
from flowturbo.serve.api import create_app
from flowturbo.serve.engine import Engine
from flowturbo.training import TrainConfig, train, train_paper_refiner, train_refiner
from flowturbo.training.refiner import RefinerConfig

CALLS: dict[str, list[Callable[..., Any]]] = {
    "generate": [ft.generate, ft.load],
    "edit": [ft.edit, ft.load],
    "img2img": [ft.img2img, ft.load],
    "inpaint": [ft.inpaint, ft.load],
    "remove": [ft.remove, ft.load],
    "train": [train, TrainConfig],
    "train-refiner": [train_refiner, RefinerConfig, train_paper_refiner, ft.load],
    "tune": [ft.tune, ft.load],
    "evaluate": [ft.evaluate, ft.load],
    "benchmark": [benchmark, ft.load],
    "analyze": [analyze, ft.load],
    "export": [ft.export, ft.load],
    "serve": [Engine, create_app, ft.load],
    "models": [],
    "convert": [convert, SiTConfig],
}

REASONS = {  # option: its default, and why that of the library is another
    "benchmark dtype": ("float32", "the precision that the model is loaded in, which None keeps"),
    "export dtype": ("float32", "the precision that the model is loaded in, which None keeps"),
    "serve dtype": ("float32", "the precision that the model is loaded in, which None keeps"),
    "evaluate features": (True, "a switch: 'effnet', or None with --no-features"),
    "train-refiner batch": (None, "left out, so that either refiner has its own default"),
    **{
        f"{name} dtype": (None, "of a pipeline; models are loaded in the library's")
        for name in ("tune", "train-refiner")
    },
    "convert classes": (1000, "the paper's models, SiTConfig.named, have 1000 classes"),
    **{
        f"{name} device": ("auto", "resolve_device: CUDA if there is one")
        for name in CALLS
        if name not in ("models", "convert")
    },
}


def as_text(default: Any) -> str:
    """A default as it is typed on the command line."""
    if isinstance(default, torch.dtype):
        return str(default).removeprefix("torch.")
    if isinstance(default, (tuple, list)):
        pair = len(default) == 2 and all(isinstance(x, float) for x in default)
        return ("-" if pair else ",").join(as_text(x) for x in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def pairs(command: Any, calls: list[Callable[..., Any]]) -> dict[str, tuple[Any, Any]]:
    """(command's, library's) default of each option that one of ``calls`` has a parameter for."""
    found = {}
    for option in command.params:
        for call in calls:
            parameter = signature(call).parameters.get(option.name)
            if parameter is not None and parameter.default is not Parameter.empty:
                found[option.name] = (option.default, parameter.default)
                break
    return found


def differing(found: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The command's defaults that are not the library's."""
    return {n: mine for n, (mine, theirs) in found.items() if as_text(mine) != as_text(theirs)}


COMMANDS = typer.main.get_command(app).commands


def test_each_command_is_compared():
    assert COMMANDS.keys() == CALLS.keys()
    compared = {name: len(pairs(command, CALLS[name])) for name, command in COMMANDS.items()}
    assert sum(compared.values()) >= 80
    assert {name for name, n in compared.items() if n < 3} == {"models"}


@pytest.mark.parametrize("name", CALLS)
def test_defaults_are_those_of_the_library_or_have_a_reason(name):
    for option, default in differing(pairs(COMMANDS[name], CALLS[name])).items():
        assert f"{name} {option}" in REASONS, f"--{option}: {default!r} is not the library's"
        assert REASONS[f"{name} {option}"][0] == default


def test_a_default_that_has_drifted_is_found():
    for default, found in ((5, {"steps": 5}), (TrainConfig().steps, {})):
        steps = SimpleNamespace(name="steps", default=default)
        made = pairs(SimpleNamespace(params=[steps]), [TrainConfig])
        assert len(made) == 1
        assert differing(made) == found
