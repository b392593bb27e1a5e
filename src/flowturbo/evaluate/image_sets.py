"""The sets of images that an evaluation compares, generated and seen through one cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowturbo import noise
from flowturbo.evaluate.config import EvaluateConfig
from flowturbo.evaluate.features import Features, features_of
from flowturbo.evaluate.image_cache import ImageCache
from flowturbo.evaluate.real import Real
from flowturbo.models.model import Model
from flowturbo.plan import Plan
from flowturbo.progress import Report
from flowturbo.refiner.binding import Refiner
from flowturbo.sampling import sample
from flowturbo.stats import Array, summary
from flowturbo.stores import Chunk
from flowturbo.timing import count_operations, interleaved, spread
from flowturbo.tree import slice_condition
from flowturbo.tuning.reference import error, fine
from flowturbo.types import Condition, JsonObject

__all__ = ["ImageSets"]

PER_PROMPT = 4  # reference images of each prompt, for agreement
CHECKED = 16  # images on which the reference solution is compared with a finer one
TIMED = 8  # images of a timed batch


@dataclass(frozen=True)
class ImageSets:
    """Everything that the images of one evaluation share.

    Attributes:
        model: generates the images.
        guidance: scale.
        cond: conditions of the images, one a row.
        network: computes features; None for states alone.
        cache: keeps what was computed.
        config: numbers of images, seeds, batch.
        report: called with progress.
    """

    model: Model
    guidance: float
    cond: Condition
    network: Features | None
    cache: ImageCache
    config: EvaluateConfig
    report: Report | None

    def generate(
        self,
        name: str,
        plan: Plan,
        refiner: Refiner | None,
        what: str,
        *,
        cond: Condition = None,
        count: int | None = None,
        after: int = 0,
    ) -> Chunk:
        """States and features of the images, or of ``count`` others with seeds ``after`` theirs."""
        cond = self.cond if count is None else cond

        def make(rows: slice) -> Chunk:
            x1 = self._sample(plan, refiner, cond, self.config.seed + after, rows)
            made = {"states": x1.cpu()}
            if self.network is None:
                return made
            return made | {"features": features_of(self.network, self.model.decode(x1))}

        size = 4 * int(np.prod(self.model.shape)) + 8192
        return self.cache.rows(name, count or self.config.num_images, make, size, what)

    def to_uint8(self, states: Tensor) -> Tensor:
        """The images of states, as files hold them."""
        decode = lambda x: self.model.decode(x.to(self.model.device))
        parts = states.split(self.config.batch)
        return torch.cat([(decode(x) * 255).round().byte().cpu() for x in parts])

    def cost(self, plan: Plan, refiner: Refiner | None) -> JsonObject:
        """Operations of an image, and milliseconds of a batch of ``TIMED``."""
        seeds = range(self.config.seed, self.config.seed + TIMED)
        x0 = noise.draw(seeds, self.model.shape, device=self.model.device)
        call = lambda n: sample(
            plan, self.model, x0[:n], slice_condition(self.cond, slice(0, n)),
            guidance=self.guidance, refiner=refiner,
        )  # fmt: skip
        found: JsonObject = {"flops": count_operations(lambda: call(1))}
        if repeats := self.config.repeats:
            calls = {"plan": lambda: call(TIMED)}
            ms = interleaved(calls, self.model.device, repeats=repeats, report=self.report)
            found["latency"] = {"batch": TIMED, "repeats": repeats, "ms": spread(ms["plan"])}
        return found

    def reference_error(self) -> JsonObject:
        """The error of the reference solution to one of twice the steps, on the first images."""
        steps, rows = self.config.steps, slice(0, min(CHECKED, self.config.num_images))
        make = lambda _: {
            str(n): self._sample(fine(n), None, self.cond, self.config.seed, rows).cpu()
            for n in (steps, 2 * steps)
        }
        size = 8 * CHECKED * int(np.prod(self.model.shape))
        found = self.cache.rows("check", 1, make, size, "reference check")
        return summary(error(found[str(steps)], found[str(2 * steps)]).numpy())

    def real_features(self, real: Real) -> Tensor | None:
        """Features of real images, kept like those of generated ones."""
        images, network = real.images, self.network
        if real.features is not None or images is None or network is None:
            return real.features
        shown = lambda rows: images[rows].to(self.model.device).float() / 255
        make = lambda rows: {"features": features_of(network, shown(rows))}
        name = f"real-{real.about['digest']}"
        return self.cache.rows(name, len(images), make, 8192, "real images")["features"]

    def prompt_features(self, plan: Plan, most: int) -> tuple[Array, Tensor] | None:
        """For each image the index of its prompt or -1, (N,); mean features of ``most`` prompts."""
        if not isinstance(self.cond, Tensor) or not most:
            return None
        rows = self.cond.cpu().double().numpy()
        _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        chosen = np.argsort(first)[:most]  # the first to occur
        if len(chosen) < 2:
            return None
        place = np.full(len(first), -1)
        place[chosen] = np.arange(len(chosen))
        cond = self.cond[torch.from_numpy(first[chosen]).repeat_interleave(PER_PROMPT)]
        made = self.generate(
            f"gallery-{most}", plan, None, "images of prompts",
            cond=cond, count=len(cond), after=self.config.num_images,
        )  # fmt: skip
        return place[which.reshape(-1)], made["features"].unflatten(0, (-1, PER_PROMPT)).mean(1)

    def _sample(
        self, plan: Plan, refiner: Refiner | None, cond: Condition, first: int, rows: slice
    ) -> Tensor:
        """Final states of the noise samples of seeds ``first`` + ``rows``."""
        seeds = range(first + rows.start, first + rows.stop)
        x0 = noise.draw(seeds, self.model.shape, device=self.model.device)
        cond = slice_condition(cond, rows)
        x1 = sample(plan, self.model, x0, cond, guidance=self.guidance, refiner=refiner)
        if not x1.isfinite().all():
            raise ValueError(
                f"the images are not finite: guidance={self.guidance} is too large for plan "
                f"{plan.name!r} in {self.model.dtype}; lower it"
            )
        return x1
