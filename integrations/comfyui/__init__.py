"""A ComfyUI node that samples flow models with a plan of flowturbo."""

from .sampler import FlowTurboSampler

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

NODE_CLASS_MAPPINGS = {"FlowTurboSampler": FlowTurboSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"FlowTurboSampler": "FlowTurbo sampler"}
