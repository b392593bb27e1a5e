"""A model of this library as a component of diffusers pipelines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from flowturbo.checks import shown
from flowturbo.files import atomic_write
from flowturbo.integrations.diffusers._shim import ModelMixin
from flowturbo.models.checkpoint import CARD, load_folder
from flowturbo.models.codec import PIXELS
from flowturbo.models.model import Model
from flowturbo.types import Condition, Time

__all__ = ["FlowTurboModel"]

FILES = ("*.json", "*.safetensors", "plans/*.json")  # of a model's folder
ELSEWHERE = ("device_map", "variant", "quantization_config")  # of diffusers' own models


class FlowTurboModel(ModelMixin):  # type: ignore[misc]
    """A velocity field ``(x, t, cond) -> v`` with its card, loaded and saved like diffusers
    networks.

    Its folder has the format of `flowturbo.load`, which loads it too.

    Attributes:
        model: what `flowturbo.load` returns.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """The velocity (B, C, H, W), in the convention of this library."""
        return self.model(x, t, cond)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        torch_dtype: torch.dtype | None = None,
        **options: object,
    ) -> FlowTurboModel:
        """The model in a folder.

        Args:
            pretrained_model_name_or_path: the folder.
            torch_dtype: of the weights; float32 by default.
            **options: those of diffusers' networks; ignored if they only change how files are read.

        Raises:
            ValueError: if a file is missing or damaged, or one of ``device_map``, ``variant`` and
                ``quantization_config`` is given.
        """
        for name in ELSEWHERE:
            if options.get(name) is not None:
                raise ValueError(
                    f"{name}={shown(options[name])}: not supported for models of flowturbo; leave "
                    "it out, and call pipe.to(...)"
                )
        dtype = torch.float32 if torch_dtype is None else torch_dtype
        return cls(load_folder(pretrained_model_name_or_path, dtype=dtype))

    def save_pretrained(self, save_directory: str | Path, **options: object) -> None:
        """Write the model's folder, with its plans and refiner, as it was read.

        Args:
            save_directory: the new folder.
            **options: those of diffusers' networks; ignored, except ``variant``.

        Raises:
            ValueError: if the model was not read from a folder, its weights have changed since, or
                ``variant`` is given.
            OSError: if the folder cannot be written.
        """
        if options.get("variant") is not None:
            raise ValueError(
                f"variant={shown(options['variant'])}: not supported for models of flowturbo, "
                "which are saved as they were read; leave it out"
            )
        model, target = self.model, Path(save_directory)
        if model.folder is None or load_folder(model.folder).fingerprint != model.fingerprint:
            why = "has no folder" if model.folder is None else f"has changed since {model.folder}"
            raise ValueError(
                f"model {model.name!r} {why}: write its network and card with "
                "flowturbo.models.checkpoint.save_folder, and load it from there"
            )
        found = {path for pattern in FILES for path in model.folder.glob(pattern)}
        for path in sorted(found - {model.folder / CARD}):
            with atomic_write(target / path.relative_to(model.folder)) as temporary:
                shutil.copyfile(path, temporary)
        inside = model.card.get("codec", PIXELS).get("autoencoder", "")
        vae, copy = model.folder / inside, target / inside
        # an absolute path, or one that is saved onto itself, leads to the same folder
        if inside and vae.is_dir() and vae.resolve() != copy.resolve():
            shutil.copytree(vae, copy, dirs_exist_ok=True)
        with atomic_write(target / CARD) as temporary:  # load(vae=...) may have changed it
            text = json.dumps(model.card, indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
