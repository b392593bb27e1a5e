"""Memory of a server's process."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next batch, and return whether it does.

    By default it returns large blocks to the kernel as soon as they are free, more eagerly on
    threads other than the main one, and the kernel clears every page that it hands out again. A
    network frees and allocates its activations at every layer, so batches take up to twice as long.
    If memory is kept, that of the process stays at its peak; other C libraries and systems are not
    affected.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = [mallopt(*of) for of in ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1))]
    return all(kept)
