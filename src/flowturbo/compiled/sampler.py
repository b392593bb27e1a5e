"""Sample-aware compilation: a plan, its model and its refiner compiled into one callable.

The FlowTurbo paper (Zhao et al. 2024, arXiv 2409.18128, section 3.3) compiles a whole block of its
sampler, network, guidance and update; here one graph holds the whole sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from flowturbo import checks
from flowturbo.checks import shown
from flowturbo.compiled.backend import SCOPES, Compiler, Recompiled, inductor_options
from flowturbo.compiled.capture import Captured, Place
from flowturbo.compiled.function import Function, in_dtype
from flowturbo.compiled.memory import peak_bytes
from flowturbo.compiled.shapes import Inputs, Sampler, Shapes
from flowturbo.field import Field
from flowturbo.guidance import Guidance
from flowturbo.models.model import Model
from flowturbo.plan import Plan, as_plan
from flowturbo.refiner.binding import Refiner, check_refiner, needed_refiner, warn_on_mismatch
from flowturbo.sampling import check_inputs
from flowturbo.tree import slice_condition, tensors

__all__ = ["CompiledSampler", "compile", "prepare"]


@checks.known_keywords
def compile(
    model: Field,
    plan: Plan | str,
    refiner: Refiner | None = None,
    *,
    batch: int | Sequence[int] = 8,
    dtype: torch.dtype | None = None,
    guidance: float | None = None,
    shape: Sequence[int] | None = None,
    cond: Any = None,
    device: str | torch.device | None = None,
    scope: str = "plan",
    capture: bool | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> CompiledSampler:
    """Compile the sampling of a plan: every row's network, guidance and update as one graph.

    On a CPU the graph is inductor's; on CUDA the whole sample is captured in one CUDA graph as
    well. All sizes of ``batch`` are compiled and run before this returns; after that nothing is
    compiled any more.

    Args:
        model: the field, any that dynamo can trace whole; or a ``Guidance`` of one, whose interval
            and channels are kept, and whose scale and null condition are the defaults.
        plan: the table to run, or its notation.
        refiner: evaluates the rows of ``plan`` that ask for one.
        batch: number of rows, or several of them to choose from; other numbers are padded up to
            the next, or run in chunks of the largest.
        dtype: to run the networks in, on copies of their weights; as they are if None. The state
            is float32, in float64 float64. Times are never rounded.
        guidance: scale unless a call says otherwise, any but 1, which leaves the second branch out
            for good; by default the card's, or 1 for fields without one.
        shape: of a state, where the field has no attribute ``shape``.
        cond: an example of the condition, of a row or more, where the model has no card that tells.
        device: where the state is; by default where the weights are.
        scope: "plan" compiles the whole sample, "row" each evaluation with guidance and update,
            "network" the field and the refiner alone, "none" nothing.
        capture: in CUDA graphs; by default what runs whole on CUDA.
        options: of inductor, ``{"freezing": True}`` for example.
        progress: show a bar, on a terminal.

    Raises:
        ValueError: if an argument is not as said, or the field cannot be compiled whole.
    """
    checks.one_of("scope", scope, SCOPES)
    if capture is not None:
        checks.flag("capture", capture)
    checks.flag("progress", progress)
    function, shapes, null = prepare(
        model,
        plan,
        refiner,
        batch=batch,
        dtype=dtype,
        guidance=guidance,
        shape=shape,
        cond=cond,
        device=device,
    )
    cuda = shapes.device.type == "cuda"
    if capture and not cuda:
        raise ValueError(f"capture=True: CUDA graphs need CUDA, and this is {shapes.device}")
    capture = cuda and scope == "plan" if capture is None else capture
    options = inductor_options(options)
    return CompiledSampler(function, shapes, null, scope, capture, options, progress)


def prepare(
    model: Any,
    plan: Plan | str,
    refiner: Refiner | None = None,
    *,
    batch: int | Sequence[int] = 8,
    dtype: torch.dtype | None = None,
    guidance: float | None = None,
    shape: Sequence[int] | None = None,
    cond: Any = None,
    device: str | torch.device | None = None,
) -> tuple[Function, Shapes, Callable[[Any], Any]]:
    """The function to compile, what it takes, and what makes the null condition of a condition.

    Arguments and errors are those of ``compile``.
    """
    plan = as_plan(plan)
    wanted = _numbers_of_rows(batch)
    checks.function("model", model, "x, t, cond")
    if dtype is not None:
        dtype = checks.dtype("dtype", dtype)
    if device is not None:
        device = checks.device("device", device)
    if refiner is not None:
        checks.function("refiner", refiner, "x, t, cond, history")
    refiner = needed_refiner(plan, refiner)
    guide = model if isinstance(model, Guidance) else None
    field: Any = guide.field if guide else model
    scale: Any = guidance
    if scale is None:
        scale = guide.scale if guide else getattr(model, "defaults", {}).get("guidance", 1.0)
    if isinstance(scale, Tensor) and scale.numel() == 1 and not scale.is_meta:
        scale = scale.item()
    guidance = checks.number("guidance", scale)
    shape = getattr(field, "shape", None) if shape is None else shape
    if shape is None:
        raise ValueError("shape=None: the field has none; pass shape=(channels, height, width)")
    shape = checks.sizes("shape", shape)
    if cond is None and isinstance(field, Model) and field.card.get("condition"):
        cond = field.condition([""])
    for c in [cond] if isinstance(cond, np.ndarray) else tensors(cond):
        if not len(checks.tensor("cond", c, ("B", ...))):
            raise ValueError(f"cond={shown(c)}: an example needs a row at least")
    weight = next(field.parameters(), None) if isinstance(field, nn.Module) else None
    placed = tensors(cond) + ([] if weight is None else [weight])
    if device is None:
        device = placed[-1].device if placed else "cpu"
    for part in placed:
        if part.device != torch.device(device):
            whose = "the model" if part is weight else "cond"
            raise ValueError(f"device={str(device)!r}: {whose} is on {part.device}; move it there")
    kept = dtype or (weight.dtype if weight is not None else torch.float32)
    shapes = Shapes(
        shape=shape,
        batch=wanted,
        dtype=torch.float64 if kept == torch.float64 else torch.float32,
        device=torch.empty(0, device=device).device,  # with its index
        cond=slice_condition(cond, slice(1)),
        guidance=None if guidance == 1.0 and guide is None else guidance,
    )
    if shapes.guidance is not None:
        guide = guide or Guidance(field, guidance)  # checks
        if cond is None:
            raise ValueError("guidance needs a condition: pass an example as cond, or guidance=1")
    check_inputs(field, refiner, shapes.example(1)[0], shapes.cond)
    if refiner is not None:
        check_refiner(plan, refiner, guidance)
    warn_on_mismatch(plan, field, refiner, guidance)
    function = Function(
        plan,
        in_dtype(field, dtype),
        in_dtype(refiner, dtype),
        dtype=dtype,
        interval=guide.interval if guide else (0.0, 1.0),
        channels=guide.channels if guide else None,
    )

    def null(cond: Any) -> Any:
        return field.null_condition(cond) if guide is None or guide.null is None else guide.null

    return function.eval(), shapes, null


def _numbers_of_rows(batch: Any) -> tuple[int, ...]:
    wanted = {checks.whole("batch", n, 1) for n in (batch if checks.is_list(batch) else [batch])}
    if not wanted:
        raise ValueError(f"batch={shown(batch)}: must be a number of rows, or several")
    return tuple(sorted(wanted))


class CompiledSampler(Sampler):
    """What ``compile`` returns; called like ``flowturbo.sample``, without plan and model.

    It holds nothing that changes, so threads may share it: on the CPU they run side by side, on
    CUDA the replays of its graphs take turns.

    Attributes:
        field: the unguided field that the plan is run on, in its ``dtype``; compiled in the scope
            "network", so that ``flowturbo.sample`` may run other plans on it, at the numbers of
            rows that it is compiled for.
        report: of the warm-up, by number of rows where they differ: "seconds" to compile and
            capture, the largest "difference" of any pixel from the same function uncompiled and the
            "largest" pixel of that, "peak_bytes" of a call.
    """

    def __init__(
        self,
        function: Function,
        shapes: Shapes,
        null: Callable[[Any], Any],
        scope: str,
        capture: bool,
        options: Mapping[str, Any],
        progress: bool,
    ) -> None:
        check = getattr(function.field, "check_inputs", None)
        super().__init__(function.plan, shapes, function.refiner, check)
        self._null, self._compiler = null, Compiler()
        self._calls: dict[int, Callable[..., Tensor]] = {}
        import torch._dynamo  # slow to import
        from torch._inductor import config

        place = Place(shapes.device) if capture else None
        self.report: dict[str, Any] = {"scope": scope, "capture": capture}
        self.report |= {"seconds": {}, "difference": {}, "largest": {}, "peak_bytes": {}}
        limit = torch._dynamo.config.patch(recompile_limit=4 * len(shapes.batch) + 8)
        with config.patch(dict(options)), limit:
            sizes = tqdm(
                shapes.batch[::-1],  # the largest first: the others fit into its memory
                desc=f"compile {self.plan.name} ({scope})",
                disable=None if progress and scope != "none" else True,
            )
            for size in sizes:
                self._warm_up(function, size, scope, place)
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

    def null_condition(self, cond: Any) -> Any:
        """The unconditional condition of rows of ``cond``."""
        return self._null(cond)

    def _warm_up(self, function: Function, size: int, scope: str, place: Place | None) -> None:
        """Compile for ``size`` rows, and compare with the function as it is."""
        from torch._dynamo.exc import Unsupported, UserError

        if scope == "none" and place is None:
            self._calls[size] = function
            return
        null = None if self.shapes.guidance is None else self._null(self.shapes.cond)
        inputs = self.shapes.example(size, null)
        call = self._compiler.scoped(function, scope, f"sample{size}")
        start = time.perf_counter()
        with torch.no_grad():
            try:
                call(*inputs)
            except (Unsupported, UserError) as e:
                reason = str(e).strip().splitlines()[0]
                raise ValueError(
                    f"model: it cannot be compiled whole ({reason}); take scope='none', or a field "
                    "that neither looks at the values of tensors nor leaves PyTorch"
                ) from e
            self._calls[size] = Captured(call, inputs, place) if place else call
            _wait(self.shapes.device)
            self.report["seconds"][size] = time.perf_counter() - start
            self.report["peak_bytes"][size] = peak_bytes(lambda: call(*inputs), self.shapes.device)
            eager = function(*inputs)
            away = (self._calls[size](*inputs) - eager).abs().max()
            self.report["difference"][size] = float(away)
            self.report["largest"][size] = float(eager.abs().max())

    def _call(self, size: int, inputs: Inputs) -> Tensor:
        from torch._dynamo.exc import BackendCompilerFailed

        try:
            return self._calls[size](*inputs)
        except BackendCompilerFailed as e:
            if not isinstance(e.inner_exception, Recompiled):
                raise
        raise Recompiled(
            f"states {(size, *self.shapes.shape)}, batch {self.shapes.batch}: this sampler would "
            "have to be compiled again, for something that it was compiled with has changed "
            "(attributes of the model, threads, defaults of torch; TORCH_LOGS=recompiles tells); "
            "call flowturbo.compile anew"
        )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
