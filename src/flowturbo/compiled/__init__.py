"""Whole samplers compiled: in this process, or ahead of time into a file."""

from flowturbo.compiled.aot_export import export
from flowturbo.compiled.aot_load import load_compiled
from flowturbo.compiled.sampler import CompiledSampler, compile
from flowturbo.compiled.spec import CompileSpec

__all__ = ["CompileSpec", "CompiledSampler", "compile", "export", "load_compiled"]
