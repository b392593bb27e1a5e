"""The command line: one file a command, each a thin skin over a function of the library.

Bad input ends in one line on standard error and exit status 2; what the machine refuses (a disk
that is full, a folder that cannot be written), in one line and status 1.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import typer

from flowturbo.cli import (
    analyze,
    benchmark,
    convert,
    evaluate,
    export,
    generate,
    models,
    train,
    train_refiner,
    tune,
)
from flowturbo.files import printable

__all__ = ["app", "main"]

app = typer.Typer(
    name="flowturbo",
    help="Real-time sampling for flow-matching image generators.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    generate,
    train,
    train_refiner,
    tune,
    evaluate,
    benchmark,
    analyze,
    export,
    models,
    convert,
):
    app.command(name=command.__name__.rpartition(".")[2].replace("_", "-"))(command.run)


def _version(value: bool) -> None:
    if value:
        from flowturbo import __version__

        print(f"flowturbo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Real-time sampling for flow-matching image generators."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with status 0, 1 or 2."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where: _say(f"warning: {message}")
        sys.exit(_status(arguments))


def _status(arguments: list[str] | None) -> int:
    try:
        result: Any = typer.main.get_command(app).main(
            arguments, prog_name="flowturbo", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except (ValueError, ImportError) as e:
        return _fail(str(e), 2)
    except OSError as e:
        return _fail(str(e), 1)
    except (MemoryError, torch.OutOfMemoryError):
        return _fail("out of memory: lower --batch, or take a smaller model", 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except Exception as e:
        if "can't allocate memory" in str(e):  # torch's word on the CPU
            return _fail("out of memory: lower --batch, or take a smaller model", 1)
        if not hasattr(e, "format_message"):  # typer's or click's word on the command line
            raise
        if type(e).__name__ == "NoArgsIsHelpError":
            print(e.format_message())
            return 2
        return _fail(e.format_message(), 2)


def _fail(message: str, status: int) -> int:
    _say(f"error: {message}")
    return status


def _say(message: str) -> None:
    print(f"flowturbo: {printable(' '.join(message.split()))}", file=sys.stderr)
