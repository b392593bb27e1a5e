"""The sets of images that an evaluation compares, with their features, in one cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowturbo.evaluate.config import EvaluateConfig
from flowturbo.evaluate.features import Features, features_of
from flowturbo.evaluate.image_cache import ImageCache
from flowturbo.evaluate.inputs import Inputs
from flowturbo.evaluate.real import Real
from flowturbo.field import Field
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
        model: generates the images; a field without a card has only states.
        guidance: scale.
        inputs: noise samples and conditions.
        network: computes features; None for states only.
        cache: keeps what was computed.
        config: numbers of images, seeds, batch.
        report: called with progress.
    """

    model: Field
    guidance: float
    inputs: Inputs
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
    ) -> Chunk:
        """States and features of the images."""
        make = lambda rows: self._seen(self._sample(plan, refiner, rows))
        return self.cache.rows(name, self.inputs.count, make, self._row_bytes, what)

    def to_uint8(self, states: Tensor) -> Tensor:
        """The images of states, rounded as in files."""
        decode = lambda x: self._decode(x.to(self.inputs.device))
        parts = states.split(self.config.batch)
        return torch.cat([(decode(x) * 255).round().byte().cpu() for x in parts])

    def cost(self, plan: Plan, refiner: Refiner | None) -> JsonObject:
        """Operations per image, and milliseconds for a batch of ``TIMED``."""
        x0, cond = self.inputs.states(slice(0, TIMED)), self.inputs.conditions(slice(0, TIMED))
        call = lambda n: sample(
            plan, self.model, x0[:n], slice_condition(cond, slice(0, n)),
            guidance=self.guidance, refiner=refiner,
        )  # fmt: skip
        found: JsonObject = {"flops": count_operations(lambda: call(1))}
        if repeats := self.config.repeats:
            calls = {"plan": lambda: call(TIMED)}
            ms = interleaved(calls, self.inputs.device, repeats=repeats, report=self.report)
            found["latency"] = {"batch": TIMED, "repeats": repeats, "ms": spread(ms["plan"])}
        return found

    def reference_error(self) -> JsonObject:
        """The error of the reference solution to one of twice the steps, on the first images."""
        steps, rows = self.config.steps, slice(0, min(CHECKED, self.inputs.count))
        make = lambda _: {
            str(n): self._sample(fine(n), None, rows).cpu() for n in (steps, 2 * steps)
        }
        size = 8 * CHECKED * int(np.prod(self.inputs.shape))
        found = self.cache.rows("check", 1, make, size, "reference check")
        return summary(error(found[str(steps)], found[str(2 * steps)]).numpy())

    def real_features(self, real: Real) -> Tensor | None:
        """Features of real images, kept like those of generated ones."""
        images, network = real.images, self.network
        if real.features is not None or images is None or network is None:
            return real.features
        shown = lambda rows: images[rows].to(self.inputs.device).float() / 255
        make = lambda rows: {"features": features_of(network, shown(rows))}
        name = f"real-{real.about['digest']}"
        return self.cache.rows(name, len(images), make, 8192, "real images")["features"]

    def prompt_features(self, plan: Plan, most: int) -> tuple[Array, Tensor] | None:
        """For each image the index of its prompt or -1, (N,); mean features of ``most`` prompts."""
        given = self.inputs.cond
        if not isinstance(given, Tensor) or not most:
            return None
        rows = given.cpu().double().numpy()
        _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        chosen = np.argsort(first)[:most]  # the first to occur
        if len(chosen) < 2:
            return None
        place = np.full(len(first), -1)
        place[chosen] = np.arange(len(chosen))
        cond = given[torch.from_numpy(first[chosen]).repeat_interleave(PER_PROMPT)]
        after = self.inputs.count

        def make(rows: slice) -> Chunk:
            x0 = self.inputs.others(slice(after + rows.start, after + rows.stop))
            return self._seen(self._run(plan, None, x0, cond[rows]))

        name = f"gallery-{most}"
        made = self.cache.rows(name, len(cond), make, self._row_bytes, "images of prompts")
        return place[which.reshape(-1)], made["features"].unflatten(0, (-1, PER_PROMPT)).mean(1)

    @property
    def _row_bytes(self) -> int:
        return 4 * int(np.prod(self.inputs.shape)) + 8192

    def _decode(self, x: Tensor) -> Tensor:
        assert isinstance(self.model, Model)
        return self.model.decode(x)

    def _seen(self, x1: Tensor) -> Chunk:
        """States, and the features of their images."""
        made = {"states": x1.cpu()}
        if self.network is None:
            return made
        return made | {"features": features_of(self.network, self._decode(x1))}

    def _sample(self, plan: Plan, refiner: Refiner | None, rows: slice) -> Tensor:
        """Final states of the images ``rows``."""
        return self._run(plan, refiner, self.inputs.states(rows), self.inputs.conditions(rows))

    def _run(self, plan: Plan, refiner: Refiner | None, x0: Tensor, cond: Condition) -> Tensor:
        x1 = sample(plan, self.model, x0, cond, guidance=self.guidance, refiner=refiner)
        if not x1.isfinite().all():
            dtype = getattr(self.model, "dtype", x1.dtype)
            raise ValueError(
                f"the images are not finite: plan {plan.name!r} diverges at guidance="
                f"{self.guidance} in {dtype}; lower the guidance, or take more evaluations"
            )
        return x1
