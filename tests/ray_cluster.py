"""A small Ray cluster for tests, and the processes in it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MEMORY = 80 * 2**20  # bytes of its object store, the least that Ray takes


@contextmanager
def small_cluster() -> Iterator[str]:
    """The address of a cluster of two cores, which this process has joined."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray keeps one at home
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        options = dict(num_cpus=2, num_gpus=0, include_dashboard=False, logging_level="warning")
        try:
            ray.init("local", object_store_memory=MEMORY, log_to_driver=False, **options)
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


def processes(title: str) -> list[int]:
    """Processes that descend from this one, and whose command line begins with ``title``."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().decode()
        except (OSError, IndexError):  # it has ended
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return sorted(pid for pid, text in titles.items() if text.startswith(title) and ours(pid))
