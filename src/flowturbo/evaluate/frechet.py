"""The Frechet distance between sets of features, from their means and covariances.

Between two normal distributions

    d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)),

and the last trace is the sum of the singular values of ``A1^T A2`` for any factors ``S = A A^T``.
Computed in this way, from eigenvectors of each covariance, there is no division, and no root is
taken of a product's rounding errors, so having fewer images than features is numerically harmless.
It does bias the distance upwards: compare only distances for the same number of images, and report
that of equally many real images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flowturbo import stats
from flowturbo.progress import Progress, Report
from flowturbo.types import JsonObject

__all__ = ["Moments", "frechet_distance", "relative_difference"]


class Moments:
    """Mean and covariance of features, gathered in batches in float64.

    Attributes:
        count: features seen.
    """

    def __init__(self, features: Tensor | None = None) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)
        if features is not None:
            self.add(features)

    def add(self, features: Tensor) -> None:
        """Add features (B, D).

        Raises:
            ValueError: if they are not finite, or not as wide as those before.
        """
        if features.ndim != 2 or (self.count and features.shape[1] != len(self._mean)):
            width = len(self._mean) if self.count else "D"
            raise ValueError(f"features of shape {tuple(features.shape)}: must be (B, {width})")
        if not features.isfinite().all():
            raise ValueError("features: some are not finite")
        if not len(features):
            return
        x = features.detach().to("cpu", torch.float64)
        mean, n = x.mean(0), len(x)
        if not self.count:
            self._mean, self._scatter = torch.zeros_like(mean), mean.new_zeros(len(mean), len(mean))
        off, total = mean - self._mean, self.count + n
        # Chan et al. 1983: scatters about two means add up, except for the means' own distance
        self._scatter += (x - mean).T @ (x - mean) + torch.outer(off, off) * (
            self.count * n / total
        )
        self._mean = self._mean + off * (n / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64, unbiased.

        Raises:
            ValueError: of fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} features: a covariance needs at least 2")
        return self._scatter / (self.count - 1)


def frechet_distance(a: Moments | Tensor, b: Moments | Tensor) -> float:
    """The squared Frechet distance between two sets of features, as FID reports it.

    Args:
        a: moments, or features (B, D).
        b: the same, as wide.

    Raises:
        ValueError: for sets of different width, or of fewer than two features.
    """
    a, b = (x if isinstance(x, Moments) else Moments(x) for x in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features {len(a.mean)} and {len(b.mean)} wide: must be of one kind")
    cross = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float((a.mean - b.mean).square().sum() + spread)


def relative_difference(
    a: Tensor,
    b: Tensor,
    reference: Moments | Tensor,
    *,
    resamples: int = 200,
    seed: int = 0,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> JsonObject:
    """How much farther ``a`` is from ``reference`` than ``b``: ``d^2(a) / d^2(b) - 1``.

    Rows ``a[i]`` and ``b[i]`` belong together (two samplers, one noise sample), so both are
    resampled alike, and variation that they share cancels in the interval. Resampling doubles some
    rows and loses others, which raises both distances; the replicates are shifted back to the
    measured distances before the interval is taken. The reference set is not resampled.

    Args:
        a: features (N, D).
        b: features (N, D).
        reference: moments, or features (M, D).
        resamples: replicates, each with an eigenvalue problem of size D for ``a`` and ``b``.
        seed: of the resampling.
        device: where products are computed, in float64; eigenvalues are on the CPU.
        report: called after each replicate.

    Returns:
        "a" and "b", the distances; "relative", and "relative_95", its 95 % interval.

    Raises:
        ValueError: if ``a`` and ``b`` are not of one shape, the distance of ``b`` is 0, or there
            are fewer than two replicates.
    """
    if a.shape != b.shape or resamples < 2:
        raise ValueError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}, resamples={resamples}: "
            "the shapes must be equal, row by row, with 2 resamples or more"
        )
    reference = reference if isinstance(reference, Moments) else Moments(reference)
    from_a, from_b = frechet_distance(a, reference), frechet_distance(b, reference)
    if from_b <= 1e-9 * float(reference.covariance.trace()):
        raise ValueError("b is the reference itself, at distance 0: nothing is relative to it")
    factor, n = _factor(reference.covariance), len(a)
    sets = [_Resampled(x, reference, factor, device) for x in (a, b)]
    found = []
    for i, rows in enumerate(stats.resamples(n, resamples, seed)):
        counts = torch.from_numpy(np.bincount(rows, minlength=n)).double()
        found.append([x(counts) for x in sets])
        if report:
            report(Progress("bootstrap resamples", i + 1, resamples))
    of_a, of_b = np.array(found).T
    gap = of_a - of_b
    ratio = (gap - gap.mean() + from_a - from_b) / (of_b - of_b.mean() + from_b)
    return {
        "a": from_a,
        "b": from_b,
        "relative": from_a / from_b - 1,
        "relative_95": stats.bounds(ratio),
    }


class _Resampled:
    """Distances of a set with rows counted more or less often, to one reference.

    With ``S2 = A A^T``, the trace of ``(S1 S2)^(1/2)`` is the sum of the square roots of the
    eigenvalues of ``A^T S1 A``, the covariance of the rows times ``A``. This squares what
    `frechet_distance` factorises, which halves the number of exact digits, but needs only one small
    eigenvalue problem per replicate.
    """

    def __init__(
        self, x: Tensor, reference: Moments, factor: Tensor, device: str | torch.device = "cpu"
    ) -> None:
        self.x = x.detach().to(device, torch.float64) - reference.mean.to(device)
        self.across, self.square = self.x @ factor.to(device), self.x.square().sum(1)
        self.trace = float(reference.covariance.trace())

    def __call__(self, counts: Tensor) -> float:
        n, counts = len(counts), counts.to(self.x.device)
        off, middle = counts @ self.x / n, counts @ self.across / n
        scatter = self.across.T @ (counts[:, None] * self.across) - n * torch.outer(middle, middle)
        cross = torch.linalg.eigvalsh((scatter / (n - 1)).cpu()).clamp(min=0).sqrt().sum()
        spread = (counts @ self.square - n * off.square().sum()) / (n - 1)
        return float(off.square().sum() + spread - 2 * cross) + self.trace


def _factor(covariance: Tensor) -> Tensor:
    """A (D, rank) with ``A A^T`` the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
