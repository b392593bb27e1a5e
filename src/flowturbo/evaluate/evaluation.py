"""`flowturbo.evaluate`: how near a plan's pictures are to those the model means.

A plan solves an ODE in few evaluations, so the pictures to compare with are those of the same
noises and conditions with the ODE solved finely: the *converged* sampler's. What is measured:

- *trajectory error*: the root mean square difference of the final states, picture by picture;
- *perceptual distance*: the Euclidean distance of the two pictures' features, beside that of two
  converged pictures that have nothing to do with each other;
- *Frechet distance*, *inception score*, *precision* and *recall* of the set, for the plan and for
  the converged sampler, to real pictures or, without any, to converged pictures of other noises;
- *agreement*: how often a picture is nearer to what its own prompt looks like than to what others
  do: its features are compared with the mean features of 4 converged pictures, of other noises, of
  each of some prompts, the asked-for among them. It says whether a plan loses what the model knows
  of prompts, which the figure of the converged sampler shows, and not whether the model is right;
- evaluations by kind, floating point operations and milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.evaluate.compare import agreement as agreement_of
from flowturbo.evaluate.compare import compare
from flowturbo.evaluate.error_profile import check_whole
from flowturbo.evaluate.features import EffNetFeatures
from flowturbo.evaluate.fidelity import check_installed, official_scores
from flowturbo.evaluate.image_cache import ImageCache
from flowturbo.evaluate.real import Real, digest, load_real
from flowturbo.files import exclusive
from flowturbo.models.model import Model
from flowturbo.plan import Plan
from flowturbo.provenance import conditions, identity, refiner_identity, signature
from flowturbo.refiner.binding import Refiner, check_refiner
from flowturbo.refiner.resolve import resolve
from flowturbo.sampling import sample
from flowturbo.stats import summary
from flowturbo.timing import count_operations, interleaved, spread
from flowturbo.tree import slice_condition
from flowturbo.tuning.reference import error, fine

__all__ = ["evaluate"]

MOST = 10_000_000  # pictures
GALLERY = 4  # converged pictures of each prompt, to agree with
CHECKED = 16  # pictures on which the converged sampler is compared with a finer one
TIMED = 8  # pictures at once, where time is measured

Features = Callable[[Tensor], Tensor]
"""Pictures (B, C, H, W) in [0, 1] to features (B, D). It may have a ``name``, by which a folder
tells features from others, and ``probabilities``, features to those of classes (B, classes)."""


@checks.known_keywords
@torch.no_grad()
def evaluate(
    model: Model,
    plan: Plan | str | None = None,
    *,
    pictures: int = 5000,
    prompts: Sequence[str | int] | None = None,
    guidance: float | None = None,
    refiner: Refiner | None = None,
    real_images: str | Path | None = None,
    features: Features | str | None = "effnet",
    fid: bool = False,
    agreement: int = 200,
    steps: int = 64,
    resamples: int = 200,
    repeats: int = 10,
    batch: int = 64,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure the pictures of ``plan`` beside the converged sampler's of the same noises.

    Args:
        model: from `flowturbo.load`, or a `flowturbo.Model` of a field of your own.
        plan: a plan, its notation, or the name of one of ``model.plans``; by default the card's.
        pictures: how many to draw, at least 10; picture ``i`` has the seed ``seed + i``.
        prompts: labels or prompts of the pictures, in turn; by default drawn evenly from the card
            (`Model.random_condition`, by ``seed``).
        guidance: scale of classifier-free guidance, 1 is off; by default the card's.
        refiner: for plans with refiner evaluations; by default the one that came with the model.
        real_images: as `flowturbo.training.load_data` reads them, or an ``.npz`` file with
            their "features" (M, D). Read in the size and channels of the model's. By default half
            of the converged pictures, mixed by a fixed seed, stands in for them, and the other
            halves are measured.
        features: "effnet" (EfficientNet-Lite0, ImageNet), a function from pictures (B, C, H, W) in
            [0, 1], on the model's device, to features (B, D), or None to measure states and cost
            alone.
        fid: also measure FID, sFID, inception score, precision and recall in the official protocol,
            to the images of ``real_images``; see `flowturbo.evaluate.fidelity`.
        agreement: prompts, of those drawn, to compare for agreement; 0 for none.
        steps: intervals of the converged sampler, which takes 9 evaluations more; at least 8.
        resamples: of the bootstrap of the difference of Frechet distances; 0 for none.
        repeats: turns in which milliseconds are measured; 0 for none.
        batch: pictures drawn at a time, at least 1. It rounds, so it belongs to the conditions.
        seed: of the first picture, and of the prompts.
        cache_dir: folder that keeps what is drawn, so that an interrupted evaluation goes on where
            it stopped; evaluations of other plans on the same noises share it and draw the rest
            only once.
        progress: show bars, on a terminal.

    Returns:
        The record, which JSON can hold; all but "latency" and the machine follow from the
            arguments. Lists of two are 95 % bootstrap intervals over pictures. "conditions": model
            and its fingerprint, plan and its digest, refiner, guidance, seeds, dtype, device,
            versions, features, what was measured against. "evaluations" by kind, and "flops",
            floating point operations of a picture. "reference": evaluations of the converged
            sampler, and its own "error" to twice the steps. "trajectory": root mean square and
            median over pictures, in units of the state. "perceptual": the same of distances of
            features; "unrelated", of other pictures. "frechet": to "twins", the converged pictures
            of the same noises, all of them; of the "plan" and of "converged" to the real pictures;
            their "relative" difference. "score", "precision", "recall", "agreement": of the "plan"
            and of "converged". "official": what ``fid`` asks for, of both. "latency": milliseconds
            of 8 pictures, not compiled.

    Raises:
        ValueError: if an argument is not as said, the pictures are not finite, or ``cache_dir`` is
            in use or holds an evaluation of other noises, or another field's.
        ImportError: without the extra ``flowturbo[eval]``, or ``flowturbo[fid]`` where asked for.
        OSError: if the disk has no room; what was drawn until then stays in ``cache_dir``.

    Warns:
        UserWarning: if a file in ``cache_dir`` is damaged; what it held is drawn again.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"model of type {type(model).__name__}: must be one of flowturbo.load; give a field of "
            "your own a card: flowturbo.Model(field, {'name': ...})"
        )
    if not hasattr(model, "shape"):
        raise ValueError(
            f"model {model.name!r}: its network has no shape; give it one, (C, H, W) of its states"
        )
    checks.whole("pictures", pictures, 10, MOST)
    for name, value, least in (
        ("batch", batch, 1), ("steps", steps, 8),
        ("agreement", agreement, 0), ("resamples", resamples, 0), ("repeats", repeats, 0),
        ("seed", seed, 0),
    ):  # fmt: skip
        checks.whole(name, value, least)
    if resamples == 1:
        raise ValueError("resamples=1: must be at least 2, or 0 for no interval")
    if guidance is not None:
        guidance = checks.number("guidance", guidance)
    checks.flag("fid", fid)
    cache_dir = None if cache_dir is None else checks.path("cache_dir", cache_dir)
    real_images = None if real_images is None else checks.path("real_images", real_images)
    if features is None and real_images is not None and not fid:
        raise ValueError(
            f"features=None, real_images={str(real_images)!r}: nothing to compare them by; leave "
            "one out"
        )
    used = resolve(model, plan, guidance, refiner)
    plan, guidance, refiner = used.plan, used.guidance, used.refiner
    check_whole(plan)
    if refiner is not None:
        check_refiner(plan, refiner, guidance)
    see = EffNetFeatures(model.device) if features == "effnet" else features
    if see is not None and not callable(see):
        raise ValueError(
            f"features={checks.shown(features)}: must be 'effnet', a function, or None"
        )
    if fid:
        check_installed()
        if real_images is None:
            raise ValueError(
                "fid=True, real_images=None: FID is a distance to them; pass real_images=..., a "
                "folder or an .npz file of them"
            )
    known: dict[str, Any] = {"codec": None, "features": None}
    real, seen_as = None, None
    if see is not None or fid:
        first = _pictures(model, seed)
        if real_images is not None:
            real = load_real(real_images, first.shape[1:], need_pictures=fid)
        known["codec"] = model.codec.fingerprint
        if see is not None:
            known["features"], seen_as = _checked(see, first, real)
    cond = _condition(model, prompts, pictures, seed)
    options = {
        "model": model.fingerprint,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "pictures": pictures,
        "prompts": None if cond is None else digest(cond),
        "guidance": guidance,
        "seed": seed,
        "steps": steps,
        **known,
    }
    kept, name = options, f"plan-{plan.digest}"
    if cache_dir is not None:
        some = slice(0, 8)
        x0 = noise.draw(range(seed, seed + 8), model.shape, device=model.device)
        field = identity(model, x0, slice_condition(cond, some), guidance=guidance)
        kept = {**options, "field": field, "seen": seen_as}
        if refiner is not None:
            whose = refiner_identity(
                refiner, model, x0, slice_condition(cond, some), guidance=guidance
            )
            name = f"{name}-{whose}"
    store = ImageCache(cache_dir, kept, batch, progress)
    with nullcontext() if cache_dir is None else exclusive(cache_dir):
        run = _Run(model, guidance, see, store, seed)
        record: dict[str, Any] = {
            "conditions": {
                **options,
                **conditions(model, refiner, noise.draw([seed], model.shape, device=model.device)),
                "plan": plan.name,
                "digest": plan.digest,
                "seeds": [seed, seed + pictures - 1],
                "batch": batch,
                "against": None if real is None else real.about,
            },
            "evaluations": plan.nfe,
            **run.cost(plan, refiner, cond, repeats),
            "reference": {
                "evaluations": fine(steps).nfe["model"],
                **run.check(steps, cond, pictures),
            },
        }
        converged = run.draw("converged", fine(steps), None, cond, pictures)
        drawn = run.draw(name, plan, refiner, cond, pictures)
        both = (drawn["states"].split(batch), converged["states"].split(batch))
        far = torch.cat([error(a, b) for a, b in zip(*both, strict=True)])
        record["trajectory"] = summary(far.numpy())
        if see is not None:
            seen = (drawn["features"], converged["features"])
            record |= compare(
                *seen,
                None if real is None else run.real_features(real),
                probabilities=getattr(see, "probabilities", None),
                resamples=resamples,
                device=model.device,
                progress=progress,
            )
            gallery = run.gallery(fine(steps), cond, pictures, agreement)
            if gallery is not None:
                record["agreement"] = agreement_of(*seen, *gallery)
        if fid and real is not None and real.pictures is not None:
            to = partial(official_scores, batch=batch, device=model.device, progress=progress)
            record["official"] = {
                k: to(run.eight_bits(v["states"]), real.pictures)
                for k, v in (("plan", drawn), ("converged", converged))
            }
        return record


def _condition(model: Model, prompts: Sequence[str | int] | None, pictures: int, seed: int) -> Any:
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts!r}: pass a list of them, [{prompts!r}]")
    if prompts is not None:
        if not isinstance(prompts, (list, tuple)):
            raise ValueError(f"prompts={checks.shown(prompts)}: must be a list of them, or None")
        if not prompts:
            raise ValueError("prompts=[]: give one at least, or None to draw them from the card")
        return model.condition([prompts[i % len(prompts)] for i in range(pictures)])
    if model.conditioning and not model.names:
        raise ValueError(
            f"prompts=None: the card of model {model.name!r} lists none; pass some, or list them "
            'under "labels" or "prompts" of its "condition"'
        )
    return model.random_condition(pictures, torch.Generator().manual_seed(seed))


def _pictures(model: Model, seed: int) -> Tensor:
    """Two pictures, (2, C, H, W) in [0, 1], of noise: of the shape of all."""
    x = noise.draw([seed, seed + 1], model.shape, device=model.device)
    try:
        return model.decode(x)
    except ValueError as e:
        raise ValueError(
            f"{e}; to measure states and cost alone, pass features=None and no fid"
        ) from e


def _checked(see: Any, first: Tensor, real: Real | None) -> tuple[str, str]:
    """The name of features, and what tells them apart; what could not be compared is refused."""
    name = str(getattr(see, "name", getattr(see, "__name__", type(see).__name__)))
    rows = _seen(see, first)
    if rows.ndim != 2 or len(rows) != 2:
        raise ValueError(f"features={name}: gave {tuple(rows.shape)} of 2 pictures; must be (2, D)")
    if not rows.isfinite().all():
        raise ValueError(f"features={name}: gave features that are not finite, of noise")
    if real is not None:
        there = real.features
        if there is None and real.pictures is not None:
            there = _seen(see, real.pictures[:2].to(first.device).float() / 255)
        if there is not None and there.shape[1] != rows.shape[1]:
            raise ValueError(
                f"real_images={real.about['name']!r}: features {there.shape[1]} wide, those of "
                f"{name} are {rows.shape[1]}; make both with one network"
            )
    return name, signature(rows)


def _seen(see: Any, pictures: Tensor) -> Tensor:
    return see(pictures).float().cpu()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Run:
    """What all parts of an evaluation share."""

    model: Model
    guidance: float
    see: Any
    drawn: ImageCache
    seed: int

    def sample(self, plan: Plan, refiner: Any, cond: Any, first: int, rows: slice) -> Tensor:
        seeds = range(first + rows.start, first + rows.stop)
        x0 = noise.draw(seeds, self.model.shape, device=self.model.device)
        x1 = sample(
            plan,
            self.model,
            x0,
            slice_condition(cond, rows),
            guidance=self.guidance,
            refiner=refiner,
        )
        if not x1.isfinite().all():
            raise ValueError(
                f"the pictures are not finite: guidance={self.guidance} is too large for plan "
                f"{plan.name!r} in {self.model.dtype}; lower it"
            )
        return x1

    def draw(
        self, name: str, plan: Plan, refiner: Any, cond: Any, count: int, after: int = 0
    ) -> dict[str, Tensor]:
        """States and features of ``count`` pictures, their seeds ``after`` those of the first."""

        def make(rows: slice) -> dict[str, Tensor]:
            x1 = self.sample(plan, refiner, cond, self.seed + after, rows)
            made = {"states": x1.cpu()}
            return made if self.see is None else made | {"features": self.seen(x1)}

        return self.drawn.rows(name, count, make, 4 * int(np.prod(self.model.shape)) + 8192)

    def seen(self, x1: Tensor) -> Tensor:
        return _seen(self.see, self.model.decode(x1))

    def eight_bits(self, states: Tensor) -> Tensor:
        """Pictures of states, as files hold them."""
        parts = states.split(self.drawn.batch)
        decode = lambda x: self.model.decode(x.to(self.model.device))
        return torch.cat([(decode(x) * 255).round().byte().cpu() for x in parts])

    def cost(self, plan: Plan, refiner: Any, cond: Any, repeats: int) -> dict[str, Any]:
        """Operations of a picture, and milliseconds of ``TIMED``."""
        x0 = noise.draw(
            range(self.seed, self.seed + TIMED), self.model.shape, device=self.model.device
        )
        call = lambda n: sample(
            plan,
            self.model,
            x0[:n],
            slice_condition(cond, slice(0, n)),
            guidance=self.guidance,
            refiner=refiner,
        )
        found: dict[str, Any] = {"flops": count_operations(lambda: call(1))}
        if repeats:
            ms = interleaved(
                {"plan": lambda: call(TIMED)},
                self.model.device,
                repeats=repeats,
                progress=self.drawn.progress,
            )
            found["latency"] = {"batch": TIMED, "repeats": repeats, "ms": spread(ms["plan"])}
        return found

    def check(self, steps: int, cond: Any, count: int) -> dict[str, Any]:
        """The error of the converged sampler to one of twice the steps, on the first pictures."""
        rows = slice(0, min(CHECKED, count))
        make = lambda _: {
            str(n): self.sample(fine(n), None, cond, self.seed, rows).cpu()
            for n in (steps, 2 * steps)
        }
        found = self.drawn.rows("check", 1, make, 8 * CHECKED * int(np.prod(self.model.shape)))
        return {"error": summary(error(found[str(steps)], found[str(2 * steps)]).numpy())}

    def real_features(self, real: Real) -> Tensor | None:
        """Features of real pictures, kept like those of drawn ones."""
        pictures = real.pictures
        if real.features is not None or pictures is None:
            return real.features
        shown = lambda rows: pictures[rows].to(self.model.device).float() / 255
        make = lambda rows: {"features": _seen(self.see, shown(rows))}
        return self.drawn.rows(f"real-{real.about['digest']}", len(pictures), make, 8192)[
            "features"
        ]

    def gallery(
        self, plan: Plan, cond: Any, count: int, most: int
    ) -> tuple[np.ndarray[Any, Any], Tensor] | None:
        """For each picture, its place among the chosen prompts or -1, (N,); their features."""
        if not isinstance(cond, Tensor) or not most:
            return None
        _, first, which = np.unique(
            cond.cpu().double().numpy(), axis=0, return_index=True, return_inverse=True
        )
        chosen = np.argsort(first)[:most]  # the first to be drawn
        if len(chosen) < 2:
            return None
        place = np.full(len(first), -1)
        place[chosen] = np.arange(len(chosen))
        rows = torch.from_numpy(first[chosen]).repeat_interleave(GALLERY)
        made = self.draw(f"gallery-{most}", plan, None, cond[rows], len(rows), after=count)
        return place[which.reshape(-1)], made["features"].unflatten(0, (-1, GALLERY)).mean(1)
