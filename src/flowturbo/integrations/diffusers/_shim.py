"""All imports from diffusers, and the only place that depends on its version."""

from __future__ import annotations

try:
    import diffusers
    from diffusers import (
        ClassifierFreeGuidance,
        DiffusionPipeline,
        FlowMatchEulerDiscreteScheduler,
        ImagePipelineOutput,
        ModelMixin,
        SchedulerMixin,
    )
    from diffusers.configuration_utils import register_to_config
    from diffusers.guiders.guider_utils import GuiderOutput
    from diffusers.hooks import HookRegistry, ModelHook
    from diffusers.models.modeling_outputs import Transformer2DModelOutput as NetworkOutput
    from diffusers.schedulers.scheduling_utils import SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError(
        f"{error}: pipelines need diffusers 0.40 or later; pip install 'flowturbo[diffusers]'"
    ) from error

_VERSION = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
DTYPE = "dtype" if _VERSION >= (0, 42) else "torch_dtype"
"""The name of the precision argument of ``from_pretrained`` in this version."""

__all__ = [
    "DTYPE",
    "ClassifierFreeGuidance",
    "DiffusionPipeline",
    "FlowMatchEulerDiscreteScheduler",
    "GuiderOutput",
    "HookRegistry",
    "ImagePipelineOutput",
    "ModelHook",
    "ModelMixin",
    "NetworkOutput",
    "SchedulerMixin",
    "SchedulerOutput",
    "diffusers",
    "randn_tensor",
    "register_to_config",
]
