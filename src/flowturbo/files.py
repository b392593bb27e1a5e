"""Files that are whole or not there at all: write beside the target, then rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed onto it on success and removed on failure.

    Raises:
        OSError: if the folder cannot be made or written, or the disk is full; names ``path``.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror or e}; choose a folder you may write") from e
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror or e}; nothing was left behind") from e
    finally:
        temporary.unlink(missing_ok=True)
