"""Whole samplers compiled: in this process, or ahead of time into a file."""

from flowturbo.compiled.artefact import export, load_compiled
from flowturbo.compiled.sampler import CompiledSampler, compile

__all__ = ["CompiledSampler", "compile", "export", "load_compiled"]
