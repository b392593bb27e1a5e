"""Pipelines of diffusers: a scheduler that runs plans, and refiners by one call.

    from flowturbo.integrations.diffusers import FlowTurboScheduler, enable, disable, summary

    pipe.scheduler = FlowTurboScheduler.from_config(pipe.scheduler.config)

The extra ``[diffusers]`` installs what it needs.
"""

from flowturbo.integrations.diffusers.scheduler import FlowTurboScheduler

__all__ = ["FlowTurboScheduler"]
