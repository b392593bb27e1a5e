"""Files that are written completely or not at all, and text that is safe to write and to print.

Also the checks of a folder before long runs: enough disk space, and no other run in it.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows: there temporary files of killed runs stay
    fcntl = None  # type: ignore[assignment]

from flowturbo.digests import hexdigest
from flowturbo.types import JsonObject

__all__ = [
    "atomic_write",
    "check_room",
    "check_unclaimed",
    "check_writable",
    "claim",
    "exclusive",
    "open_regular",
    "printable",
    "reserved",
    "write_json",
]

_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, invisible, half characters, line ends
_MARK = ".writing-"  # in the names of temporary files
_JOINERS = "\u200c\u200d"  # of emoji, and of Persian and Indic scripts


@contextmanager
def atomic_write(path: str | Path, *, sweep: bool = True) -> Iterator[Path]:
    """A temporary path next to ``path``, renamed onto it on success and removed on failure.

    The file is synced to the disk before the rename, and its folder after it, so that after a power
    failure ``path`` has either the old content or the new. A symbolic link is followed. Temporary
    files that killed runs left of ``path`` are removed, unless ``sweep`` is False: this takes time
    in a folder of many files, and `exclusive` does it for a whole run.

    Raises:
        OSError: if ``path`` is not a regular file (a device, a folder), its folder cannot be made
            or written, or the disk is full; names ``path``.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    temporary, handle = _temporary(path, sweep)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror or e}; nothing was left behind") from e
    finally:
        _remove(temporary, handle)


@contextmanager
def exclusive(folder: str | Path) -> Iterator[None]:
    """Hold ``folder`` for one run; the lock is released when the process ends, in any way.

    The folder is created if it does not exist, and keeps an empty file ``.lock``. Temporary files
    that killed processes left in it are removed, at the beginning and at the end.

    Raises:
        ValueError: if another process, or another run in this one, holds it.
        OSError: if the folder cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is in use by another run; wait until it has ended, or choose another folder"
        ) from None
    except OSError as e:
        raise OSError(f"cannot write {folder}: {e.strerror or e}; choose another folder") from e
    try:
        _remove_leftovers(folder, f".*{_MARK}????????*")
        yield
    finally:
        _remove_leftovers(folder, f".*{_MARK}????????*")
        lock.release()


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """``path`` opened for reading bytes, if it is a regular file or a link to one.

    Raises:
        OSError: if it is missing, cannot be read, or is a folder, a device or a pipe, which might
            never end; names ``path``.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("not a regular file")
        return open(path, "rb")
    except (OSError, ValueError) as e:  # a name with a null byte is a ValueError
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise OSError(f"cannot read {printable(str(path))}: {reason}") from e


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` to ``path`` as JSON, one entry per line; raises as `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@contextmanager
def reserved(*paths: str | Path | None) -> Iterator[None]:
    """Hold the names of files that a run is going to write, so that no other run can write them.

    Raises:
        ValueError: if another run holds one of them.
        OSError: as `atomic_write`, but before long work rather than after it.
    """
    with ExitStack() as held:
        for path in (p for p in paths if p is not None):
            temporary, handle = _temporary(Path(path))
            held.callback(_remove, temporary, handle)
            others = {*temporary.parent.glob(_pattern(Path(path)))} - {temporary}
            if others and handle is not None:  # those that no run holds were removed
                raise ValueError(
                    f"{path} is being written by another run; wait until it has ended, or choose "
                    "another name"
                )
        yield


def check_writable(path: str | Path) -> None:
    """Raise now, before long work, the ``OSError`` that writing ``path`` would end in.

    Missing folders are not created, since another run may be about to write into them.
    """
    path = Path(os.path.realpath(path))
    there = next(p for p in path.parents if p.exists())
    tried = path if there == path.parent else there / ".tried"
    try:
        _remove(*_temporary(tried))
    except OSError as e:
        raise OSError(str(e).replace(str(tried), str(path), 1)) from e


def printable(text: str) -> str:
    """``text`` with all characters escaped, such as ``\\x1b``, that a terminal or a file might
    interpret: control characters, line ends, directional marks, unpaired surrogates.
    """
    unsafe = lambda c: unicodedata.category(c) in _ESCAPED and c not in _JOINERS
    return "".join(c.encode("unicode_escape").decode() if unsafe(c) else c for c in text)


def check_room(folder: Path, needed: int, what: str = "trajectories") -> None:
    """Raise ``OSError``, before anything is computed, if this many bytes of ``what`` do not fit.

    ``folder`` is created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the {what} need {needed / 1e6:.1f} MB in {folder}, and {free / 1e6:.1f} MB are "
            f"free; choose another folder, or fewer {what}"
        )


def claim(path: Path, made: dict[str, JsonObject], *, empty: bool = False) -> None:
    """Write to ``path`` what determines a run, refusing to mix two runs in one folder.

    A run that left nothing to resume (``empty``) is replaced.

    Raises:
        ValueError: if ``path`` contains anything else, naming the difference.
    """
    if not empty or _sections(path, made) is None:
        check_unclaimed(path, made)
    write_json(path, made)


def check_unclaimed(path: Path, made: dict[str, JsonObject]) -> None:
    """The ``ValueError`` that `claim` would raise; nothing is written."""
    made = json.loads(json.dumps(made))
    if path.is_file():
        found = _sections(path, made)
        if found is None:
            raise ValueError(f"{path}: not of such a run; choose another folder")
        differ = [
            f"{key}={found[part].get(key)} there, {values.get(key)} now"
            for part, values in made.items()
            for key in {**values, **found[part]}
            if found[part].get(key) != values.get(key)
        ]
        if differ:
            raise ValueError(
                f"{path.parent} holds a run with {'; '.join(differ)}: continue it with the same "
                "options, or choose another folder"
            )


def _sections(path: Path, made: dict[str, JsonObject]) -> dict[str, JsonObject] | None:
    """What `claim` wrote to ``path``, if it has the sections of ``made``."""
    try:
        found: dict[str, JsonObject] = json.loads(path.read_text("utf-8"))
        return found if all(isinstance(found[part], dict) for part in made) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, if the system supports it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # folders on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path, sweep: bool = True) -> tuple[Path, int | None]:
    """A new file next to ``path``, and the handle that holds its lock, if it can be locked."""
    try:
        path = Path(os.path.realpath(path))
        if path.is_symlink():  # it would have been resolved
            raise OSError("a link that leads to itself")
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")
        if path.exists() and not os.access(path, os.W_OK):
            raise OSError("the file is write-protected")
        path.parent.mkdir(parents=True, exist_ok=True)
        if sweep:
            _remove_leftovers(path.parent, _pattern(path))
        while True:
            handle, name = tempfile.mkstemp(
                prefix=_prefix(path), suffix=path.suffix, dir=path.parent
            )
            if not _lock(handle, wait=True):
                os.close(handle)
                return Path(name), None
            if os.path.exists(name):  # another run may have taken it for a leftover until then
                return Path(name), handle
            os.close(handle)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror or e}; choose another folder") from e


def _prefix(path: Path) -> str:
    stem = path.stem
    if len(stem) > 40:
        stem = f"{stem[:40]}-{hexdigest(stem.encode(errors='replace'), length=8)}"
    return f".{stem}{_MARK}"


def _pattern(path: Path) -> str:
    """A pattern that matches temporary files of ``path``, links followed."""
    path = Path(os.path.realpath(path))
    return f"{glob.escape(_prefix(path))}????????{glob.escape(path.suffix)}"


def _remove(temporary: Path, handle: int | None) -> None:
    temporary.unlink(missing_ok=True)
    if handle is not None:
        os.close(handle)


def _remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the temporary files of ``folder`` that no active run holds."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _lock(handle):
                    path.unlink()
            finally:
                os.close(handle)


def _lock(handle: int, wait: bool = False) -> bool:
    """Lock an open file, if the file system can; the lock is released when the process ends."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
