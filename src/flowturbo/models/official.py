"""Third-party checkpoints with the official names of SiT.

A pickle is loaded with ``weights_only=True``, so it cannot run code; in addition to tensors it may
contain the ``argparse.Namespace`` of the official trainer. From a training checkpoint, the weights
under "ema", else "model" or "state_dict", are used. The prefixes ``module.`` and ``_orig_mod.``,
which ``DistributedDataParallel`` and ``torch.compile`` put before names, are removed.
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flowturbo.files import open_regular
from flowturbo.models.sit_config import SIZES, SiTConfig

__all__ = ["fix", "plain", "unpickled"]

_CONTAINERS = ("ema", "model", "state_dict")
_PREFIXES = ("module", "_orig_mod")
_MOST_PICKLE = 16 * 2**20  # bytes other than tensors; those of a SiT-XL have 0.1 MB


def unpickled(source: Path) -> object:
    """What ``torch.save`` wrote to ``source``, if it is tensors, plain values and namespaces.

    Raises:
        ValueError: if it contains anything else, is damaged, or is larger unpacked than packed.
    """
    from flowturbo.schema import open_archive

    if zipfile.is_zipfile(source):
        with open_archive(source) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl") and entry.file_size > _MOST_PICKLE:
                    raise ValueError(f"{entry.filename} has over {_MOST_PICKLE} bytes; not read")
    try:
        allowed = torch.serialization.safe_globals([argparse.Namespace])
        with allowed, open_regular(source) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a damaged file makes of the unpickler
        other = re.search(r"(?:GLOBAL|global:?|class:?) `?([\w.]+\.[\w.]+)", str(e))
        reason = f"it holds a {other[1]}" if other else "it is damaged or another format"
        raise ValueError(
            f"{source}: not a checkpoint of plain tensors ({reason}); save its state_dict alone"
        ) from e


def plain(found: object, source: Path) -> dict[str, Tensor]:
    """The tensors in a checkpoint by their plain names.

    Raises:
        ValueError: if it contains anything else there, or two tensors with the same plain name.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{source}: holds a {type(found).__name__}, not a dict of tensors")
    for _ in _CONTAINERS:  # one within another
        found = next((d for k in _CONTAINERS if isinstance(d := found.get(k), dict) and d), found)
    made: dict[str, Tensor] = {}
    for name, p in found.items():
        if not isinstance(name, str) or not isinstance(p, Tensor):
            raise ValueError(f"{source}: entry {name!r:.60} is not a tensor with a name")
        short = ".".join(part for part in name.split(".") if part not in _PREFIXES)
        if short in made:
            raise ValueError(f"{source}: {short!r:.60} is there twice, with and without a prefix")
        made[short] = p
    return made


def fix(tensors: Mapping[str, Tensor], config: SiTConfig, images: int = 1) -> str:
    """What to change where ``tensors`` do not fit a SiT of ``config``, in options of ``convert``.

    ``images`` is the number of its input images: 2 for the paper's refiner.
    """
    try:
        width, inputs, patch, _ = tensors["x_embedder.proj.weight"].shape
        side = math.isqrt(tensors["pos_embed"].shape[1])
        out = tensors["final_layer.linear.weight"].shape[0] // patch**2
        classes = tensors["y_embedder.embedding_table.weight"].shape[0] - 1
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        return "its tensors do not have the names and shapes of a class-conditional SiT"
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    refines = inputs == 2 * config.channels and depth == 1
    channels = inputs // 2 if refines else inputs
    found = dict(width=width, patch=patch, channels=channels, learn_sigma=out == 2 * channels)
    if not refines:
        found["depth"] = depth
    wrong = {key: value for key, value in found.items() if value != getattr(config, key)}
    letters = [s for s, (w, d, _) in SIZES.items() if w == width and (refines or d == depth)]
    options = []
    if wrong.keys() & {"width", "patch", "depth"} and letters and patch in (2, 4, 8):
        options.append(f"-a {letters[0]}/{patch}")
        wrong = {key: value for key, value in wrong.items() if key in ("channels", "learn_sigma")}
    if wrong:
        sizes = ", ".join(f"{key}={value}" for key, value in wrong.items())
        return f"it has {sizes}: convert it from Python, with such a SiTConfig"
    if side * patch != config.size:
        options.append(f"--size {side * patch}")
    if classes != config.classes:
        options.append(f"--classes {classes}")
    if refines and images == 1:
        options.append("--refiner")
    if not refines and images == 2:
        return f"it is a whole SiT, not a refiner; leave out --refiner{_and(options)}"
    return f"pass {' '.join(options)}" if options else "its tensors are not those of a SiT"


def _and(options: list[str]) -> str:
    return f" and pass {' '.join(options)}" if options else ""
