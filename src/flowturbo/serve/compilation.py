"""The calls of a running batch, compiled for every batch size before the first request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from flowturbo.compiled.backend import (
    Compiler,
    Recompiled,
    compile_errors,
    inductor_options,
    run_compiled,
)

__all__ = ["CompiledCalls"]

LOG = logging.getLogger("flowturbo.serve")


class CompiledCalls:
    """Functions compiled for each shape that they are called with until `close`.

    Later calls with other shapes run uncompiled, so nothing ever waits for a compilation.

    Attributes:
        graphs: how many were compiled.
    """

    def __init__(self) -> None:
        self._compiler = Compiler()
        self._options = inductor_options(None)
        self._made: dict[Hashable, Callable[..., Tensor]] = {}

    @property
    def graphs(self) -> int:
        """How many graphs were compiled."""
        return self._compiler.graphs

    def close(self) -> None:
        """Compile nothing more."""
        self._compiler.closed = True

    def of(self, function: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
        """``function``, compiled for each kind of arguments.

        Raises:
            ValueError: when called, if it cannot be compiled whole.
        """

        def call(*arguments: Any) -> Tensor:
            kind = (name, *_kind(arguments))
            if kind not in self._made:
                if self._compiler.closed:
                    return function(*arguments)
                self._made[kind] = self._compiler(lambda *a: function(*a), name)
                from torch._inductor import config

                with config.patch(dict(self._options)), compile_errors():
                    return self._made[kind](*arguments)
            return self._known(kind, function, arguments)

        return call

    def _known(
        self, kind: Hashable, function: Callable[..., Tensor], arguments: tuple[Any, ...]
    ) -> Tensor:
        try:
            return run_compiled(self._made[kind], arguments)
        except Recompiled:
            LOG.warning("%s does not fit its graph any more, and runs uncompiled", kind)
        self._made[kind] = function
        return function(*arguments)


def _kind(arguments: tuple[Any, ...]) -> tuple[Hashable, ...]:
    """What a graph is made for: the nesting of arguments, shapes, and values other than tensors."""
    leaves, spec = tree_flatten(arguments)
    return (
        str(spec),
        *((*v.shape, v.dtype, v.device) if isinstance(v, Tensor) else repr(v) for v in leaves),
    )
