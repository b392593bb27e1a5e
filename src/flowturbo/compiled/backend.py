"""Functions compiled separately, in three scopes, and never again after that.

The scopes are those that the paper compares (Zhao et al. 2024, arXiv 2409.18128, table 5): the
network alone, or a whole block of the sampler; since a plan is static, here also the whole sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from flowturbo.checks import did_you_mean, shown
from flowturbo.compiled.function import Function
from flowturbo.plan import Row
from flowturbo.refiner.binding import History, Refiner
from flowturbo.sampling import Velocities, run, step
from flowturbo.types import Condition, GuidanceScale, JsonObject, ReadOnlyJson, Time

__all__ = [
    "SCOPES",
    "Compiler",
    "Recompiled",
    "check_cache",
    "compile_errors",
    "inductor_options",
    "run_compiled",
]

SCOPES = ("plan", "row", "network", "none")
_BACKEND = "inductor"


def inductor_options(options: ReadOnlyJson | None) -> JsonObject:
    """``options`` of inductor, over our defaults.

    On CPUs inductor's own tanh, as in GELU, takes three times as long as one computed from exp,
    whose error is at most 1e-7.

    Raises:
        ValueError: if there is no such option.
    """
    from torch._inductor import config

    if not isinstance(options, Mapping | None):
        raise ValueError(f"options={shown(options)}: must be options of inductor by their names")
    known = config.get_config_copy()  # type: ignore[attr-defined]
    for name, value in (options or {}).items():
        if name not in known:
            raise ValueError(
                f"options[{name!r}]={shown(value)}: inductor has no such option"
                f"{did_you_mean(name, known)}"
            )
    ours = {"cpp.use_decompose_tanh": True} if hasattr(config.cpp, "use_decompose_tanh") else {}
    return {**ours, **(options or {})}


def check_cache(error: Exception) -> None:
    """Raise ``ValueError`` for ``error`` if the cache has libraries that a kill cut short."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir())
    if any(not path.stat().st_size for path in folder.rglob("*.so")):
        raise ValueError(
            f"{folder}: this cache of torch.compile holds empty libraries, which a killed "
            "compilation leaves behind; remove the folder, or set another TORCHINDUCTOR_CACHE_DIR"
        ) from error


@contextmanager
def compile_errors(otherwise: str = "take ") -> Iterator[None]:
    """Errors of a first call as ours; what to do instead begins with ``otherwise``.

    Raises:
        ValueError: if the field cannot be compiled whole.
    """
    from torch._dynamo.exc import BackendCompilerFailed, Unsupported, UserError

    try:
        yield
    except (Unsupported, UserError) as e:
        reason = str(e).strip().splitlines()[0]
        raise ValueError(
            f"model: it cannot be compiled whole ({reason}); {otherwise}a field that neither looks "
            "at the values of tensors nor leaves PyTorch"
        ) from e
    except BackendCompilerFailed as e:
        check_cache(e)
        raise


class Recompiled(RuntimeError):
    """A compiled sampler would have had to be compiled again, after its warm-up."""


def run_compiled(call: Callable[..., Tensor], inputs: Sequence[Any]) -> Tensor:
    """``call(*inputs)`` of what a closed `Compiler` compiled.

    Raises:
        Recompiled: if it would have to be compiled again.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        return call(*inputs)
    except BackendCompilerFailed as e:
        if isinstance(e.inner_exception, Recompiled):
            raise e.inner_exception from None
        raise


class Compiler:
    """Compiles functions by inductor until it is closed.

    Attributes:
        graphs: how many were compiled.
        refused: how many more would have been compiled since it was closed.
        closed: whether it is closed, so that nothing more is compiled.
        field: in the scope "network", the compiled field, the same for all numbers of rows.
    """

    def __init__(self) -> None:
        self.graphs, self.refused, self.closed = 0, 0, False
        self.field: Callable[..., Tensor] | None = None

    def __call__(self, fn: Callable[..., Any], name: str) -> Callable[..., Any]:
        """``fn``, a closure without defaults, to be compiled when it is first called.

        It gets a code object of its own, since dynamo keeps compiled code there: samplers neither
        wait for each other's guards nor use up each other's limit.
        """
        code = fn.__code__.replace(co_name=name)
        own = FunctionType(code, fn.__globals__, name, None, fn.__closure__)
        return torch.compile(own, backend=self._backend, fullgraph=True, dynamic=False)

    def _backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        if self.closed:
            self.refused += 1
            raise Recompiled
        from torch._dynamo import lookup_backend

        self.graphs += 1
        return lookup_backend(_BACKEND)(graph, inputs)  # type: ignore[arg-type]

    def scoped(self, function: Function, scope: str, name: str) -> Callable[..., Tensor]:
        """``function``, with its ``scope`` compiled."""
        if scope == "plan":
            return self(lambda x, cond, null, scale: function(x, cond, null, scale), name)
        if scope == "row":
            return self._by_rows(function, name)
        if scope == "network":
            refiner = function.refiner and _Timed(function.refiner, self, f"{name}_refiner")
            field = function.cast()
            self.field = self.field or self(lambda x, t, cond: field(x, t, cond), "network")
            return function.replaced(self.field, refiner)
        return function

    def _by_rows(self, function: Function, name: str) -> Callable[..., Tensor]:
        def compiled(row: Row) -> Callable[..., tuple[Tensor, dict[int, Tensor]]]:
            return self(
                lambda x, cond, null, scale, velocities: step(
                    row, function.evaluators(cond, null, scale, [row]), x, velocities
                ),
                f"{name}_row{row.k}",
            )

        rows = [compiled(row) for row in function.rows]

        def sample(x: Tensor, cond: Condition, null: Condition, scale: Tensor | None) -> Tensor:
            def one(
                row: Row, _: object, x: Tensor, velocities: Velocities
            ) -> tuple[Tensor, dict[int, Tensor]]:
                return rows[row.k](x, cond, null, scale, dict(velocities))

            return run(function.rows, {}, x, step=one)

        return sample


class _Timed:
    """A refiner compiled for the times of each of its rows, which are constants to it."""

    def __init__(self, refiner: Refiner, compiler: Compiler, name: str) -> None:
        self.refiner, self.compiler, self.name = refiner, compiler, name
        self.made: dict[tuple[float, ...], Callable[..., Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        if name in ("embed_condition", "embed_rows"):  # it is computed within what is compiled
            raise AttributeError(name)
        return getattr(self.refiner, name)

    def __call__(
        self, x: Tensor, t: Time, cond: Condition, history: History, **scale: GuidanceScale
    ) -> Tensor:
        times = tuple(s for s, _ in history)
        if times not in self.made:
            self.made[times] = self.compiler(_at(self.refiner, times), self.name)
        return self.made[times](x, t, cond, [v for _, v in history], scale)


def _at(refiner: Callable[..., Tensor], times: tuple[float, ...]) -> Callable[..., Tensor]:
    def refine(
        x: Tensor, t: Time, cond: Condition, shown: list[Tensor], scale: Mapping[str, GuidanceScale]
    ) -> Tensor:
        return refiner(x, t, cond, list(zip(times, shown, strict=True)), **scale)

    return refine
