r"""Scores of sets of images, from the features or class probabilities of any network.

The inception score of probabilities ``p(y|x)`` (Salimans et al. 2016, arXiv 1606.03498),

    exp( mean_x KL(p(y|x) || mean_x p(y|x)) ),

is 1 where all images look alike or like nothing, and at most the number of classes.

Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991) model each set as the union of
balls around its rows that extend to their k-th nearest neighbour. Precision is the share of
generated images inside the union of the real ones; recall the share of real images inside that of
the generated ones. Both depend on the number of images: compare only sets of the same size.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from flowturbo.stats import Array, interval
from flowturbo.types import JsonObject

__all__ = ["covered", "inception_score", "precision_recall"]

_ROWS = 1000  # distances from so many rows at a time


def inception_score(probabilities: Tensor, *, splits: int = 10) -> dict[str, float]:
    """Mean and standard deviation of the score over ``splits`` parts, in the order given.

    Args:
        probabilities: (N, classes), rows that sum to 1, in random order: shuffle rows that are
            sorted by class.
        splits: number of parts, each of at least one row.

    Returns:
        "mean" and "std", the latter over the parts (population), as in the official code.

    Raises:
        ValueError: if these are not probabilities, or there are fewer rows than parts.
    """
    p = probabilities.double()
    if p.ndim != 2 or not (p >= 0).all() or not torch.allclose(p.sum(1), p.new_ones(()), atol=1e-4):
        raise ValueError(
            f"probabilities of shape {tuple(p.shape)}: must be (N, classes), none negative, each "
            "row summing to 1; take the softmax of what the classifier returns"
        )
    if not 1 <= splits <= len(p):
        raise ValueError(f"splits={splits}: must be from 1 to the {len(p)} images")
    cuts = [i * len(p) // splits for i in range(splits + 1)]
    parts = [p[a:b] for a, b in pairwise(cuts)]
    scores = [float(_divergence(part).exp()) for part in parts]
    return {"mean": float(np.mean(scores)), "std": float(np.std(scores))}


def _divergence(p: Tensor) -> Tensor:
    """The mean over rows of KL(row || mean row), where 0 log 0 is 0."""
    return (torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))).sum(1).mean()


def precision_recall(generated: Tensor, real: Tensor, *, neighbours: int = 3) -> JsonObject:
    """Precision and recall of generated images, each with its 95 % bootstrap interval.

    The intervals are over the rows whose share is measured; the other set is kept fixed.

    Args:
        generated: features (N, D).
        real: features (M, D) of the same network.
        neighbours: k, the nearest neighbour that the balls extend to.

    Returns:
        "precision", "precision_95", "recall", "recall_95".

    Raises:
        ValueError: for features of another shape, not finite, or no more than k of them.
    """
    inside, reached = covered(generated, real, neighbours), covered(real, generated, neighbours)
    found = {"precision": inside, "recall": reached}
    return {k: float(v.mean()) for k, v in found.items()} | {
        f"{k}_95": interval(np.mean, v) for k, v in found.items()
    }


def covered(rows: Tensor, points: Tensor, neighbours: int = 3) -> Array:
    """Which of ``rows`` (N, D) lie in a ball of ``points`` (M, D): (N,) of 0.0 and 1.0."""
    if rows.ndim != 2 or points.ndim != 2 or rows.shape[1] != points.shape[1]:
        raise ValueError(
            f"features of shapes {tuple(rows.shape)} and {tuple(points.shape)}: must be (N, D) "
            "and (M, D), of one network"
        )
    if not 1 <= neighbours < min(len(points), len(rows)):
        raise ValueError(
            f"neighbours={neighbours}: must be at least 1 and below the {len(points)} and "
            f"{len(rows)} images"
        )
    if not (rows.isfinite().all() and points.isfinite().all()):
        raise ValueError("features: some are not finite")
    rows, points = rows.double(), points.double()
    reach = torch.cat(
        [torch.cdist(p, points).kthvalue(neighbours + 1).values for p in points.split(_ROWS)]
    )  # the nearest of all is the point itself
    inside = [(torch.cdist(r, points) <= reach).any(1) for r in rows.split(_ROWS)]
    return torch.cat(inside).double().cpu().numpy()
