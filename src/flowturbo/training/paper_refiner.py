r"""The training of the paper's refiner (Zhao et al. 2024, arXiv 2409.18128, section 3.2), on data.

With ``x_t`` between noise and an image, ``dt`` uniform in (0, 0.12] and
``x' = x_t + dt*v(x_t, t, c)``, the loss is the mean square of

.. math:: r(x', v(x_t, t, c), t + dt, c') + v(x_t, t, c) - v(x', t + dt, c'),

where ``c'`` is ``c``, or the null condition with probability 0.1. The teacher is called twice per
step. Here ``t`` is uniform in [0, 1 - dt], so that the model is never evaluated past the data, and
each image has its own ``dt``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.checks import known_keywords, number, shown, whole
from flowturbo.config import configured
from flowturbo.models.conditioning import conditioning_of
from flowturbo.models.model import Model
from flowturbo.path import interpolate
from flowturbo.progress import Report
from flowturbo.provenance import identity
from flowturbo.refiner.checkpoint import load_refiner, save_refiner
from flowturbo.refiner.paper import PaperRefiner
from flowturbo.training.config import TrainConfig
from flowturbo.training.dataset import Data, check_data, identified
from flowturbo.training.loop import run
from flowturbo.training.objectives import drop_condition
from flowturbo.training.processes import Processes, Tracker
from flowturbo.types import JsonObject

__all__ = ["PaperRefinerConfig", "train_paper_refiner"]

LARGEST = 0.12  # dt of the paper


@known_keywords
@dataclass(frozen=True, kw_only=True)
class PaperRefinerConfig(TrainConfig):
    """A `TrainConfig` with the paper's settings: AdamW at 5e-5, batches of 18, 30,000 steps."""

    steps: int = 30_000
    batch: int = 18
    lr: float = 5e-5
    warmup: int = 0
    schedule: Literal["constant", "cosine", "trapezoid"] = "constant"
    weight_decay: float = 0.0
    ema: float = 0.9999
    clip: float = 1e9
    bf16: bool = False
    compile: bool = False
    preview_every: int = 0


@configured(PaperRefinerConfig)
def train_paper_refiner(
    model: Model,
    data: Data,
    folder: str | Path,
    config: PaperRefinerConfig,
    *,
    block: int = -1,
    depth: int = 1,
    width: int | None = None,
    dt: float = LARGEST,
    trackers: Sequence[Tracker] = (),
    report: Report | None = None,
) -> PaperRefiner:
    """Train a `PaperRefiner` for ``model`` on ``data``, resuming what is in ``folder``.

    The fields of `PaperRefinerConfig` are keywords too.

    Args:
        model: the teacher, a SiT.
        data: what it was trained on, with its labels or its tokenizer.
        folder: where ``refiner.safetensors`` and ``refiner.json`` are written, with the state of
            the run in ``refiner-run``; may be the model's folder.
        config: how to train.
        block: index of the SiT block to start from, by default the last.
        depth: number of blocks of the refiner.
        width: width of the refiner, by default the model's.
        dt: the largest step between the two times, above 0 and at most 1.
        trackers: as in `flowturbo.training.train`.
        report: as in `flowturbo.training.train`.

    Raises:
        ValueError: if the data are not for the model, ``folder`` is in use or holds another run,
            or a number is out of range.
        OSError: if the disk is full; the last intact checkpoint is kept.
        ImportError: if accelerate is missing: ``pip install 'flowturbo[train]'``.
    """
    if not isinstance(model, Model):
        raise ValueError(f"model={shown(model)}: must be a model of flowturbo.load")
    if report is not None:
        checks.function("report", report, "progress")
    dt = number("dt", dt, above=0, most=1)
    out = checks.path("folder", folder)
    block, depth = whole("block", block), whole("depth", depth, 1)
    width = None if width is None else whole("width", width, 1)
    check_data(data)
    if tuple(data.shape) != tuple(model.shape):
        raise ValueError(f"the model generates {model.shape}, the data are {tuple(data.shape)}")
    theirs, mine = conditioning_of(data.condition), model.conditioning
    if not (mine.covers(theirs) if mine and theirs else mine is theirs):
        raise ValueError(
            f"the data have other labels or another tokenizer than model {model.name!r}; load them "
            "with the model's"
        )
    torch.manual_seed(config.seed)
    network = PaperRefiner.from_model(model, block=block, depth=depth, width=width)
    objective = _Paper(network, model, data, config, out, dt)
    shape = {"block": block, "depth": depth, "width": width, "dt": dt}
    x, cond = noise.draw(range(8), model.shape, device=model.device), data.examples(8)
    cond = None if cond is None else cond.to(model.device)
    made = {
        "refiner": {"kind": "paper", **shape, "model": model.fingerprint},
        "training": config.to_dict(),
        "field": {"identity": identity(model, x, cond)},
        "data": identified(data),
    }
    processes, folder = Processes(trackers, out), out / "refiner-run"
    with processes.exclusive(folder), processes.tracking(config.to_dict()):
        run(objective, folder, config, made, processes, report)
    return cast(PaperRefiner, load_refiner(out, device=model.device))


class _Paper:
    def __init__(
        self,
        network: PaperRefiner,
        model: Model,
        data: Data,
        config: TrainConfig,
        out: Path,
        largest: float = LARGEST,
    ) -> None:
        self.network, self.model, self.data = network, model, data
        self.config, self.out, self.largest = config, out, largest

    def draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """States at ``t``, ``t``, ``dt``, conditions, and the same with some of them dropped."""
        x1, cond = self.data.batch(n, generator)
        x0, u = torch.randn(x1.shape, generator=generator), torch.rand(2, n, generator=generator)
        dt = self.largest * (1 - u[0])
        t = u[1] * (1 - dt)
        kept = cond
        if cond is not None:
            null = self.model.null_condition(cond)
            kept = drop_condition(cond, null, self.config.dropout, generator)
        return interpolate(x0, x1, t), t, dt, cond, kept

    def loss(
        self,
        forward: Callable[..., Tensor],
        batch: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
        device: torch.device,
    ) -> Tensor:
        home = self.model.device
        x, t, dt = (a.to(home) for a in batch[:3])
        cond, kept = (None if c is None else c.to(home) for c in batch[3:])
        with torch.no_grad():
            v = self.model(x, t, cond)
            x = x + dt.reshape(-1, 1, 1, 1) * v
            target = self.model(x, t + dt, kept).to(device)
        x, t, dt, v = (a.to(device) for a in (x, t, dt, v))
        kept = None if kept is None else kept.to(device)
        return (forward(x, t + dt, kept, [(t, v)]) - target).square().mean()

    def export(self, network: PaperRefiner, training: JsonObject) -> None:
        network.card = {"training": {**training, "dt": self.largest}}
        save_refiner(self.out, network, self.model)

    def preview(self, network: PaperRefiner, step: int) -> None:
        pass
