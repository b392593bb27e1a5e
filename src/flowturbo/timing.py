"""Milliseconds of several calls, side by side.

A machine drifts, so the calls take turns, each turn in another order, and what counts are medians
over the turns and ratios within them. The device is waited for before and after each call.
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
from tqdm import tqdm

__all__ = ["count_operations", "fit_latency", "interleaved", "matrix_product", "spread", "wait"]

Name = TypeVar("Name")


def wait(device: torch.device | str) -> None:
    """Until all work queued on ``device`` is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    calls: Mapping[Name, Callable[[], object]],
    device: torch.device | str = "cpu",
    *,
    repeats: int = 20,
    warm_up: int = 2,
    progress: bool = True,
) -> dict[Name, list[float]]:
    """Milliseconds of each call in each of ``repeats`` turns, after ``warm_up`` that do not count.

    Raises:
        ValueError: if ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in tqdm(range(-warm_up, repeats), desc="measure", disable=None if progress else True):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            wait(device)
            start = time.perf_counter()
            calls[name]()
            wait(device)
            if turn >= 0:
                taken[name].append(1000 * (time.perf_counter() - start))
    return taken


def spread(ms: Sequence[float]) -> dict[str, float]:
    """Median, first and ninth tenth, and the least."""
    tenths = quantiles(ms, n=10, method="inclusive") if len(ms) > 1 else [ms[0]] * 9
    return {"median": median(ms), "low": tenths[0], "high": tenths[-1], "least": min(ms)}


def count_operations(call: Callable[[], object]) -> int:
    """Floating point operations of the products of matrices and convolutions in ``call``.

    What is compiled in it runs uncompiled, for operations are counted one by one.
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
    """Least squares of ``ms = fixed + model*m + refiner*r`` over samples of m and r evaluations.

    "refiner" is None where no sample has any; "worst" is the largest relative residual. Each sample
    counts by the inverse of its time.
    """
    kinds = ["model", *(["refiner"] if any(c["refiner"] for c in counts) else [])]
    table = np.array([[1.0, *(c[k] for k in kinds)] for c in counts])
    taken = np.array(ms)
    found = np.linalg.lstsq(table / taken[:, None], np.ones(len(ms)), rcond=None)[0]
    worst = float(np.abs(table @ found / taken - 1).max())
    named: dict[str, float | None] = dict(zip(["fixed", *kinds], map(float, found), strict=True))
    return {"refiner": None, **named, "worst": worst}
