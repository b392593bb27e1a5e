"""Images of a plan compared with those of the reference solution, by their features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from flowturbo.evaluate.frechet import frechet_distance, relative_difference
from flowturbo.evaluate.scores import inception_score, precision_recall
from flowturbo.progress import Report
from flowturbo.stats import Array, interval, rmse, summary
from flowturbo.types import JsonObject

__all__ = ["agreement", "compare"]


def compare(
    plan: Tensor,
    reference: Tensor,
    real: Tensor | None = None,
    *,
    probabilities: Callable[[Tensor], Tensor] | None = None,
    resamples: int = 200,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> JsonObject:
    """Perceptual and Frechet distances, inception score, precision and recall.

    Args:
        plan: features (N, D) of the plan's images.
        reference: features (N, D) of the reference images, of the same noise samples row by row.
        real: features (M, D) of real images. Without them, a random half of ``reference`` is used
            instead, and the other halves are measured, so that the two sets share no noise.
        probabilities: features to probabilities of classes, for the inception score.
        resamples: of the bootstrap of the relative difference of Frechet distances; 0 for none.
        device: where the bootstrap's products are computed.
        report: called after each resample.

    Returns:
        The parts "perceptual", "frechet", "inception_score", "precision" and "recall" of the record
        of `flowturbo.evaluate`.

    Raises:
        ValueError: if the features do not match, or are too few.
    """
    frechet: JsonObject = {"to_reference": frechet_distance(plan, reference)}
    record: JsonObject = {"perceptual": _perceptual(plan, reference), "frechet": frechet}
    mixed = torch.randperm(len(plan), generator=torch.Generator().manual_seed(0))
    if probabilities is not None:
        both = {"plan": plan, "reference": reference}
        record["inception_score"] = {
            k: inception_score(probabilities(x[mixed])) for k, x in both.items()
        }
    if real is None:
        here, there = mixed.tensor_split(2)
        plan, reference, real = plan[here], reference[here], reference[there]
    sets = {"plan": plan, "reference": reference}
    frechet |= {"images": len(plan), "target_images": len(real)}
    if resamples:
        frechet |= _relative(plan, reference, real, resamples, device, report)
    else:
        frechet |= {k: frechet_distance(x, real) for k, x in sets.items()}
    found = {k: precision_recall(x, real) for k, x in sets.items()}
    for part in ("precision", "recall"):
        record[part] = {
            k: {"share": v[part], "share_95": v[f"{part}_95"]} for k, v in found.items()
        }
    return record


def _perceptual(plan: Tensor, reference: Tensor) -> JsonObject:
    """Distances between paired images, and between random pairs of reference images."""
    apart = lambda a, b: (a.double() - b.double()).norm(dim=1).numpy()
    random_pairs = apart(reference, reference.roll(1, 0))
    return {**summary(apart(plan, reference)), "random_pairs": float(rmse(random_pairs))}


def _relative(
    plan: Tensor,
    reference: Tensor,
    real: Tensor,
    resamples: int,
    device: str | torch.device,
    report: Report | None,
) -> JsonObject:
    found = relative_difference(
        plan, reference, real, resamples=resamples, device=device, report=report
    )
    return {
        "plan": found["a"],
        "reference": found["b"],
        "relative": found["relative"],
        "relative_95": found["relative_95"],
        "resamples": resamples,
    }


def agreement(plan: Tensor, reference: Tensor, asked: Array, prompts: Tensor) -> JsonObject:
    """How often features are closest to those of the image's own prompt, among all ``prompts``.

    Args:
        plan: features (N, D) of the plan's images.
        reference: features (N, D) of the reference images, of the same noise samples and prompts.
        asked: (N,) the row of ``prompts`` that was requested; images with -1 are left out.
        prompts: (P, D) mean features of reference images of each prompt, of other noise samples.

    Returns:
        The numbers of "prompts" and "images", "chance", the "share" of "plan" and of "reference"
        with its 95 % bootstrap interval over images, and the interval of their difference, paired
        by noise sample.
    """
    known = asked >= 0
    hits = {
        k: (torch.cdist(x[known].double(), prompts.double()).argmin(1).numpy() == asked[known])
        * 1.0
        for k, x in (("plan", plan), ("reference", reference))
    }
    return {
        "prompts": len(prompts),
        "images": int(known.sum()),
        "chance": 1 / len(prompts),
        **{
            k: {"share": float(v.mean()), "share_95": interval(np.mean, v)} for k, v in hits.items()
        },
        "difference_95": interval(np.mean, hits["plan"] - hits["reference"]),
    }
