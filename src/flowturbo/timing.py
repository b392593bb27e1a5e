"""Milliseconds of several calls, measured side by side.

The speed of a machine drifts, so every call is timed once in each round, in a rotating order, and
medians over the rounds and ratios within them are compared. The device is synchronised before and
after each call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import TypeVar

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowturbo.progress import Progress, Report

__all__ = ["count_operations", "fit_latency", "interleaved", "matrix_product", "spread", "wait"]

Name = TypeVar("Name")


def wait(device: torch.device | str) -> None:
    """Wait until all work queued on ``device`` is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    calls: Mapping[Name, Callable[[], object]],
    device: torch.device | str = "cpu",
    *,
    repeats: int = 20,
    warm_up: int = 2,
    report: Report | None = None,
) -> dict[Name, list[float]]:
    """Milliseconds of each call in each of ``repeats`` rounds, after ``warm_up`` untimed rounds.

    ``report`` is called after each round.

    Raises:
        ValueError: if ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(-warm_up, repeats):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            wait(device)
            start = time.perf_counter()
            calls[name]()
            wait(device)
            if number >= 0:
                taken[name].append(1000 * (time.perf_counter() - start))
        if report and number >= 0:
            report(Progress("timing rounds", number + 1, repeats))
    return taken


def spread(ms: Sequence[float]) -> dict[str, float]:
    """Median, first and ninth decile, and minimum."""
    tenths = quantiles(ms, n=10, method="inclusive") if len(ms) > 1 else [ms[0]] * 9
    return {"median": median(ms), "low": tenths[0], "high": tenths[-1], "least": min(ms)}


def count_operations(call: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and convolutions in ``call``.

    Compiled functions run uncompiled here, since operations are counted one by one.
    """
    uncompiled = torch.compiler.set_stance("force_eager")
    with uncompiled, FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH):
        call()
    return int(flops.get_total_flops())


def matrix_product(
    device: torch.device | str, dtype: torch.dtype
) -> tuple[Callable[[], torch.Tensor], float]:
    """A product of two large square matrices, and its floating point operations."""
    n = 8192 if torch.device(device).type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    return lambda: a @ a, 2.0 * n**3


def fit_latency(
    counts: Sequence[Mapping[str, int]], ms: Sequence[float]
) -> dict[str, float | None]:
    """Least-squares fit of ``ms = fixed + model*m + refiner*r`` to samples of m and r evaluations.

    "refiner" is None if no sample has any; "worst" is the largest relative residual. Each sample is
    weighted by the inverse of its time.
    """
    kinds = ["model", *(["refiner"] if any(c["refiner"] for c in counts) else [])]
    table = np.array([[1.0, *(c[k] for k in kinds)] for c in counts])
    taken = np.array(ms)
    found = np.linalg.lstsq(table / taken[:, None], np.ones(len(ms)), rcond=None)[0]
    worst = float(np.abs(table @ found / taken - 1).max())
    named: dict[str, float | None] = dict(zip(["fixed", *kinds], map(float, found), strict=True))
    return {"refiner": None, **named, "worst": worst}
