"""Measurements of generated images, as entries of a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from classifiers import Names
from torch import Tensor

from flowturbo.evaluate.frechet import Moments, frechet_distance

__all__ = ["confusion", "frechet", "memory", "nearest", "share", "top"]

Pair = tuple[int, int]
SPLITS = 3


def share(right: Tensor) -> dict[str, Any]:
    """The share of True in (N,), with the 95 % interval of Wilson."""
    n, p, z = len(right), float(right.double().mean()), 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    interval = [round(max(middle - half, 0), 4), round(min(middle + half, 1), 4)]
    return {"share": round(p, 4), "of": n, "interval": interval}


def top(names: Names, features: Tensor, right: Tensor) -> dict[str, Any]:
    """How often the right name (N,) is the first, and among the first five."""
    hit = names.rank(features)[:, :5] == right[:, None]
    return {"top 1": share(hit[:, 0]), "top 5": share(hit.any(1))}


def confusion(asked: Tensor, said: Tensor, styles: int) -> list[list[int]]:
    """Counts, a row for each style asked for, a column for each said."""
    return torch.bincount(asked * styles + said, minlength=styles**2).view(styles, -1).tolist()


def nearest(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N,) and index (N,) of the row of ``reference`` nearest to each row of ``x``."""
    at = torch.cat([torch.cdist(part, reference).argmin(1) for part in x.split(200)])
    return (x - reference[at]).norm(dim=1), at  # anew: cdist rounds where things are the same


def frechet(features: Tensor, train: Tensor) -> dict[str, Any]:
    """FD-EffNet of what was drawn for the first of the training pictures shuffled by seed 0."""
    n = len(features)

    def split(seed: int) -> tuple[Moments, Moments]:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        return Moments(train[order[:n]]), Moments(train[order[n:]])

    drawn, (first, rest), whole = Moments(features), split(0), Moments(train)
    floors = [frechet_distance(first, rest)]
    floors += [frechet_distance(*split(seed)) for seed in range(1, SPLITS)]
    return {
        "pictures": n,
        "against the training set": round(frechet_distance(drawn, whole), 2),
        "training pictures": whole.count,
        "against the rest": round(frechet_distance(drawn, rest), 2),
        "floor: the same real pictures against the rest": round(floors[0], 2),
        "floors of other splits": [round(f, 2) for f in floors[1:]],
        "pictures of the rest": rest.count,
    }


def memory(
    groups: dict[str, tuple[Any, Tensor, Sequence[Pair]]],
    train: tuple[Any, Tensor, Sequence[Pair]],
    unseen: str,
) -> dict[str, Any]:
    """How near to training pictures things are, in features and in pixels.

    Args:
        groups: by name, images (N, H, W, 3) uint8, features (N, D) and the pairs asked for.
        train: the same of the training pictures.
        unseen: the group of real pictures: what is nearer, in pixels, to a training picture than
            95 % of them is called a copy.
    """
    found: dict[str, Any] = {}
    levels: dict[str, Tensor] = {}
    images, features, pairs = train
    for name, (drawn, seen, asked) in groups.items():
        far, at = nearest(seen, features)
        levels[name], same = nearest(_flat(drawn), _flat(images))
        kin = [(pairs[i], pairs[j], p) for i, j, p in zip(at.tolist(), same.tolist(), asked)]  # noqa: B905
        found[name] = {
            "distance in features, median": round(float(far.median()), 2),
            "distance in pixels, median": round(float(levels[name].median()), 1),
            "nearest in features is of the name": share(
                torch.tensor([a[0] == p[0] for a, _, p in kin])
            ),
            "nearest in pixels is of the very pair": share(
                torch.tensor([b == p for _, b, p in kin])
            ),
        }
    copy = float(levels[unseen].quantile(0.05))
    for name in groups:
        found[name]["copies"] = share(levels[name] < copy)
    return {"a copy is nearer than": round(copy, 1), **found}


def _flat(images: Any) -> Tensor:
    """Rows whose distances are root mean squares of levels of 255."""
    x = torch.from_numpy(np.ascontiguousarray(images)).float().flatten(1)
    return x / x.shape[1] ** 0.5
