"""The images that are judged: which, from which seeds, and a store that keeps them.

A *pair* is a concept and a style, by index. No image is in two sets, and no seed is used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifiers import roughen
from data import canonical
from names import HELD_NAMES
from torch import Tensor

import flowturbo as ft
from flowturbo.files import atomic_write
from flowturbo.refiner.resolve import resolve

__all__ = [
    "Model",
    "Pair",
    "Real",
    "Source",
    "draw",
    "pairs_to_draw",
    "stored",
    "to_images",
    "to_pictures",
]

Pair = tuple[int, int]
SEEN, EACH_HELD, TOTAL, CHUNK = 400, 3, 5000, 100
FIRST_SEED = {"image_grid": 0, "seen": 1000, "held out": 2000, "total": 10_000}


def pairs_to_draw(
    about: dict[str, Any], names: Sequence[int], trained: Sequence[Pair]
) -> dict[str, list[Pair]]:
    """What to draw in each set.

    - "image_grid": the names of `HELD_NAMES` in every style, style by style
    - "seen": 400 trained pairs of ``names``, each once and, from the first on, again
    - "held out": the pairs of ``names`` that were held out, three times each
    - "total": the pairs of 5,000 training pictures drawn without repetition by seed 0
    """
    styles = range(len(about["styles"]))
    held = {(c, s) for c, s in about["held"]}
    cells = [(c, s) for c in names for s in styles]
    seen = [p for p in cells if p not in held]
    place = {c["name"]: i for i, c in enumerate(about["concepts"])}
    rows = torch.randperm(len(trained), generator=torch.Generator().manual_seed(0))[:TOTAL]
    return {
        "image_grid": [(place[n], s) for s in styles for n in HELD_NAMES],
        "seen": [seen[i % len(seen)] for i in range(SEEN)],
        "held out": [p for p in cells if p in held] * EACH_HELD,
        "total": [trained[i] for i in rows.tolist()],
    }


class Model:
    """Draws with a model, on ``device``, which is not asked for before something is drawn."""

    def __init__(
        self,
        folder: str,
        about: dict[str, Any],
        plan: str | None,
        guidance: float | None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.about, self.device = ft.load(folder, dtype=dtype), about, device
        used = resolve(self.model, plan, guidance)
        self.plan, self.guidance = used.plan, used.guidance
        self.conditions = {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "plan": self.plan.name,
            "plan_digest": self.plan.digest,
            "evaluations": self.plan.nfe,
            "guidance": self.guidance,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": device,
        }

    def __call__(self, pairs: Sequence[Pair], seed: int) -> Any:
        """Pictures (B, H, W, 3) uint8, from ``seed`` on."""
        self.model.to(self.device)
        concepts, styles = self.about["concepts"], self.about["styles"]
        prompts = [canonical(concepts[c], styles[s]) for c, s in pairs]
        images = ft.generate(self.model, prompts, plan=self.plan, guidance=self.guidance, seed=seed)
        return np.stack([np.asarray(i) for i in images])


class Real:
    """Stands in for a model with real pictures, as they are or roughened: a ceiling."""

    def __init__(self, images: Any, pairs: Sequence[Pair], rough: bool) -> None:
        self.images, self.rough = images, rough
        self.rows = {p: i for i, p in enumerate(pairs)}
        self.conditions = {"model": "real pictures" + (", roughened" if rough else "")}

    def __call__(self, pairs: Sequence[Pair], seed: int) -> Any:
        images = self.images[[self.rows[p] for p in pairs]]
        if self.rough:
            images = to_images(roughen(to_pictures(images), torch.Generator().manual_seed(seed)))
        return images


Source = Model | Real


def to_pictures(images: Any) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) / 255


def to_images(pictures: Tensor) -> Any:
    """The other way."""
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()


def stored(path: Path, key: str, make: Callable[[], Any]) -> Any:
    """The array in ``path``, if it was made under the same ``key``; else made and kept there."""
    if path.is_file():
        with np.load(path) as file:
            if str(file["key"]) == key:
                return file["array"]
    array = make()
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, key=key, array=array)
    return array


def draw(source: Source, name: str, pairs: Sequence[Pair], folder: Path) -> Any:
    """All pictures of a set, kept a hundred at a time."""
    parts = []
    for i in range(0, len(pairs), CHUNK):
        part, seed = pairs[i : i + CHUNK], FIRST_SEED[name] + i
        key = str((source.conditions, part, seed))
        path = folder / f"{name.replace(' ', '-')}-{i:04d}.npz"
        parts.append(stored(path, key, lambda p=part, s=seed: source(p, s)))
        print(f"{name}: {min(i + CHUNK, len(pairs))} of {len(pairs)}", flush=True)
    return np.concatenate(parts)
