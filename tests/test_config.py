"""Configurations as keywords of functions, and as options of commands."""

import inspect
from dataclasses import dataclass, fields

import pytest
import typer
from typer.testing import CliRunner

import flowturbo as ft
from flowturbo.checks import whole
from flowturbo.cli.config import options_of
from flowturbo.config import attribute_docs, configured
from flowturbo.tuning.tune import TuneConfig


@dataclass(frozen=True, kw_only=True)
class Baking:
    """How bread is baked.

    Attributes:
        minutes: minutes in the oven, at least 1, and
            no more than fits ``crust``.
        crust: whether there is one.
        guidance: one scale, or two.
    """

    minutes: int = 40
    crust: bool = True
    guidance: float | tuple[float, float] = (1.0, 4.0)

    def __post_init__(self) -> None:
        whole("minutes", self.minutes, 1)


@configured(Baking)
def bake(flour: str, config: Baking, *, oven: int = 1) -> tuple[str, Baking, int]:
    return flour, config, oven


def test_fields_are_keywords():
    assert bake("rye") == ("rye", Baking(), 1)
    assert bake("rye", minutes=5, oven=2) == ("rye", Baking(minutes=5), 2)
    assert bake("rye", Baking(minutes=5)) == bake("rye", config=Baking(minutes=5))
    names = list(inspect.signature(bake).parameters)
    assert names == ["flour", "config", "oven", "minutes", "crust", "guidance"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(minute=3), r"bake\(minute=3\): has no argument 'minute'; did you mean 'minutes'"),
        (dict(xyz=3), "has no argument 'xyz'; it takes config, crust, flour"),
        (dict(minutes=0), "minutes=0: must be a whole number from 1"),
        (dict(config=3), "config=3: must be a Baking"),
        (dict(config=Baking(), minutes=3), "and minutes=...: give one of them"),
    ],
)
def test_bad_keywords(given, message):
    with pytest.raises(ValueError, match=message):
        bake("rye", **given)


def test_the_text_of_a_field_is_the_help_of_its_option():
    docs = attribute_docs(Baking)
    assert docs["minutes"] == "minutes in the oven, at least 1, and no more than fits ``crust``."
    app = typer.Typer()
    baked: list[Baking] = []

    @app.command()
    @options_of(Baking)
    def bread(config: Baking, out: str = "x") -> None:
        baked.append(config)

    text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "Minutes in the oven, at least 1, and no more than fits --crust." in text
    for line in ([], ["--minutes", "5", "--no-crust"], ["-g", "2"], ["--guidance", "1-3.5"]):
        assert CliRunner().invoke(app, line).exit_code == 0
    assert baked == [
        Baking(), Baking(minutes=5, crust=False), Baking(guidance=(2.0, 2.0)),
        Baking(guidance=(1.0, 3.5)),
    ]  # fmt: skip


def test_configurations_describe_every_field():
    assert attribute_docs(TuneConfig).keys() == {f.name for f in fields(TuneConfig)}
    assert {f.name for f in fields(TuneConfig)} <= inspect.signature(ft.tune).parameters.keys()
