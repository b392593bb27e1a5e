"""How much memory a call takes at its peak."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate

import torch

__all__ = ["peak_bytes"]


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The peak of the bytes of tensors during ``call``, beyond those allocated before.

    For a captured graph this counts only its copies, since its working memory was allocated before.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    level = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = level or "99"  # it would print that it starts and stops
    try:
        with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
            kept = call()
    finally:
        if level is None:
            del os.environ["KINETO_LOG_LEVEL"]
    del kept
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = [0, *accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))]
    return max(held)
