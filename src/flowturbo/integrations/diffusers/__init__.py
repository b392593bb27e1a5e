"""diffusers pipelines: a scheduler that runs plans, refiners with one call, and editing.

    from flowturbo.integrations.diffusers import FlowTurboScheduler, disable, edit, enable, summary

    pipe.scheduler = FlowTurboScheduler.from_config(pipe.scheduler.config)  # second order
    enable(pipe, plan=plan, refiner=refiner)  # or a fitted plan, with a refiner
    enable(pipe, "folder")  # or "hf:owner/repo", as `flowturbo tune --pipeline` writes them
    edit(pipe, "dog.jpg", "a fox", "a dog")[0].save("fox.png")
    pipe = FlowTurboPipeline.from_model("emoji")  # models of this library

The extra ``[diffusers]`` installs what it needs.
"""

from flowturbo.integrations.diffusers.editing import edit
from flowturbo.integrations.diffusers.families import FAMILIES, Family
from flowturbo.integrations.diffusers.field import as_field
from flowturbo.integrations.diffusers.folder import push_to_hub, save_folder
from flowturbo.integrations.diffusers.generation import FlowTurboPipeline
from flowturbo.integrations.diffusers.guider import FlowTurboGuider
from flowturbo.integrations.diffusers.pipeline import disable, enable, summary
from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler

__all__ = [
    "FAMILIES",
    "Family",
    "FlowTurboGuider",
    "FlowTurboPipeline",
    "FlowTurboScheduler",
    "as_field",
    "disable",
    "edit",
    "enable",
    "push_to_hub",
    "save_folder",
    "summary",
]
