"""All that this library takes from diffusers, and the one place that minds its versions."""

from __future__ import annotations

try:
    import diffusers
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.hooks import HookRegistry, ModelHook
    from diffusers.models.modeling_outputs import Transformer2DModelOutput as NetworkOutput
    from diffusers.schedulers.scheduling_utils import SchedulerOutput
except ImportError as error:
    raise ImportError(
        f"{error}: pipelines need diffusers 0.40 or later; pip install 'flowturbo[diffusers]'"
    ) from error

DTYPE = "dtype" if diffusers.__version__.split(".")[:2] >= ["0", "42"] else "torch_dtype"
"""What ``from_pretrained`` of this version calls the precision."""

__all__ = [
    "DTYPE",
    "DiffusionPipeline",
    "FlowMatchEulerDiscreteScheduler",
    "HookRegistry",
    "ModelHook",
    "NetworkOutput",
    "SchedulerMixin",
    "SchedulerOutput",
    "diffusers",
    "register_to_config",
]
