"""Training of a flow model: flow matching on data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowturbo import checks, noise
from flowturbo.checks import shown
from flowturbo.config import configured
from flowturbo.images import image_grid, save_png, to_pil
from flowturbo.models.checkpoint import save_folder
from flowturbo.models.codec import Codec, Pixels
from flowturbo.models.conditioning import conditioning_of, misfits
from flowturbo.models.model import Model
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.plan import Plan
from flowturbo.progress import Report
from flowturbo.sampling import sample
from flowturbo.training.config import TrainConfig
from flowturbo.training.dataset import Data, check_data, identified
from flowturbo.training.devices import to_device
from flowturbo.training.loop import run
from flowturbo.training.objectives import draw_times, drop_condition, flow_loss, noise_loss
from flowturbo.training.processes import Processes, Tracker
from flowturbo.types import JsonObject

__all__ = ["FlowMatching", "train"]


@configured(TrainConfig)
def train(
    architecture: SiTConfig,
    data: Data,
    out: str | Path,
    config: TrainConfig,
    *,
    card: JsonObject | None = None,
    trackers: Sequence[Tracker] = (),
    report: Report | None = None,
) -> Path:
    """Train a SiT on ``data`` into the folder ``out``, resuming what is there.

    The fields of `TrainConfig` are keywords too: ``train(network, data, "run", steps=20_000)``.

    ``out`` gets the exported model (``card.json``, ``model.safetensors``: the averaged weights in
    half precision), ``config.json``, ``log.jsonl`` (a line at least every 50 steps), ``loss.png``,
    ``previews/`` and ``checkpoints/`` (the last two).

    Args:
        architecture: configuration of the network; must fit ``data``.
        data: what to train on: pixels in [-1, 1], or states of its ``codec``, if it has one, as
            `flowturbo.training.LatentData`; the card then names that.
        out: output folder.
        config: how to train.
        card: entries for the model's card: name, licences, defaults.
        trackers: experiment trackers of accelerate, by name ("tensorboard", "wandb") or as
            ``accelerate.tracking.GeneralTracker``; they get the loss, the learning rate and the
            speed at each line of the log.
        report: called with a `Progress` about every second and at each line of the log: the loss,
            images per second, share of the device's peak (MFU) and seconds left.

    Returns:
        ``out``.

    Raises:
        ValueError: if the data do not fit, ``out`` is in use, holds a run of another configuration
            or of other data, or no intact checkpoint, or the loss is not finite.
        OSError: if the disk is full; the last intact checkpoint is kept.
        ImportError: if accelerate is missing: ``pip install 'flowturbo[train]'``.

    Warns:
        UserWarning: if a checkpoint is damaged, and the one before it is used.
    """
    if not isinstance(architecture, SiTConfig):
        raise ValueError(f"architecture={shown(architecture)}: must be a SiTConfig")
    out, card = checks.path("out", out), {} if card is None else _checked_card(card)
    if report is not None:
        checks.function("report", report, "progress")
    check_data(data)
    objective = FlowMatching(architecture, data, out, config, card)
    made = {
        "architecture": architecture.to_dict(),
        "training": config.to_dict(),
        "data": identified(data),
    }
    processes = Processes(trackers, out)
    with processes.exclusive(out), processes.tracking(config.to_dict()):
        run(objective, out, config, made, processes, report)
    return out


class FlowMatching:
    """Flow matching of a SiT on data; a SiT that predicts the noise is trained on the noise."""

    def __init__(
        self,
        architecture: SiTConfig,
        data: Data,
        out: Path,
        config: TrainConfig,
        card: JsonObject,
    ) -> None:
        self.data, self.out, self.config = data, out, config
        condition = {"condition": data.condition} if data.condition else {}
        self.codec: Codec = getattr(data, "codec", None) or Pixels()
        self.card = {"path": "linear", "codec": self.codec.entry, **condition, **card}
        torch.manual_seed(config.seed)
        self.network = SiT(architecture)
        if self.network.shape != data.shape:
            raise ValueError(
                f"the network generates {self.network.shape}, the data are {data.shape}"
            )
        _check_condition(architecture, data.condition)

    def draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Noise, images, times, and conditions, some of them dropped."""
        x1, cond = self.data.batch(n, generator)
        x0 = torch.randn(x1.shape, generator=generator)
        t = draw_times(len(x1), self.config.times, generator)
        if cond is not None:
            null = self.network.null_condition(cond)
            cond = drop_condition(cond, null, self.config.dropout, generator)
        return x0, x1, t, cond

    def loss(
        self,
        forward: Callable[..., Tensor],
        batch: tuple[Tensor, Tensor, Tensor, Tensor | None],
        device: torch.device,
    ) -> Tensor:
        """The loss of what `draw` returned."""
        x0, x1, t = (to_device(a, device) for a in batch[:3])
        cond = None if batch[3] is None else to_device(batch[3], device)
        loss = noise_loss if self.network.config.prediction == "noise" else flow_loss
        return loss(forward, x0, x1, t, cond)

    def export(self, network: SiT, training: JsonObject) -> None:
        """Write the model."""
        self.codec.save(self.out)
        save_folder(self.out, network, {**self.card, "training": training})

    @torch.no_grad()
    def preview(self, network: SiT, step: int) -> None:
        """A grid of 40 images, from the same seeds each time."""
        model = Model(network, self.card, codec=self.codec)
        x0 = noise.draw(range(40), model.shape, device=model.device)
        cond = self.data.examples(40)
        guidance = 1.0 if cond is None else 2.0
        cond = None if cond is None else cond.to(x0.device)
        x1 = sample(Plan.parse("AB2:12", shift=1.6), model, x0, cond, guidance=guidance)
        images = model.decode(x1)
        grid = image_grid(to_pil(images), 10, scale=2 if images.shape[2] <= 64 else 1)
        meta = {"step": str(step), "guidance": str(guidance)}
        save_png(grid, self.out / "previews" / f"step-{step:08d}.png", meta)


def _checked_card(card: object) -> JsonObject:
    """``card``, which must be representable as a JSON object."""
    try:
        json.dumps(card, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise ValueError(f"card={shown(card)}: must be what JSON can hold ({e})") from None
    if not isinstance(card, dict):
        raise ValueError(f"card={shown(card)}: must be a dictionary")
    return card


def _check_condition(architecture: SiTConfig, condition: JsonObject | None) -> None:
    """Refuse data whose labels or tokens the network has no embeddings for."""
    about = conditioning_of(condition)
    for name, value in (misfits(about, architecture) if about else {}).items():
        raise ValueError(
            f"the network has {name}={getattr(architecture, name)}, the data need {value}; pass "
            f"SiTConfig({name}={value})"
        )
