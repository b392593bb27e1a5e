"""The Frechet distance between sets of features, from their means and covariances.

Between two normal distributions

    d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)),

and the last trace is the sum of the singular values of ``A1^T A2`` for any factors ``S = A A^T``.
Computed so, from eigenvectors of each covariance, nothing is divided by and no root is taken of a
product's rounding errors: fewer pictures than features are no trouble to the arithmetic. They do
bias the distance upwards: compare distances of equally many pictures only, and show what as many
real pictures get.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "frechet_distance"]


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
        """Take in features (B, D).

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
        # Chan et al. 1983: scatters about two means add up, but for the means' own distance
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


def _factor(covariance: Tensor) -> Tensor:
    """A (D, rank) with ``A A^T`` the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()
