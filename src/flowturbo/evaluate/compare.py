"""A plan's pictures beside the converged sampler's, from features of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowturbo.evaluate.frechet import frechet_distance, relative_difference
from flowturbo.evaluate.scores import inception_score, precision_recall
from flowturbo.stats import interval, summary

__all__ = ["agreement", "compare"]


def compare(
    plan: Tensor,
    converged: Tensor,
    real: Tensor | None = None,
    *,
    probabilities: Callable[[Tensor], Tensor] | None = None,
    resamples: int = 200,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Perceptual and Frechet distances, inception score, precision and recall.

    Args:
        plan: features (N, D) of a plan's pictures.
        converged: features (N, D) of the converged sampler's, of the same noises row by row.
        real: features (M, D) of real pictures. Without them half of ``converged``, mixed by a fixed
            seed, stands in, and the other halves are measured: the two sets then share no noise.
        probabilities: features to probabilities of classes, for the score.
        resamples: of the bootstrap of the relative difference of Frechet distances; 0 for none.
        device: where the bootstrap's products are computed.
        progress: show a bar, on a terminal.

    Returns:
        The parts "perceptual", "frechet", "score", "precision" and "recall" of the record of
        `flowturbo.evaluate`.

    Raises:
        ValueError: if the features do not fit together, or are too few.
    """
    apart = lambda a, b: (a.double() - b.double()).norm(dim=1).numpy()
    unrelated = apart(converged, converged.roll(1, 0))
    record: dict[str, Any] = {
        "perceptual": {
            **summary(apart(plan, converged)),
            "unrelated": float(np.sqrt((unrelated**2).mean())),
        },
    }
    frechet: dict[str, Any] = {"twins": frechet_distance(plan, converged)}
    mixed = torch.randperm(len(plan), generator=torch.Generator().manual_seed(0))
    if probabilities is not None:
        both = {"plan": plan, "converged": converged}
        record["score"] = {k: inception_score(probabilities(x[mixed])) for k, x in both.items()}
    if real is None:
        here, there = mixed.tensor_split(2)
        plan, converged, real = plan[here], converged[here], converged[there]
    sets = {"plan": plan, "converged": converged}
    frechet |= {"pictures": len(plan), "to": len(real)}
    if resamples:
        frechet |= _relative(plan, converged, real, resamples, device, progress)
    else:
        frechet |= {k: frechet_distance(x, real) for k, x in sets.items()}
    record["frechet"] = frechet
    found = {k: precision_recall(x, real) for k, x in sets.items()}
    for part in ("precision", "recall"):
        record[part] = {
            k: {"share": v[part], "share_95": v[f"{part}_95"]} for k, v in found.items()
        }
    return record


def _relative(
    plan: Tensor, converged: Tensor, real: Tensor, resamples: int, device: Any, progress: bool
) -> dict[str, Any]:
    with tqdm(total=resamples, desc="bootstrap", disable=None if progress else True) as bar:
        found = relative_difference(
            plan, converged, real, resamples=resamples, device=device, report=bar.update
        )
    return {
        "plan": found["a"],
        "converged": found["b"],
        "relative": found["relative"],
        "relative_95": found["relative_95"],
        "resamples": resamples,
    }


def agreement(
    plan: Tensor, converged: Tensor, asked: np.ndarray[Any, Any], prompts: Tensor
) -> dict[str, Any]:
    """How often features are nearest to those of the prompt asked for, of all of ``prompts``.

    Args:
        plan: features (N, D) of a plan's pictures.
        converged: features (N, D) of the converged sampler's, of the same noises and prompts.
        asked: (N,) which row of ``prompts`` was asked for; -1 for none of them, left out.
        prompts: (P, D) mean features of converged pictures of each prompt, of other noises.

    Returns:
        The numbers of "prompts" and "pictures", "chance", the "share" of "plan" and of "converged"
        with its 95 % bootstrap interval over pictures, and that of their difference, in which
        pictures of one noise stay together.
    """
    known = asked >= 0
    hits = {
        k: (torch.cdist(x[known].double(), prompts.double()).argmin(1).numpy() == asked[known])
        * 1.0
        for k, x in (("plan", plan), ("converged", converged))
    }
    return {
        "prompts": len(prompts),
        "pictures": int(known.sum()),
        "chance": 1 / len(prompts),
        **{
            k: {"share": float(v.mean()), "share_95": interval(np.mean, v)} for k, v in hits.items()
        },
        "difference_95": interval(np.mean, hits["plan"] - hits["converged"]),
    }
