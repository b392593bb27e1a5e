"""Freed memory is kept: what a thread allocates again and again is cleared by the kernel once."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from flowturbo.serve import memory

SCRIPT = """
import resource, runpy, sys, threading

path, how = sys.argv[1:]
kept = how == "keep" and runpy.run_path(path)["keep_freed_memory"]()
assert kept == (how == "keep")

def fill():
    global faults
    b"x" * 2**26  # 64 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        b"x" * 2**26
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

thread = threading.Thread(target=fill)
thread.start()
thread.join()
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_memory_is_kept():
    def faults(how: str) -> int:
        command = [sys.executable, "-c", SCRIPT, memory.__file__, how]
        return int(subprocess.run(command, check=True, text=True, stdout=-1).stdout)

    assert faults("keep") < 0.1 * faults("return")
