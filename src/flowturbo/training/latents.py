"""Training data as latents of an autoencoder, encoded once and kept in a folder."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, distributed
from tqdm import tqdm

from flowturbo.digests import hexdigest
from flowturbo.files import check_room
from flowturbo.models.codec import Codec, Pixels
from flowturbo.stores import read_tensors, write_tensors
from flowturbo.training.dataset import ArrayData

__all__ = ["LatentData", "as_states"]

CHUNK = 1024  # images in a file


def as_states(data: ArrayData, codec: Codec, folder: str | Path) -> ArrayData | LatentData:
    """``data`` as the states that ``codec`` makes of them; see `LatentData`."""
    return data if isinstance(codec, Pixels) else LatentData(data, codec, folder)


class LatentData:
    """Images as their latents, which are encoded when the first batch is requested.

    They are kept in half precision, in memory and in ``folder``, in files named after the images
    and the autoencoder, so that another run there resumes where this one stopped. The processes of
    one run share the work.

    Args:
        data: the images. Grey ones become three equal channels for an autoencoder of RGB.
        codec: the autoencoder.
        folder: for the files.

    Raises:
        ValueError: if the images are not of a size or of channels that ``codec`` encodes.
    """

    def __init__(self, data: ArrayData, codec: Codec, folder: str | Path) -> None:
        self.data, self.codec, self.folder = data, codec, Path(folder)
        self.condition = data.condition
        self._colours = max(data.shape[0], codec.image_shape((1, 1, 1))[0])
        self._shape = codec.state_shape((self._colours, *data.shape[1:]))

    def __len__(self) -> int:
        return len(self.data)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        return self._shape

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """``n`` latents (n, C, H, W) and their conditions, drawn with replacement."""
        rows = torch.randint(len(self), (n,), generator=generator)
        return self.latents[rows].float(), None if self.data.cond is None else self.data.cond[rows]

    def examples(self, n: int) -> Tensor | None:
        """Conditions for previews."""
        return self.data.examples(n)

    def digest(self) -> str:
        """16 hexadecimal digits that name the images, their conditions and the autoencoder."""
        return hexdigest(f"{self.data.digest()} {self.codec.fingerprint}")

    @cached_property
    def latents(self) -> Tensor:
        """(N, C, H, W) float16.

        Raises:
            OSError: if the disk has no room for them.
            ValueError: if the autoencoder returns latents that are not finite.

        Warns:
            UserWarning: if a file is damaged, and encoded again.
        """
        several = distributed.is_available() and distributed.is_initialized()
        index, count = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        name = self.digest()
        starts = range(0, len(self), CHUNK)
        paths = [self.folder / f"{name}-{start:08d}.safetensors" for start in starts]
        kept = {i: self._kept(paths[i]) for i in range(index, len(paths), count)}
        missing = [i for i, part in kept.items() if part is None]
        rows = sum(min(CHUNK, len(self) - starts[i]) for i in missing)
        check_room(self.folder, 2 * rows * math.prod(self.shape), "latents")
        with tqdm(total=rows, desc="encoding", disable=None if missing else True) as bar:
            for i in missing:
                latents = self._encode(self.data.images[starts[i] : starts[i] + CHUNK], bar)
                write_tensors(paths[i], {"latents": latents}, name)
                kept[i] = latents
        if several:
            distributed.barrier()
        parts = [kept[i] if i in kept else self._kept(path) for i, path in enumerate(paths)]
        for path, part in zip(paths, parts, strict=True):
            if part is None:
                raise ValueError(f"{path}: damaged; repeat the command to encode it again")
        with _precise("cpu"):
            return torch.cat([part for part in parts if part is not None])

    @torch.no_grad()
    def _encode(self, images: Tensor, bar: tqdm) -> Tensor:
        made, device = [], self._device
        with _precise(device.type), _precise("cpu"):
            for part in images.split(64):
                images = part.float().expand(-1, self._colours, -1, -1) / 255
                latents = self.codec.encode(images.to(device)).half().cpu()
                if not latents.isfinite().all():
                    raise ValueError(
                        f"autoencoder {self.codec.name!r} encodes images to latents that are not "
                        "finite in half precision; take another"
                    )
                made.append(latents)
                bar.update(len(part))
            return torch.cat(made)

    @property
    def _device(self) -> torch.device:
        network = getattr(self.codec, "network", None)
        return torch.device("cpu") if network is None else next(network.parameters()).device

    def _kept(self, path: Path) -> Tensor | None:
        return (read_tensors(path, self.digest()) or {}).get("latents")


def _precise(device: str) -> torch.autocast:
    """No autocast: the first batch is requested by a loss, which is computed under autocast."""
    return torch.autocast(device, enabled=False)
