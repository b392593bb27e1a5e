"""Pipelines of diffusers: a scheduler that runs plans, and refiners by one call.

    from flowturbo.integrations.diffusers import FlowTurboScheduler, enable, disable, summary

    pipe.scheduler = FlowTurboScheduler.from_config(pipe.scheduler.config)  # second order
    enable(pipe, plan=plan, refiner=refiner)  # or a fitted plan, with a refiner

The extra ``[diffusers]`` installs what it needs.
"""

from flowturbo.integrations.diffusers.editing import edit
from flowturbo.integrations.diffusers.families import FAMILIES, Family
from flowturbo.integrations.diffusers.pipeline import disable, enable, summary
from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler

__all__ = ["FAMILIES", "Family", "FlowTurboScheduler", "disable", "edit", "enable", "summary"]
