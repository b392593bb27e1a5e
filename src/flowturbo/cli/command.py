"""Checks that all commands make before they begin, and the message when one is interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from typer.core import TyperCommand

from flowturbo.cli.options import check_folder
from flowturbo.files import printable
from flowturbo.models.checkpoint import CARD, WEIGHTS
from flowturbo.models.tokenizer import short
from flowturbo.models.zoo import bundled
from flowturbo.refiner.checkpoint import REFINER_CARD, REFINER_WEIGHTS

__all__ = ["Command", "Stopped"]

# parameters of the commands, by name
_READ = (
    "data",
    "real_images",
    "compare_model",
    "vae",
    "model",
    "pipeline",
    "refiner",
    "plan",
    "prompts",
    "checkpoint",
    "record",
    "compare_with",
    "image",
    "mask",
)
_WRITTEN = ("out", "picture")
_OF_A_MODEL = (CARD, WEIGHTS, REFINER_CARD, REFINER_WEIGHTS)


class Stopped(Exception):
    """A command was interrupted; the message says what was kept and how to resume."""


class Command(TyperCommand):
    """A command that never writes over what it reads, and reports an interruption as such."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's; raises ``ValueError`` for empty paths, and for inputs given as outputs."""
        names = {o: p.name for p in self.params for o in p.opts if o[0] == "-"}
        given = [(o, value) for o, value in _given(args) if o in names]
        for option, value in given:
            if names[option] in (*_inputs(ctx), *_WRITTEN, "cache_dir", "name"):
                _check_path(option, value)
        try:
            rest = super().parse_args(ctx, args)
        except typer.BadParameter as e:
            opts = getattr(e.param, "opts", [])
            values = [f" (given: {short(value)})" for option, value in given if option in opts]
            raise ValueError("".join([e.format_message(), *values[-1:]])) from e
        spelled = {p.name: _spelled(p) for p in self.params}
        for folder in _paths(ctx.params.get("cache_dir")):
            check_folder(folder, "--cache-dir")
        for name in _WRITTEN:
            for out in _paths(ctx.params.get(name)):
                _check_kept(ctx, out, f"{spelled[name]} {printable(str(out))}", spelled)
        return rest

    def invoke(self, ctx: Any) -> object:
        """As typer's; raises `Stopped` where Ctrl-C was pressed."""
        with _interrupts() as pressed:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as e:
                raise Stopped(str(e) or _how_to_resume(ctx)) from None
            except Exception:
                if pressed:  # and a library turned it into an error of its own
                    raise Stopped(_how_to_resume(ctx)) from None
                raise


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The interrupts received so far; each is passed on to the previous handler."""
    before, came = signal.getsignal(signal.SIGINT), list[int]()
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield came
        return

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


def _inputs(ctx: typer.Context) -> list[str]:
    """The parameters that are, or may be, paths to read."""
    no_file = ctx.command.name in ("generate", "benchmark")  # but prompts themselves
    return [name for name in _READ if not (no_file and name == "prompts")]


def _spelled(param: Any) -> str:
    """The name of a parameter on the command line: ``-o``, ``--plan``, ``CHECKPOINT``."""
    options = [o for o in param.opts if o[0] == "-"]
    return "-o" if "-o" in options else str([*options, param.name.upper()][0])


def _paths(value: object) -> Iterator[Path]:
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(each, (str, Path)) and str(each) not in bundled():
            yield Path(each)


def _given(args: list[str]) -> Iterator[tuple[str, str]]:
    """Each argument after the one before it, and those written as ``--option=value``."""
    for before, value in zip(["", *args], args, strict=False):
        yield before, value
        option, equals, attached = value.partition("=")
        if equals:
            yield option, attached


def _check_path(option: str, value: str) -> None:
    if not value.strip() or "\0" in value:
        raise ValueError(f"{option} {short(value)}: must not be empty or contain NUL")
    if option != "--plan" and any(len(os.fsencode(part)) > 255 for part in value.split(os.sep)):
        raise ValueError(f"{option} {short(value)}: a name has at most 255 bytes")
    if os.path.islink(os.path.realpath(value)):  # a path that resolves is no link
        raise ValueError(f"{option} {short(value)}: a link that leads to itself")


def _check_kept(ctx: typer.Context, out: Path, what: str, spelled: dict[str, str]) -> None:
    """Refuse an ``out`` that is an input, or replaces a file of one."""
    same_folder = ctx.command.name == "train-refiner"  # the refiner may go into the model's folder
    for name in _inputs(ctx):
        for path in filter(os.path.exists, _paths(ctx.params.get(name))):
            if name == "plan" and path.suffix.lower() != ".json":  # a notation
                continue
            source = f"{spelled[name]} {printable(str(path))}"
            if _same(path, out) and not (same_folder and name == "model"):
                raise ValueError(f"{what}: is the input {source}; write to another place")
            if any(_same(path / n, out) or _same(path, out / n) for n in _OF_A_MODEL):
                raise ValueError(f"{what}: would replace a file of {source}; write elsewhere")


def _same(a: Path, b: Path) -> bool:
    return os.path.exists(a) and os.path.exists(b) and a.samefile(b)


def _how_to_resume(ctx: typer.Context) -> str:
    training = str(ctx.command.name).startswith("train")
    folder = ctx.params.get("out" if training else "cache_dir")
    return f"the work done so far is in {folder}; the same command resumes it" if folder else ""
