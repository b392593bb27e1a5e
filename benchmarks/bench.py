"""A model with its test noise, tuned plans and refiners at several guidance scales, in one folder.

`results.py` and `ablations.py` share the folder, so nothing is computed twice:

    g2/trial      the reference solution at guidance 2, and errors of plans; as `method.py` keeps it
    g2/plans      plans fitted at guidance 2 for the lowest error; as `method.py` keeps them
    g2/contrast   plans fitted to preserve the contrast of images
    g2/pictures   images generated at guidance 2, and their features
    refiners/...  the paper's refiner, and those that its ablations train
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from method import Fits, check_alike, keep
from safetensors.torch import load_file
from trial import BATCH, Trial

import flowturbo as ft
from flowturbo.evaluate.features import EffNetFeatures
from flowturbo.evaluate.frechet import frechet_distance
from flowturbo.evaluate.real import load_real
from flowturbo.files import atomic_write
from flowturbo.models.conditioning import TextCondition
from flowturbo.refiner.checkpoint import REFINER_WEIGHTS
from flowturbo.training import PaperRefinerConfig, load_data, train_paper_refiner

OWN = "ours"  # the name of our refiner among the paper's
FEATURES: Any = "effnet"  # of `flowturbo.evaluate`
EMOJI = Path(__file__).resolve().parents[1] / "recipes" / "emoji"
Scale = float | tuple[float, float]


def parser(about: str | None) -> argparse.ArgumentParser:
    """The options that both scripts have."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--model", required=True, help="a bundled name or a folder")
    add("--device", default="cpu", help="where to compute")
    add("--noise-samples", type=int, default=256, help="to test on")
    add("--reference", default="AB4RK:105@0.5", help="plan of the reference solution")
    add("--trajectories", type=int, default=64, help="for plans that have to be fitted")
    add("--no-search", action="store_true", help="fit weights at given times only")
    add("--refiner", help="a folder with our refiner")
    add("--data", help="what the model was trained on, to train the paper's refiner; resumes")
    add("--iterations", type=int, help="of that training; by default as many as the paper's")
    add("--bf16", action="store_true", help="train it in bfloat16")
    add("--num-images", type=int, default=0, help="of each plan for FD-EffNet, 0 for none")
    add("--compiled", action="store_true", help="generate images with compiled networks")
    add("--steps", type=int, default=64, help="intervals of the reference solution of images")
    add("--real-images", help="for FD-EffNet; or the data set of emoji")
    add("--folder", help="for what is computed on the way; runs/results/NAME by default")
    add("--out", "-o", help="the record")
    return made


class Bench:
    """What the options of `parser` ask for."""

    def __init__(self, options: argparse.Namespace, kind: str) -> None:
        self.options, self.model = options, ft.load(options.model, device=options.device)
        self.name = Path(options.model).name
        self.folder = Path(options.folder or f"runs/results/{self.name}")
        what = kind.split()[1]
        self.out = Path(options.out or f"benchmarks/records/{what}-{self.name}.json")
        own = options.refiner and ft.load_refiner(options.refiner, self.model)
        self.own = own or None
        self._trials: dict[float, Trial] = {}
        self._refiners: dict[str, Any] = {}
        self.record: dict[str, Any] = {
            "kind": kind, "model": self.name, "fingerprint": self.model.fingerprint,
            "text": isinstance(self.model.conditioning, TextCondition), "refiners": {},
        }  # fmt: skip
        if self.out.is_file():
            found = json.loads(self.out.read_text("utf-8"))
            for key in ("kind", "fingerprint"):
                if found.get(key) != self.record[key]:
                    raise SystemExit(
                        f"--out {self.out}: of {key} {found.get(key)!r}, not {self.record[key]!r}; "
                        "give another"
                    )
            self.record |= found

    def keep(self) -> None:
        keep(self.out, self.record)

    def home(self, guidance: Scale) -> Path:
        scales = guidance if isinstance(guidance, tuple) else (guidance,)
        return self.folder / ("g" + "-".join(f"{s:g}" for s in scales))

    def asked(self, row: str) -> bool:
        """Whether a row is among those of ``--rows``; all are without."""
        rows = getattr(self.options, "rows", None)
        return rows is None or row in rows

    def trial(self, guidance: float) -> Trial:
        """The test noise samples at a scale of guidance."""
        if guidance not in self._trials:
            o = self.options
            where = self.home(guidance) / "trial"
            self._trials[guidance] = Trial(
                self.model, guidance, o.noise_samples, o.reference, where
            )
        return self._trials[guidance]

    def part(self, key: str, guidance: float, *, anywhere: bool = False) -> dict[str, Any]:
        """What the record says under ``key`` at a scale, with the conditions it holds under.

        ``anywhere`` takes what was measured on another machine too.
        """
        trial = self.trial(guidance)
        part = self.record.setdefault(key, {}).setdefault(f"{guidance:g}", {})
        if part:
            check_alike(self.out, part["conditions"], trial, anywhere)
        else:
            part |= {"conditions": trial.conditions, "reference": trial.reference_error()}
            part["roughness"] = trial.roughness()
        return part

    def fits(self, guidance: Scale, *, contrast: bool = False) -> Fits:
        """Plans fitted at a scale, or over a range of them: for the lowest error, as tables of
        errors compare, or with the contrast of pictures kept.
        """
        given = {
            "trajectories": self.options.trajectories, "search": not self.options.no_search,
            "preserve_contrast": contrast,
        }  # fmt: skip
        folder = self.home(guidance) / ("contrast" if contrast else "plans")
        return Fits(folder, self.model, guidance, given)

    def refiner(self, name: str = "paper", **changes: Any) -> Any:
        """The paper's refiner; None if it is not there and cannot be trained.

        ``changes`` are what its training differs in from the paper's.
        """
        if name not in self._refiners:
            folder = self.folder / "refiners" / name
            if self.data is not None:
                print(f"training {folder}, or going on", flush=True)
                tell = lambda progress: print(f"{name}: {progress}", flush=True)
                made = train_paper_refiner(
                    self.model, self.data, folder, self.training, report=tell, **changes
                )
            else:
                made = trained(folder, self.model)
                if made is None:
                    print(f"none trained in {folder}, and no --data to: left out", flush=True)
            self._refiners[name] = made
        made = self._refiners[name]
        if made is not None:
            self.record["refiners"][name] = {
                "fingerprint": made.fingerprint,
                "parameters": sum(p.numel() for p in made.parameters()),
                "training": made.card.get("training", {}),
            }
        return made

    @property
    def training(self) -> PaperRefinerConfig:
        """The paper's, for classes or for text."""
        text = dict(steps=10_000, batch=16, lr=2e-5, clip=0.01) if self.record["text"] else {}
        given = {"steps": self.options.iterations} if self.options.iterations else {}
        return PaperRefinerConfig(**{**text, **given, "bf16": self.options.bf16})

    @cached_property
    def data(self) -> Any:
        """The training data, None if not given."""
        if not self.options.data:
            return None
        path = Path(self.options.data)
        if (path / "emoji.json").is_file():
            return emoji(path, self.model.shape[1])
        about = self.model.conditioning
        known = about.tokenizer if about else None
        return load_data(path, self.model.shape[1], known)

    @cached_property
    def real_images(self) -> Path | None:
        """The real images, None if not given; of the data set of `emoji` a file in the folder."""
        path = self.options.real_images and Path(self.options.real_images)
        if not path or not (path / "emoji.json").is_file():
            return path or None
        images = emoji(path, self.model.shape[1]).images.permute(0, 2, 3, 1)
        with atomic_write(self.folder / "emoji.npz") as temporary:
            np.savez(temporary, images=images.numpy())
        return self.folder / "emoji.npz"

    @cached_property
    def drawing(self) -> Any:
        """The model that generates images."""
        o = self.options
        return drawing_compiled(o.model, o.device) if o.compiled else self.model

    @cached_property
    def features(self) -> Any:
        """The network that features are computed with."""
        if self.model.device.type == "cuda":
            return EffNetFeatures(self.model.device)
        return seen_compiled() if self.options.compiled else FEATURES

    def evaluated(self, plan: ft.Plan, refiner: Any, guidance: float, found: Any) -> dict[str, Any]:
        """The record of `flowturbo.evaluate`; ``found`` if it is that already."""
        o, refiner = self.options, refiner if plan.nfe["refiner"] else None
        asked = {
            "digest": plan.digest,
            "images": o.num_images,
            "steps": o.steps,
            "real_images": self.real_images and self.real_images.name,
            "refiner": getattr(refiner, "fingerprint", None),
        }
        if found and found["asked"] == asked:
            return found
        folder = self.home(guidance) / "pictures"
        made = ft.evaluate(
            self.drawing, plan, num_images=o.num_images, guidance=guidance, refiner=refiner,
            real_images=self.real_images, features=self.features, repeats=0, cache_dir=folder,
            steps=o.steps,
        )  # fmt: skip
        if self.real_images:
            made["frechet"]["floor"] = floor(
                self.real_images, self.model.shape, o.num_images, folder
            )
        return {"asked": asked, **made}


def trained(folder: Path, model: Any) -> Any:
    """The refiner in a folder, None if there is none or its training has not ended."""
    if not (folder / REFINER_WEIGHTS).is_file():
        return None
    made = ft.load_refiner(folder, model)
    about = made.card["training"]
    return made if about["step"] == about["steps"] else None


def drawing_compiled(name: str, device: str = "cpu") -> Any:
    """A model to generate many images: whole batches of `ft.evaluate` are compiled."""
    model = ft.load(name, device=device)
    fast = for_batches(model.network.forward, BATCH, 2 * BATCH)
    as_tensor = lambda t: torch.as_tensor(t, dtype=torch.float32, device=model.device)
    model.network.forward = lambda x, t, *rest: fast(x, as_tensor(t), *rest)
    return model


def seen_compiled() -> Any:
    """The network of FEATURES, compiled for the batches that it splits pictures into."""
    see = EffNetFeatures()
    see.network.extract_features = for_batches(see.network.extract_features, 16)
    return see


def for_batches(call: Callable[..., Any], *sizes: int) -> Callable[..., Any]:
    """``call``, compiled for so many rows; others run it as it is."""
    compiled = torch.compile(call, dynamic=False)
    return lambda x, *rest: (compiled if len(x) in sizes else call)(x, *rest)


def emoji(path: Path, size: int) -> Any:
    """The data set of `emoji`, read by its recipe."""
    sys.path.insert(0, str(EMOJI))
    from train import EmojiData

    return EmojiData(path, size)


def floor(path: Path, shape: tuple[int, ...], images: int, folder: Path) -> dict[str, Any]:
    """The distance of this many real images, or half of all if fewer, to the others."""
    real = load_real(path, shape)
    features = real.features
    if features is None:
        kept = sorted(folder.glob(f"real-{real.about['digest']}-*.safetensors"))
        features = torch.cat([load_file(path)["features"] for path in kept])
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    n = min(images, len(rows) // 2)
    return {"images": n, "distance": frechet_distance(features[rows[:n]], features[rows[n:]])}
