"""Memory of a server's process."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next batch, and say whether it does.

    It returns large blocks to the kernel as soon as they are free, more eagerly so on other threads
    than the main one, and the kernel clears every page that it hands out again. A network frees and
    allocates its activations at every layer, so that batches take up to twice as long. Kept, the
    memory of the process stays at its highest; other libraries and systems are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = [mallopt(*of) for of in ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (ARENA_MAX, 1))]
    return all(kept)
