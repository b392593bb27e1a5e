"""The autoencoders of diffusers: ``AutoencoderKL`` and ``AutoencoderTiny``.

Their configs have the constants that standardise the encoder's latents for training, and every
pipeline applies them the same way::

    latents = (encoded - latents_mean - shift_factor) / latents_std * scaling_factor

Most have only a scale (0.18215 for Stable Diffusion); Stable Diffusion 3 and FLUX also have a
shift, and some of SDXL's kind have means and standard deviations of the channels. ``encoded`` is
the mean of the encoder's distribution, so that encoding is deterministic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from safetensors import safe_open
from torch import Tensor, nn

from flowturbo.models.hub import fetch
from flowturbo.schema import Schema, read_json
from flowturbo.types import ReadOnlyJson

__all__ = ["Vae", "VaeFolder", "find_vae", "load_vae", "local", "standards"]

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CLASSES = ("AutoencoderKL", "AutoencoderTiny")

_Channels = Annotated[int, Field(ge=1, le=4096)]
_Levels = Annotated[list[_Channels], Field(min_length=1, max_length=8)]
_Blocks = Annotated[list[Annotated[int, Field(ge=0, le=32)]], Field(min_length=1, max_length=8)]
_Shift = Annotated[float, Field(ge=-1e6, le=1e6)]
_Scale = Annotated[float, Field(ge=1e-6, le=1e6)]


class _Config(Schema):
    """What a ``config.json`` must contain before diffusers builds anything from it."""

    name: str = Field(alias="_class_name")
    in_channels: _Channels = 3
    out_channels: _Channels = 3
    latent_channels: _Channels = 4
    block_out_channels: _Levels = [64]  # noqa: RUF012
    layers_per_block: Annotated[int, Field(ge=1, le=32)] = 1
    encoder_block_out_channels: _Levels = [64] * 4
    decoder_block_out_channels: _Levels = [64] * 4
    num_encoder_blocks: _Blocks = [1, 3, 3, 3]  # noqa: RUF012
    num_decoder_blocks: _Blocks = [3, 3, 3, 1]  # noqa: RUF012
    upsampling_scaling_factor: Annotated[int, Field(ge=1, le=8)] = 2
    scaling_factor: _Scale = 1.0
    shift_factor: _Shift | None = None
    latents_mean: Annotated[list[_Shift], Field(max_length=4096)] | None = None
    latents_std: Annotated[list[_Scale], Field(max_length=4096)] | None = None
    force_upcast: bool = True

    @model_validator(mode="after")
    def _fits(self) -> _Config:
        for key in ("latents_mean", "latents_std"):
            value = getattr(self, key)
            if value is not None and len(value) != self.latent_channels:
                raise ValueError(f"{key}: {len(value)} for {self.latent_channels} latent channels")
        return self


@dataclass(frozen=True, kw_only=True)
class VaeFolder:
    """A folder with an autoencoder, known by its config; nothing is loaded yet.

    Attributes:
        name: the name that it was requested by.
        path: the folder with ``config.json`` and the weights.
        kind: the class in diffusers.
        channels: of images, 1 or 3.
        latent_channels: of latents.
        factor: ratio of the side of an image to that of its latent.
        force_upcast: whether it computes in float32 when the model computes in float16.
    """

    name: str
    path: Path
    kind: str
    channels: int
    latent_channels: int
    factor: int
    force_upcast: bool


def find_vae(name: str, home: Path | None = None) -> VaeFolder:
    """The autoencoder called ``name``.

    Args:
        name: a folder, or "hf:owner/repo" (or "hf:owner/repo@revision"), which is fetched; from a
            whole pipeline, the autoencoder in "vae" is used.
        home: folder that relative names start from; by default the current one.

    Raises:
        ValueError: if there is none, or it cannot be used.
    """
    what = f"autoencoder {name!r}"
    if name.startswith("hf:"):
        files = [CONFIG, WEIGHTS]
        root = fetch(name, [*files, *(f"vae/{f}" for f in files)], "autoencoder")
    else:
        root = (home or Path()) / local(name)
        if not root.is_dir():
            hub = not Path(name).is_absolute() and name.count("/") == 1
            hint = f"; on the hub it is written 'hf:{name}'" if hub else ""
            raise ValueError(f"{what}: no such folder{hint}")
    path = root / "vae" if (root / "vae" / CONFIG).is_file() else root
    for file in (CONFIG, WEIGHTS):
        if not (path / file).is_file():
            raise ValueError(f"{what}: no {file} in {path}, as diffusers writes it")
    c = read_json(path / CONFIG, _Config)
    if c.name not in CLASSES:
        raise ValueError(f"{what}: is of class {c.name[:60]!r}; must be {' or '.join(CLASSES)}")
    if c.name == "AutoencoderKL":
        factor = up = 2 ** (len(c.block_out_channels) - 1)
    else:
        factor = 2 ** (len(c.num_encoder_blocks) - 1)
        up = c.upsampling_scaling_factor ** (len(c.num_decoder_blocks) - 1)
    if factor != up or c.in_channels != c.out_channels or c.out_channels not in (1, 3):
        raise ValueError(
            f"{what}: encodes {c.in_channels} channels at 1/{factor} of their size and decodes "
            f"{c.out_channels} at {up} times; must be the same, and grey (1) or RGB (3)"
        )
    return VaeFolder(
        name=name,
        path=path,
        kind=c.name,
        channels=c.out_channels,
        latent_channels=c.latent_channels,
        factor=factor,
        force_upcast=c.force_upcast and c.name == "AutoencoderKL",
    )


def local(name: str) -> Path:
    """The path of a folder as it was typed, with "~" written out."""
    try:
        return Path(name).expanduser()
    except RuntimeError as e:  # "~" of a user that there is not
        raise ValueError(f"autoencoder {name!r}: {e}") from e


def load_vae(found: VaeFolder, device: str | torch.device, dtype: torch.dtype) -> Vae:
    """The autoencoder in a folder, for inference.

    It computes in ``dtype``, or in float32 if that is float16 and its config asks for it.

    Raises:
        ImportError: without the packages of the extra ``flowturbo[diffusers]``.
        ValueError: if its files are damaged or do not fit each other.
    """
    try:
        from diffusers import AutoencoderKL, AutoencoderTiny
        from diffusers.utils import logging
    except ImportError as e:
        raise ImportError(
            f"autoencoder {found.name!r} needs diffusers: pip install 'flowturbo[diffusers]'"
        ) from e
    made: Any = AutoencoderKL if found.kind == "AutoencoderKL" else AutoencoderTiny
    upcast = dtype == torch.float16 and found.force_upcast
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would only warn of is refused below
    try:
        _check_size(made, found.path)
        vae, loading = made.from_pretrained(
            str(found.path),
            torch_dtype=torch.float32 if upcast else dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as e:
        reason = next((x.strip() for x in str(e).splitlines() if x.strip()), type(e).__name__)
        raise ValueError(f"{found.path}: cannot be loaded ({reason}); restore the files") from e
    finally:
        logging.set_verbosity(level)
    wrong = {k: v for k, v in loading.items() if v}
    if wrong:
        what, names = next(iter(wrong.items()))
        raise ValueError(
            f"{found.path}: the weights are of another autoencoder than {CONFIG}: {len(names)} "
            f"{what.replace('_', ' ')}, {str(next(iter(names)))[:60]!r} first; restore the files"
        )
    for name, p in vae.named_parameters():
        if not p.isfinite().all():
            raise ValueError(
                f"{found.path / WEIGHTS}: {name} has NaN or infinite weights; restore the file"
            )
    network = Vae(vae).to(device)
    return network.eval().requires_grad_(False)


def _check_size(made: Any, folder: Path) -> None:
    """Refuse a config of another size than the weights before memory is allocated for it."""
    with torch.device("meta"):
        network = made.from_config(made.load_config(str(folder)))
    wanted = sum(p.numel() for p in network.state_dict().values())
    with safe_open(folder / WEIGHTS, "pt") as file:
        stored = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    if wanted != stored:
        raise ValueError(f"{WEIGHTS} holds {stored} numbers, {CONFIG} wants {wanted}")


def standards(config: ReadOnlyJson, channels: int) -> tuple[Tensor, Tensor]:
    """What standardises latents, ``(encoded - shift) * scale``, each (channels, 1, 1) float32.

    Args:
        config: of an autoencoder of any class of diffusers.
        channels: of its latents.
    """
    per = lambda key: torch.tensor(config.get(key) or [0.0 if "mean" in key else 1.0])
    column = lambda a: a.double().float()[:, None, None].expand(channels, 1, 1).clone()
    scale = float(config.get("scaling_factor") or 1.0) / per("latents_std")
    shift = per("latents_mean") + float(config.get("shift_factor") or 0.0)
    return column(scale), column(shift)


class Vae(nn.Module):
    """An ``AutoencoderKL`` or ``AutoencoderTiny`` of diffusers between images and latents.

    Attributes:
        vae: the module of diffusers.
        channels: of images.
        latent_channels: of latents.
        factor: ratio of the side of an image to that of its latent.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        config: ReadOnlyJson = vae.config
        blocks = config["block_out_channels"]
        self.channels: int = config["out_channels"]
        self.latent_channels: int = config["latent_channels"]
        self.factor: int = 2 ** (len(blocks) - 1)
        scale, shift = standards(config, self.latent_channels)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to latents (B, L, H/f, W/f), float32."""
        found = self.vae.encode(images.to(self.vae.dtype))
        z = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        return (z.float() - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in about [-1, 1]."""
        z = latents.float() / self.scale + self.shift
        return self.vae.decode(z.to(self.vae.dtype), return_dict=False)[0]
