"""Names of types that many signatures share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

__all__ = [
    "Condition",
    "GuidanceRange",
    "GuidanceScale",
    "JsonObject",
    "Pipeline",
    "ReadOnlyJson",
    "Scheduler",
    "Time",
]

Condition: TypeAlias = Any
"""None, a tensor with a row for each image (B, ...), or a tuple, list or dict of such."""

Time: TypeAlias = float | Tensor
"""In [0, 1], 0 is noise: a number, a 0-dim tensor, or one for each image (B,)."""

GuidanceScale: TypeAlias = float | Tensor
"""A number, or one for each image (B,); 1 is off."""

GuidanceRange: TypeAlias = float | tuple[float, float]
"""A scale, or (lowest, highest)."""

Pipeline: TypeAlias = Any
"""A diffusers pipeline; diffusers has no types."""

Scheduler: TypeAlias = Any
"""A diffusers scheduler."""

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object as it is read."""

ReadOnlyJson: TypeAlias = Mapping[str, Any]
"""The same, where it is not changed."""
