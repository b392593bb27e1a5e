"""How fast a run is: images per second, the time left, and model FLOPs utilization (MFU)."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from flowturbo.timing import count_operations, interleaved, matrix_product

__all__ = ["Throughput", "peak_rate"]


class Throughput:
    """The speed since the last look at it.

    Args:
        images: per step, of all processes.
        step: the step that comes next.
        steps: the last one.
        peak: images per second at the peak of the devices, if known.
    """

    def __init__(self, images: int, step: int, steps: int, peak: float | None) -> None:
        self.images, self.step, self.steps, self.peak = images, step, steps, peak
        self.since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The time since the last look."""
        return time.perf_counter() - self.since

    def values(self, step: int) -> dict[str, float]:
        """The values of a `flowturbo.progress.Progress` after ``step`` steps."""
        rate = max(1, step - self.step) / max(1e-9, self.seconds)
        self.step, self.since = step, time.perf_counter()
        images = rate * self.images
        utilization = {} if self.peak is None else {"mfu": images / self.peak}
        left = (self.steps - step) / rate
        return {"images_per_second": images, **utilization, "seconds_left": left}


def peak_rate(
    step: Callable[[], object], images: int, device: torch.device, dtype: torch.dtype
) -> float | None:
    """Images per second at the peak of ``device``; None if nothing of ``step`` is counted.

    The peak is that of a large matrix product in ``dtype``, measured; the operations of ``step``,
    which computes ``images`` images forward and backward, are counted.
    """
    operations = count_operations(step)
    product, flops = matrix_product(device, dtype)
    taken = interleaved({"product": product}, device, repeats=3, warm_up=1)
    peak = flops / (min(taken["product"]) / 1000)
    return peak * images / operations if operations else None
