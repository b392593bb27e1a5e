"""Calls captured in CUDA graphs, with buffers of their own that nothing else uses."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from flowturbo.tree import map_condition, tensors
from flowturbo.types import Condition

__all__ = ["Captured", "Place"]


class Place:
    """What the graphs of one sampler share: a stream, a memory pool, and a lock, since only one
    runs at a time.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()
            self.pool = torch.cuda.graph_pool_handle()
        self.lock = threading.Lock()


class Captured:
    """A function of CUDA tensors, recorded once and replayed.

    Args:
        fn: compiled, or not; it must not read values from the device.
        inputs: an example, a nest of tensors; later calls differ in their values only.
        place: shared with other graphs that never run at the same time.
    """

    def __init__(
        self, fn: Callable[..., Tensor], inputs: tuple[Condition, ...], place: Place
    ) -> None:
        self._place, self._graph = place, torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(inputs[0].device)
        with place.lock:
            place.stream.wait_stream(current)
            with torch.cuda.stream(place.stream):
                self._inputs = map_condition(_clone, inputs)
                for _ in range(2):  # libraries set themselves up
                    fn(*self._inputs)
                place.stream.synchronize()
                mode = "thread_local"  # other threads may continue
                self._graph.capture_begin(pool=place.pool, capture_error_mode=mode)
                try:
                    self._out = fn(*self._inputs)
                finally:
                    self._graph.capture_end()
            current.wait_stream(place.stream)

    def __call__(self, *inputs: Condition) -> Tensor:
        """A copy of the result; it is the caller's, as are the inputs."""
        place, current = self._place, torch.cuda.current_stream(self._out.device)
        with place.lock:
            place.stream.wait_stream(current)
            with torch.cuda.stream(place.stream):
                map_condition(_copy, self._inputs, inputs)
                self._graph.replay()
                out = self._out.clone()
            current.wait_stream(place.stream)
        out.record_stream(current)
        for c in tensors(inputs):
            c.record_stream(place.stream)
        return out


def _clone(c: object) -> object:
    return c.clone() if isinstance(c, Tensor) else c


def _copy(ours: Condition, theirs: Condition) -> Condition:
    return ours.copy_(theirs) if isinstance(ours, Tensor) else ours
