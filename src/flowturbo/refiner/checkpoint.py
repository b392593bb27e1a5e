"""Refiners on disk: ``refiner.safetensors`` and ``refiner.json`` in the folder of the model.

The same rules hold as for models: half precision, whole files or none, no pickles.
"""

from __future__ import annotations

from pathlib import Path

import torch

from flowturbo import checks
from flowturbo.field import Field, device_of
from flowturbo.models.checkpoint import FORMAT, read_card, save_pair
from flowturbo.models.sit import SiT, SiTConfig
from flowturbo.models.weights import check_fit, fill, read_header, read_weights
from flowturbo.models.zoo import find
from flowturbo.refiner.conv import SmallNetwork
from flowturbo.refiner.history import VelocityRefiner
from flowturbo.refiner.paper import PaperRefiner
from flowturbo.types import JsonObject

__all__ = ["REFINER_CARD", "REFINER_WEIGHTS", "load_refiner", "save_refiner"]

REFINER_CARD, REFINER_WEIGHTS = "refiner.json", "refiner.safetensors"


def save_refiner(
    folder: str | Path,
    refiner: PaperRefiner | VelocityRefiner,
    model: Field | None = None,
    *,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a refiner and its card to ``folder``; each file is written whole or left untouched.

    Args:
        folder: where to write.
        refiner: what to write; its ``card`` (training recipe, measured errors) goes with it.
        model: what it was made for; the card gets its name and fingerprint if it has them.
        dtype: of the weights written.

    Raises:
        ValueError: if a weight is not finite, or not in ``dtype``, or if ``load_refiner`` would
            refuse the card.
        OSError: if the folder cannot be written.
    """
    folder, config = Path(folder), refiner.network.config
    card = {
        "format": FORMAT,
        **refiner.card,
        "architecture": refiner.kind,
        "config": config.to_dict() if isinstance(config, SiTConfig) else config,
    }
    if isinstance(refiner, VelocityRefiner):
        card["guidance"] = list(refiner.guidance_range)
    if model is not None and (made_for := getattr(model, "fingerprint", None)) is not None:
        card["model"] = {"name": getattr(model, "name", None), "fingerprint": made_for}
    _check(card, f"card of {folder}", "correct it")
    save_pair(folder / REFINER_WEIGHTS, folder / REFINER_CARD, refiner.network, card, dtype=dtype)


@checks.known_keywords
def load_refiner(
    name: str | Path,
    model: Field | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> PaperRefiner | VelocityRefiner:
    """The refiner of a model, for inference.

    Args:
        name: as for ``load``: a bundled name, a folder, or "hf:owner/repo".
        model: if given, the refiner must have been made for it.
        device: where to put it; by default where ``model`` is, else on the CPU.
        dtype: of the weights.

    Raises:
        ValueError: if there is none, its files are damaged, or it was made for another model.
    """
    if device is not None:
        device = checks.device("device", device)
    dtype = checks.dtype("dtype", dtype)
    if model is not None:
        checks.function("model", model, "x, t, cond")
    from flowturbo.models.card import RefinerCard

    folder = find(name, "refiner")
    card = read_card(folder, REFINER_CARD, REFINER_WEIGHTS, RefinerCard)
    made_for = card.get("model", {})
    here = getattr(model, "fingerprint", None)  # of a wrapped model too
    if here and made_for.get("fingerprint") != here:
        raise ValueError(
            f"{folder / REFINER_CARD}: made for {made_for.get('name')!r}, weights "
            f"{made_for.get('fingerprint')}, not for {getattr(model, 'name', None)!r}, {here}; "
            "train one for it"
        )
    config, weights = _check(card, str(folder / REFINER_CARD)), folder / REFINER_WEIGHTS
    header = read_header(weights, card["config"].get("depth", 0))
    with torch.device("meta"):
        refiner = _built(card, config)
    check_fit(refiner.network, header, str(weights))
    fill(refiner.network, read_weights(weights), str(weights), dtype)
    if device is None:
        device = "cpu" if model is None else device_of(model)
    return refiner.to(device).eval().requires_grad_(False)


def _check(card: JsonObject, where: str, fix: str = "restore the file") -> SiTConfig | None:
    """The config of a card, checked; None of a small network."""
    from flowturbo.models.card import RefinerCard, SmallConfig
    from flowturbo.schema import check

    check(card, RefinerCard, where, fix)
    if card["architecture"] == "conv":
        check(card["config"], SmallConfig, f"{where}: config", fix)
        return None
    try:
        return SiTConfig.from_dict(card["config"])
    except ValueError as e:
        raise ValueError(f"{where}: config: {e}; {fix}") from e


def _built(card: JsonObject, config: SiTConfig | None) -> PaperRefiner | VelocityRefiner:
    if config is None:
        return VelocityRefiner(SmallNetwork(**card["config"]), card["guidance"], card)
    if card["architecture"] == "paper":
        return PaperRefiner(SiT(config, images=2), card)
    return VelocityRefiner(SiT(config, images=3, numbers=3), card["guidance"], card)
