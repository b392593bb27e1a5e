"""The command line: one file per command, each a thin skin over a function of the library.

Errors are reported in one line on standard error, with exit status 2 for bad input and 1 for system
errors, such as a full disk or a folder that cannot be written.
"""

from __future__ import annotations

import sys
import warnings
from errno import EDQUOT, EFBIG, ENOSPC

import torch
import typer

from flowturbo.cli import (
    analyze,
    benchmark,
    convert,
    edit,
    evaluate,
    export,
    generate,
    img2img,
    inpaint,
    models,
    remove,
    serve,
    train,
    train_refiner,
    tune,
)
from flowturbo.cli.command import Command, Stopped
from flowturbo.cli.output import escape_unencodable, say, tell

__all__ = ["app", "main"]

_NO_MEMORY = "out of memory: lower --batch, or take a smaller model"
_LONGEST = 1000  # characters of a message, which may quote what the user typed

app = typer.Typer(
    name="flowturbo",
    help="Real-time sampling for flow-matching image generators.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    generate,
    edit,
    img2img,
    inpaint,
    remove,
    train,
    train_refiner,
    tune,
    evaluate,
    benchmark,
    analyze,
    export,
    models,
    convert,
    serve,
):
    name = command.__name__.rpartition(".")[2].replace("_", "-")
    app.command(name=name, cls=Command)(command.run)


def _version(value: bool) -> None:
    if value:
        from flowturbo import __version__

        say(f"flowturbo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Real-time sampling for flow-matching image generators."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with status 0, 1 or 2, or 130 after an interruption."""
    escape_unencodable()
    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning):  # are for developers
            warnings.simplefilter("ignore", category)
        warnings.showwarning = lambda message, *where: tell(f"warning: {message}")
        sys.exit(_status(arguments))


def _status(arguments: list[str] | None) -> int:
    try:
        result: object = typer.main.get_command(app).main(
            arguments, prog_name="flowturbo", standalone_mode=False
        )
        if result == 130:  # from typer: Ctrl-C before the command has begun
            tell("stopped")
        return result if isinstance(result, int) else 0
    except (ValueError, ImportError) as e:
        return _fail(str(e), 2)
    except OSError as e:
        return _fail(str(e), 1)
    except Warning as e:  # python -W error
        return _fail(f"a warning, and warnings are errors here: {e}", 1)
    except (MemoryError, torch.OutOfMemoryError):
        return _fail(_NO_MEMORY, 1)
    except (Stopped, KeyboardInterrupt, typer.Abort) as e:
        tell(f"stopped; {e}" if str(e) else "stopped")
        return 130
    except Exception as e:
        if "can't allocate memory" in str(e):  # torch's message on the CPU
            return _fail(_NO_MEMORY, 1)
        if (full := _full_disk(e)) is not None:
            return _fail(full, 1)
        if not hasattr(e, "format_message"):  # not an error of typer or click in the command line
            raise
        if type(e).__name__ == "NoArgsIsHelpError":
            print(e.format_message())
            return 2
        return _fail(e.format_message(), 2)


def _full_disk(error: BaseException | None) -> str | None:
    """The message if ``error`` or one of its causes is a full disk; torch's compiler wraps such
    errors of its own files.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG):
            what = error.filename or "a temporary file"
            return (
                f"cannot write {what}: {error.strerror}; free some space, or set TMPDIR to a "
                "folder on another disk"
            )
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return None


def _fail(message: str, status: int) -> int:
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST - 200]} ... {message[-200:]}"
    tell(f"error: {message}")
    return status
