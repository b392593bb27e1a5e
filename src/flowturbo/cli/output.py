"""What commands print: lines and tables, on terminals of any width and encoding.

User text is never interpreted as markup. Characters outside the terminal's encoding are escaped,
and a closed pipe (``| head -1``) quietly ends the output, but not the work.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import textwrap
from contextlib import suppress

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment, Segments
from rich.table import Table

from flowturbo.files import printable

__all__ = ["escape_unencodable", "say", "say_json", "show", "tell"]

WIDE = 200  # columns where the output is not a terminal


def escape_unencodable() -> None:
    """Make standard streams escape characters outside their encoding, as ``\\u2026``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Write a line to standard output, made `printable`.

    Raises:
        OSError: if it cannot be written, unless the pipe is closed.
    """
    _write(printable(line) + "\n")


def tell(line: str) -> None:
    """Write a line to standard error, after the name of the program, if it can be written."""
    with suppress(OSError):
        print(f"flowturbo: {printable(' '.join(line.split()))}", file=sys.stderr, flush=True)


def say_json(value: object) -> None:
    """Write ``value`` as JSON, in any encoding; raises as `say`."""
    unicode = (getattr(sys.stdout, "encoding", None) or "ascii").lower().startswith("utf")
    _write(json.dumps(value, indent=1, ensure_ascii=not unicode) + "\n")


def show(table: Table) -> None:
    """Write a table or, if it does not fit without breaking words, a line for each cell.

    Raises as `say`.
    """
    width = shutil.get_terminal_size((WIDE, 24)).columns
    page = _Page()
    console = Console(
        file=page, width=width, markup=False, emoji=False, highlight=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )  # fmt: skip
    for column in table.columns:
        words = " ".join([str(column.header), *map(str, column.cells)]).split()
        column.min_width = max(map(cell_len, words), default=0)
    safe = lambda text: "\n".join(map(printable, text.split("\n")))
    made = [Segment(safe(s.text), s.style) for s in console.render(table)]
    lines = "".join(s.text for s in made).splitlines()
    if all(cell_len(line) <= width for line in lines):
        console.print(Segments(made), end="")
        _write(page.getvalue())
    else:
        _write("".join(f"{line}\n" for line in _folded(table, width)))


class _Page(io.StringIO):
    """Buffers what rich renders for standard output."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()


def _folded(table: Table, width: int) -> list[str]:
    """The rows of ``table`` one after another, each cell a line ``name: value``."""
    wrap = lambda text: textwrap.wrap(
        printable(text), max(width, 8), subsequent_indent="  ", break_on_hyphens=False
    )
    lines = wrap(str(table.title)) if table.title else []
    headers = [str(column.header) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        values = [" ".join(str(cell).split()) for cell in cells]
        if not any(headers):  # a grid: the first column names the row
            lines += wrap(": ".join(values))
            continue
        if lines:
            lines.append("")
        for header, value in zip(headers, values, strict=True):
            lines += wrap(f"{header}: {value}") if value else []
    return lines


def _write(text: str) -> None:
    if sys.stdout is None:  # closed by the parent process
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as e:
        _silence()
        if not isinstance(e, BrokenPipeError):
            raise OSError(f"standard output cannot be written: {e.strerror or e}") from e


def _silence() -> None:
    """Discard what is in the buffer, and all further output."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
