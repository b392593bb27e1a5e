r"""The training of the paper's refiner (Zhao et al. 2024, arXiv 2409.18128, section 3.2), on data.

With ``x_t`` between noise and an image, ``dt`` uniform in (0, 0.12] and
``x' = x_t + dt*v(x_t, t, c)``, the loss is the mean square of

.. math:: r(x', v(x_t, t, c), t + dt, c') + v(x_t, t, c) - v(x', t + dt, c'),

where ``c'`` is ``c``, or the null condition with probability 0.1. The teacher is called twice a
step. Here ``t`` is uniform in [0, 1 - dt], so that the model is never asked past the data, and each
image has a ``dt`` of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.checks import number, shown, whole
from flowturbo.models.model import Model
from flowturbo.path import interpolate
from flowturbo.provenance import identity
from flowturbo.refiner.checkpoint import load_refiner, save_refiner
from flowturbo.refiner.paper import PaperRefiner
from flowturbo.training.data import Data
from flowturbo.training.loop import TrainConfig, check_data, identified, run
from flowturbo.training.objectives import drop_condition
from flowturbo.training.processes import Processes

__all__ = ["paper_config", "train_paper_refiner"]

LARGEST = 0.12  # dt of the paper


def paper_config(**changes: Any) -> TrainConfig:
    """How the paper trains, but for ``changes``: AdamW at 5e-5, batches of 18, 30,000 steps."""
    made = dict(steps=30_000, batch=18, lr=5e-5, warmup=0, schedule="constant", weight_decay=0.0)
    rest = dict(ema=0.9999, clip=1e9, dropout=0.1, bf16=False, compile=False, preview_every=0)
    return TrainConfig(**{**made, **rest, **changes})


@checks.known_keywords
def train_paper_refiner(
    model: Model,
    data: Data,
    folder: str | Path,
    config: TrainConfig | None = None,
    *,
    block: int = -1,
    depth: int = 1,
    width: int | None = None,
    dt: float = LARGEST,
    report: Callable[[int, float], None] | None = None,
) -> PaperRefiner:
    """Train a `PaperRefiner` for ``model`` on ``data``, resuming what is in ``folder``.

    Args:
        model: the teacher, a SiT.
        data: what it was trained on, with its labels or its tokenizer.
        folder: gets ``refiner.safetensors`` and ``refiner.json``, the state of the run is in
            ``refiner-run``; it may be the model's.
        config: how; `paper_config` by default.
        block: of the SiT to start from, by default the last.
        depth: blocks of the refiner.
        width: of the refiner, by default the model's.
        dt: the largest step between the two times, above 0 and at most 1.
        report: called with (step, loss) at each line of the log.

    Raises:
        ValueError: if the data are not for the model, ``folder`` is in use or holds another run,
            or a number is out of range.
        OSError: if the disk is full; the last whole checkpoint stays.
        ImportError: if accelerate is missing: ``pip install 'flowturbo[train]'``.
    """
    config = paper_config() if config is None else config
    if not isinstance(config, TrainConfig):
        raise ValueError(f"config={shown(config)}: must be a TrainConfig; paper_config() makes one")
    if not isinstance(model, Model):
        raise ValueError(f"model={shown(model)}: must be a model of flowturbo.load")
    if report is not None:
        checks.function("report", report, "step, loss")
    dt = number("dt", dt, above=0, most=1)
    out = checks.path("folder", folder)
    block, depth = whole("block", block), whole("depth", depth, 1)
    width = None if width is None else whole("width", width, 1)
    check_data(data)
    if tuple(data.shape) != tuple(model.shape):
        raise ValueError(f"the model draws {model.shape}, the data are {tuple(data.shape)}")
    if not _same(data.condition, model.card.get("condition")):
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
        "training": asdict(config),
        "field": {"identity": identity(model, x, cond)},
        "data": identified(data),
    }
    processes, folder = Processes(), out / "refiner-run"
    with processes.exclusive(folder):
        run(objective, folder, config, made, processes, report)
    return load_refiner(out, device=model.device)  # type: ignore[return-value]


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

    def loss(self, forward: Any, generator: torch.Generator, device: torch.device) -> Tensor:
        n, home = self.config.batch, self.model.device
        x1, cond = self.data.batch(n, generator)
        x0, u = torch.randn(x1.shape, generator=generator), torch.rand(2, n, generator=generator)
        dt = self.largest * (1 - u[0])
        t = u[1] * (1 - dt)
        kept = cond
        if cond is not None:
            null = self.model.null_condition(cond)
            kept = drop_condition(cond, null, self.config.dropout, generator).to(home)
            cond = cond.to(home)
        x, t, dt = interpolate(x0, x1, t).to(home), t.to(home), dt.to(home)
        with torch.no_grad():
            v = self.model(x, t, cond)
            x = x + dt.reshape(-1, 1, 1, 1) * v
            wanted = self.model(x, t + dt, kept).to(device)
        t, v = t.to(device), v.to(device)
        kept = None if kept is None else kept.to(device)
        new = forward(x.to(device), t + dt.to(device), kept, [(t, v)])
        return (new - wanted).square().mean()

    def export(self, network: Any, training: dict[str, Any]) -> None:
        network.card = {"training": {**training, "dt": self.largest}}
        save_refiner(self.out, network, self.model)

    def preview(self, network: Any, step: int) -> None:
        pass


def _same(data: dict[str, Any] | None, model: dict[str, Any] | None) -> bool:
    """Whether conditions of the data mean the same to the model; its last labels may be unused."""
    if not data or not model or data["kind"] != model["kind"]:
        return not data and not model
    if data["kind"] == "class":
        return [*map(str, model["labels"])][: len(data["labels"])] == [*map(str, data["labels"])]
    return all(data["tokenizer"][k] == model["tokenizer"][k] for k in ("vocabulary", "length"))
