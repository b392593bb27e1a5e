"""Sample-aware compilation: a plan, its model and its refiner compiled into one callable.

The FlowTurbo paper (Zhao et al. 2024, arXiv 2409.18128, section 3.3) compiles a whole block of its
sampler, network, guidance and update; here one graph holds the whole sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from flowturbo import checks
from flowturbo.compiled.backend import (
    SCOPES,
    Compiler,
    Recompiled,
    compile_errors,
    inductor_options,
    run_compiled,
)
from flowturbo.compiled.capture import Captured, Place
from flowturbo.compiled.function import Function
from flowturbo.compiled.memory import peak_bytes
from flowturbo.compiled.prepare import NullCondition, prepare
from flowturbo.compiled.shapes import Inputs, Sampler, Shapes
from flowturbo.compiled.spec import CompileSpec
from flowturbo.config import configured
from flowturbo.field import Field
from flowturbo.plan import Plan
from flowturbo.progress import Progress, Report
from flowturbo.refiner.binding import Refiner
from flowturbo.types import Condition, JsonObject, ReadOnlyJson

__all__ = ["CompiledSampler", "compile"]


@configured(CompileSpec)
def compile(
    model: Field,
    plan: Plan | str,
    refiner: Refiner | None = None,
    *,
    config: CompileSpec,
    cond: Condition = None,
    scope: str = "plan",
    capture: bool | None = None,
    report: Report | None = None,
) -> CompiledSampler:
    """Compile the sampling of a plan: every row's network, guidance and update as one graph.

    On a CPU the graph is inductor's; on CUDA the whole sample is captured in one CUDA graph as
    well. All sizes of ``batch`` are compiled and run before this returns; nothing is compiled after
    that.

    The fields of `CompileSpec` are keywords too: ``compile(model, plan, batch=[1, 8])``.

    Args:
        model: the field, any that dynamo can trace whole; or a ``Guidance`` of one, whose interval
            and channels are kept, and whose scale and null condition are the defaults.
        plan: the table to run, or its notation.
        refiner: evaluates the refiner rows of ``plan``.
        config: batch sizes, precision and default guidance.
        cond: an example of the condition, of a row or more, for a field that is not a model with a
            card.
        scope: "plan" compiles the whole sample, "row" each evaluation with guidance and update,
            "network" the field and the refiner alone, "none" nothing.
        capture: capture calls in CUDA graphs; by default on CUDA, in the scope "plan".
        report: called with a `Progress` after each batch size.

    Raises:
        ValueError: if an argument is not as described, or the field cannot be compiled whole.
    """
    checks.one_of("scope", scope, SCOPES)
    if capture is not None:
        checks.flag("capture", capture)
    function, shapes, null = prepare(model, plan, config, refiner, cond)
    cuda = shapes.device.type == "cuda"
    if capture and not cuda:
        raise ValueError(f"capture=True: CUDA graphs need CUDA, and this is {shapes.device}")
    capture = cuda and scope == "plan" if capture is None else capture
    options = inductor_options(config.options)
    return CompiledSampler(function, shapes, null, scope, capture, options, report)


class CompiledSampler(Sampler):
    """What ``compile`` returns; called like ``flowturbo.sample``, without plan and model.

    It has no mutable state, so threads may share it: on the CPU they run side by side, on CUDA the
    replays of its graphs take turns.

    Attributes:
        field: the unguided field that the plan is run on, in its ``dtype``; compiled in the scope
            "network", so that ``flowturbo.sample`` may run other plans on it, at the batch sizes
            that it is compiled for.
        report: measurements of the warm-up, by batch size where they differ: "seconds" to compile
            and capture, the largest "difference" of any pixel from the same function uncompiled and
            the "largest" pixel of that, "peak_bytes" of a call.
    """

    def __init__(
        self,
        function: Function,
        shapes: Shapes,
        null: NullCondition,
        scope: str,
        capture: bool,
        options: ReadOnlyJson,
        report: Report | None,
    ) -> None:
        check = getattr(function.field, "check_inputs", None)
        super().__init__(function.plan, shapes, function.refiner, check)
        self._null, self._compiler = null, Compiler()
        self._calls: dict[int, Callable[..., Tensor]] = {}
        import torch._dynamo  # slow to import
        from torch._inductor import config

        place = Place(shapes.device) if capture else None
        self.report: JsonObject = {"scope": scope, "capture": capture}
        self.report |= {"seconds": {}, "difference": {}, "largest": {}, "peak_bytes": {}}
        limit = torch._dynamo.config.patch(recompile_limit=4 * len(shapes.batch) + 8)
        with config.patch(dict(options)), limit:
            # the largest first: the others fit into its memory
            for done, size in enumerate(reversed(shapes.batch), 1):
                self._warm_up(function, size, scope, place)
                if report:
                    stage = f"compile {self.plan.name} ({scope})"
                    report(Progress(stage, done, len(shapes.batch), batch=size))
        self._compiler.closed = True
        self.field = self._compiler.field or function.cast()

    @property
    def graphs(self) -> int:
        """How many graphs were compiled."""
        return self._compiler.graphs

    @property
    def recompiles(self) -> int:
        """How many compilations were refused since the warm-up; each raised ``Recompiled``."""
        return self._compiler.refused

    def null_condition(self, cond: Condition) -> Condition:
        """The unconditional condition of rows of ``cond``."""
        return self._null(cond)

    def _warm_up(self, function: Function, size: int, scope: str, place: Place | None) -> None:
        """Compile for ``size`` rows, and compare with the function as it is."""
        if scope == "none" and place is None:
            self._calls[size] = function
            return
        null = None if self.shapes.guidance is None else self._null(self.shapes.cond)
        inputs = self.shapes.example(size, null)
        call = self._compiler.scoped(function, scope, f"sample{size}")
        start = time.perf_counter()
        with torch.no_grad():
            with compile_errors("take scope='none', or "):
                call(*inputs)
            self._calls[size] = Captured(call, inputs, place) if place else call
            _wait(self.shapes.device)
            self.report["seconds"][size] = time.perf_counter() - start
            self.report["peak_bytes"][size] = peak_bytes(lambda: call(*inputs), self.shapes.device)
            eager = function(*inputs)
            away = (self._calls[size](*inputs) - eager).abs().max()
            self.report["difference"][size] = float(away)
            self.report["largest"][size] = float(eager.abs().max())

    def _call(self, size: int, inputs: Inputs) -> Tensor:
        try:
            return run_compiled(self._calls[size], inputs)
        except Recompiled:
            raise Recompiled(
                f"states {(size, *self.shapes.shape)}, batch {self.shapes.batch}: this sampler "
                "would have to be compiled again, because something it was compiled with has "
                "changed (attributes of the model, threads, defaults of torch; see "
                "TORCH_LOGS=recompiles); call flowturbo.compile anew"
            ) from None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
