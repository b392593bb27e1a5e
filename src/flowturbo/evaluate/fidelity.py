"""FID and related scores by the official protocol, with torch-fidelity (the extra ``[fid]``).

The network is the Inception of the original FID, converted from TensorFlow; torch-fidelity fetches
its weights the first time. Precision and recall are those of ADM's evaluation (Dhariwal and
Nichol 2021): the 3rd nearest neighbour, in the 2048 features that FID uses. sFID (Nash et al. 2021,
arXiv 2103.03841), which torch-fidelity does not have, is the Frechet distance of the first 7
channels, 17 x 17, of the block that TensorFlow calls ``mixed_6`` and torch-fidelity ``Mixed_6d``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowturbo.types import JsonObject

__all__ = ["check_installed", "official_scores"]

_SPATIAL = "flowturbo-inception-spatial"
_KEYS = {
    "fid": "frechet_inception_distance",
    "is": "inception_score_mean",
    "is_std": "inception_score_std",
    "precision": "precision",
    "recall": "recall",
}


def check_installed() -> None:
    """Raise ``ImportError`` now, before images are generated, if torch-fidelity is missing."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as e:
        raise ImportError(
            f"{e.name} is missing: the official scores need `pip install 'flowturbo[fid]'`"
        ) from e


def official_scores(
    images: Tensor,
    real: Tensor,
    *,
    batch: int = 64,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """FID, sFID, inception score, precision and recall.

    Papers report them for 50,000 images; FID and sFID decrease with the number of images.

    Args:
        images: (N, 1 or 3, H, W) uint8.
        real: (M, 1 or 3, H, W) uint8.
        batch: largest number of images in one forward pass.
        device: where it runs, the CPU or CUDA.

    Returns:
        "fid", "sfid", "is", "is_std" (over 10 parts), "precision", "recall".

    Raises:
        ImportError: without the package of the extra ``flowturbo[fid]``.
        ValueError: for images of another kind, or fewer than 10.
    """
    for name, given in (("images", images), ("real", real)):
        if given.ndim != 4 or given.shape[1] not in (1, 3) or given.dtype != torch.uint8:
            raise ValueError(
                f"{name}: {tuple(given.shape)} {given.dtype}; must be (N, 1 or 3, H, W) uint8"
            )
        if len(given) < 10:
            raise ValueError(f"{name}: {len(given)} of them; at least 10, one for each part")
    check_installed()
    import torch_fidelity
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if _SPATIAL not in FEATURE_EXTRACTORS_REGISTRY:
        made = _spatial(torch_fidelity.FeatureExtractorInceptionV3)
        torch_fidelity.register_feature_extractor(_SPATIAL, made)
    shared: JsonObject = dict(
        input1=_Images(images),
        input2=_Images(real),
        cuda=torch.device(device).type == "cuda",
        batch_size=batch,
        cache=False,
        save_cpu_ram=True,  # in this process
        verbose=False,
        fid=True,
    )
    found = torch_fidelity.calculate_metrics(
        **shared,
        isc=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_layer_prc="2048",
        prc_neighborhood=3,
    )
    spatial = torch_fidelity.calculate_metrics(
        **shared, feature_extractor=_SPATIAL, feature_layer_fid="768"
    )
    return {k: float(found[key]) for k, key in _KEYS.items()} | {
        "sfid": float(spatial[_KEYS["fid"]])
    }


class _Images(Dataset[Tensor]):
    """Rows as torch-fidelity takes them, (3, H, W) uint8."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i].expand(3, -1, -1)


def _spatial(base: Any) -> Any:
    """The extractor ``base`` with the features of sFID in place of the layer it calls 768."""

    class Spatial(base):  # type: ignore[misc]
        def forward(self, x: Tensor) -> tuple[Tensor]:
            seen: list[Tensor] = []
            hook = self.Mixed_6d.register_forward_hook(lambda m, args, out: seen.append(out))
            try:
                super().forward(x)
            finally:
                hook.remove()
            return (seen[0][:, :7].flatten(1).float(),)

    return Spatial
