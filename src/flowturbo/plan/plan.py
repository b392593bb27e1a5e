"""The plan: a few-step sampler as a table.

A plan is ``K`` evaluations of the velocity with times, an evaluator for each and a lower-triangular
matrix of weights. The state before evaluation ``k`` sits at ``times[k]``, and

    v_k = evaluator_k(x, t_k)
    x   = x + sum over j <= k of W[k, j] * v_j

An evaluation of a guided model takes two passes of the network, for the conditional velocity
``v_c`` and the unconditional ``v_u``; a "conditional" one takes the first alone. With
``d = v_c - v_u`` and the guidance scale ``w`` the update is

    x   = x + sum over j <= k of W[k, j] * v_c_j + (w - 1) * D[k, j] * d_j

where ``D``, the guidance weights, is 0 at conditional evaluations, and ``W`` for a plan without
them. One table thus serves a range of scales.

Euler, Runge-Kutta, Adams-Bashforth, the Heun, pseudo-corrector and refiner blocks of FlowTurbo
(Zhao et al. 2024, arXiv 2409.18128) and fitted solvers are all such tables; a step of two
evaluations is two rows, and times repeat where one of them only corrects the state. Time runs from
0 (noise) to 1 (data), or down for inversion.

The module is long because `Plan` is one class, and half of it is the documentation of its
constructors; the other modules of this package build and check the columns.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias, TypeGuard, Unpack

import numpy as np
import numpy.typing as npt

from flowturbo import checks
from flowturbo.digests import hexdigest
from flowturbo.files import atomic_write, printable
from flowturbo.path import Times
from flowturbo.plan import checks as _checks
from flowturbo.plan import display, notation
from flowturbo.plan.grid import Grid, GridOptions
from flowturbo.plan.restrict import end_time, restricted, start_time, truncated
from flowturbo.plan.rows import Row, rows_of
from flowturbo.plan.solvers import SOLVERS
from flowturbo.plan.solvers.flowturbo import chain
from flowturbo.plan.solvers.registry import checked_count
from flowturbo.types import ReadOnlyJson, Scheduler

__all__ = ["Plan", "Row", "as_plan", "is_file_name"]

Points: TypeAlias = Sequence[float] | Times | None
COLUMNS = ("times", "evaluators", "weights", "model_times", "last_velocity", "guidance_weights")


def as_plan(plan: object) -> Plan:
    """``plan`` itself, its notation parsed or its file read; else ``ValueError``."""
    if isinstance(plan, Plan):
        return plan
    if is_file_name(plan):
        try:
            return Plan.load(plan)
        except OSError as e:
            raise ValueError(f"plan={checks.shown(plan)}: {e}") from e
    if not isinstance(plan, str):
        raise ValueError(
            f"plan={checks.shown(plan)}: must be a Plan, the notation of one ('AB2:8'), or the "
            "path of its .json file"
        )
    return Plan.parse(plan)


def is_file_name(plan: object) -> TypeGuard[str | Path]:
    """Whether ``plan`` is the path of a plan's file, and not its notation."""
    return isinstance(plan, Path) or (isinstance(plan, str) and plan.endswith(".json"))


@checks.known_keywords
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan:
    """A sampler of ``K`` evaluations, a frozen value; ``print(plan)`` shows the table.

    Attributes:
        times: (K + 1,) float64 in [0, 1], ascending or descending: the time of the state before
            each evaluation, and that of the result; K is at most 2000.
        evaluators: K of "model", "conditional" or "refiner"; the first is "model". A conditional
            evaluation is one of the model without the unconditional branch of guidance; without
            guidance it is an ordinary one.
        weights: (K, K) float64, lower triangular: row ``k`` is the update after evaluation ``k``;
            from -1e4 to 1e4, since larger ones amplify the rounding of float32.
        model_times: (K,) float64 in [0, 1], the time argument of each evaluator; by default
            ``times[:K]``.
        last_velocity: for a refiner row, the index of the evaluation that is the last known
            velocity; ``k - 1`` by default and for all model rows.
        guidance_weights: (K, K) float64, lower triangular: the weights of the differences of the
            branches, 0 at conditional evaluations; by default the last difference is reused in
            place of theirs, and the rest is as in ``weights``.
        name: in the notation of ``parse`` where there is one.
        info: how the plan was made, its measured error and the like: any JSON object. Entries that
            the library reads are checked: "guidance" is [lowest, highest], "error" and "baseline"
            have "rmse" and "median", "baseline" also "name"; "inverts" is
            the notation of the forward plan that a plan of a round trip inverts.

    Raises:
        ValueError: if an argument is outside its range.
    """

    times: Times
    evaluators: tuple[str, ...]
    weights: npt.NDArray[np.float64]
    model_times: Times = None  # type: ignore[assignment]
    last_velocity: tuple[int, ...] = None  # type: ignore[assignment]
    guidance_weights: npt.NDArray[np.float64] | None = None
    name: str = "plan"
    info: ReadOnlyJson = field(default_factory=dict)

    def __post_init__(self) -> None:
        times = _checks.times(self.times)
        n = len(times) - 1
        evaluators = _checks.evaluators(self.evaluators, n)
        weights = _checks.weights(self.weights, n)
        model_times = _checks.model_times(self.model_times, times)
        last_velocity = _checks.last_velocity(self.last_velocity, evaluators)
        guidance_weights = _checks.guidance_weights(self.guidance_weights, weights, evaluators)
        if not isinstance(self.name, str) or not self.name.isprintable() or len(self.name) > 4000:
            raise ValueError(f"name={checks.shown(self.name)}: must be one line of text")
        for array in (times, weights, model_times, guidance_weights):
            if array is not None:
                array.flags.writeable = False
        values = (times, evaluators, weights, model_times, last_velocity, guidance_weights)
        for key, value in zip(COLUMNS, values, strict=True):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "info", _checks.info(self.info))

    # -- properties ---------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.evaluators)

    @property
    def nfe(self) -> dict[str, int]:
        """Evaluations of each kind: ``{"model": m, "conditional": c, "refiner": r}``."""
        return {name: self.evaluators.count(name) for name in _checks.EVALUATORS}

    def passes(self, guidance: float) -> int:
        """Passes of the network for an image at a guidance scale.

        Two for each evaluation of a guided model, one without guidance (scale 1) and for each
        conditional evaluation, none for those of a refiner.
        """
        branches = 1 if checks.number("guidance", guidance) == 1 else 2
        return branches * self.nfe["model"] + self.nfe["conditional"]

    def cost(
        self,
        *,
        model: float = 1.0,
        conditional: float | None = None,
        refiner: float = 0.0,
        fixed: float = 0.0,
    ) -> float:
        """Cost of one run, from the cost of each kind of evaluation and a ``fixed`` cost.

        A conditional evaluation costs half of the model's by default.
        """
        model = checks.number("model", model, 0)
        conditional = model / 2 if conditional is None else conditional
        each = {"conditional": conditional, "refiner": refiner, "fixed": fixed}
        conditional, refiner, fixed = (checks.number(k, v, 0) for k, v in each.items())
        count = self.nfe
        all_of_model = count["model"] * model + count["conditional"] * conditional
        return all_of_model + count["refiner"] * refiner + fixed

    def seen_by(self, k: int) -> range:
        """The evaluations in the history of the refiner of row ``k``, oldest first."""
        return range(self.last_velocity[checks.whole("k", k, 0, len(self) - 1)] + 1)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The table by rows, as the sampling loop reads it."""
        return rows_of(self)

    @property
    def frees(self) -> tuple[tuple[int, ...], ...]:
        """For each row, the evaluations that no later row uses, so that memory can be freed."""
        return tuple(row.frees for row in self.rows)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the table, without name and info."""
        return hexdigest(repr(self._key[:-1]))

    def with_info(self, info: ReadOnlyJson) -> Plan:
        """The same table with another ``info``."""
        return replace(self, info=info)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return self._key == other._key and self.info == other.info

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def _key(self) -> tuple[object, ...]:
        arrays = [self.times, self.weights, self.model_times]
        if self.guidance_weights is not None:
            arrays.append(self.guidance_weights)
        return (*(a.tobytes() for a in arrays), self.evaluators, self.last_velocity, self.name)

    def __reduce__(self) -> tuple[object, ...]:
        return Plan.from_json, (self.to_json(),)

    def __repr__(self) -> str:
        return f"<Plan {display.headline(self)}>"

    def __str__(self) -> str:
        return display.table(self)

    # -- constructors -------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str, **grid: Unpack[GridOptions]) -> Plan:
        """A plan from its notation; case and spaces do not matter.

        - ``H1P5R3``, ``E8``, ``[H1P1R1]x2``, ``E2H2P3``: see ``blocks``;
        - ``AB2:8``, ``RK4:2``: a solver of ``flowturbo.plan.solvers.SOLVERS`` with its number of
          evaluations or steps;
        - ``AB2:FFCFR``: a solver of one evaluation per step, full (F), conditional (C) or of a
          refiner (R);
        - either with a shift of the grid, ``AB2:8@1.6``.

        Args:
            text: the notation.
            grid: ``shift`` of the grid, above 0, 1 is uniform (`flowturbo.path.shifted`);
                ``direction``, "forward" from noise to data, or "backward"; ``start`` and ``end``,
                the times that the plan runs between, by default the whole path; ``times``, the
                points of the grid instead, in the order in which they are run.

        Raises:
            ValueError: if the text is not a plan (the message shows where) or the grid is invalid.
        """
        solver, count, suffix, pattern = notation.parse(text)
        points = Grid(**grid)
        if suffix is not None:
            if points.shift != 1.0:
                raise ValueError(
                    f"plan {text!r} and shift={points.shift} both give the shift; pass one"
                )
            points = replace(points, shift=suffix)
        if isinstance(count, str):
            return cls(**chain(solver, count, points))
        columns = SOLVERS[solver].columns(count, points)
        if pattern:
            kinds = {letter: name for name, letter in _checks.EVALUATORS.items()}
            columns["evaluators"] = tuple(kinds[letter] for letter in pattern)
            columns["name"] = columns["name"].replace(f":{count}", f":{pattern}", 1)
        return cls(**columns)

    @classmethod
    def blocks(cls, text: str, *, shipped: bool = False, **grid: Unpack[GridOptions]) -> Plan:
        """The blocks of the paper in any order, one per interval of the grid.

        Each passes on a velocity. H, Heun: 2 evaluations, passes on the second, at the predicted
        state. P, pseudo corrector: 1 evaluation, predicts with the velocity passed to it; as the
        first block it is H. R, velocity refiner: H with 2 refiner evaluations. E, Euler: 1
        evaluation, passes it on (a P after it predicts with a velocity one interval old).
        ``[H1P1]x2`` repeats.

        Args:
            text: such as "H1P5R3".
            shipped: R blocks as in the sampler that the paper's authors ship: both refiner calls
                use the velocity passed to the block, the second offset is added to the first
                result, and the first result is passed on. By default the second call uses the
                first result, and its own result is passed on.
            grid: as in ``parse``.

        Raises:
            ValueError: if the text is not blocks, R comes first, or the grid is invalid.
        """
        name, letters, suffix, _ = notation.parse(text)
        if not isinstance(letters, str) or suffix is not None:
            raise ValueError(f"plan {text!r}: only blocks such as 'H1P5R3' here; use Plan.parse")
        shipped = checks.flag("shipped", shipped)
        return cls(**chain(name, letters, Grid(**grid), shipped=shipped))

    @classmethod
    def euler(cls, steps: int, **grid: Unpack[GridOptions]) -> Plan:
        """Euler: order 1, 1 evaluation per step; ``grid`` as in ``parse``."""
        return cls.blocks(f"E{checked_count('steps', steps)}", **grid)

    @classmethod
    def heun(cls, steps: int, **grid: Unpack[GridOptions]) -> Plan:
        """Heun: order 2, 2 evaluations per step; ``grid`` as in ``parse``."""
        return cls.blocks(f"H{checked_count('steps', steps, 2)}", **grid)

    @classmethod
    def midpoint(cls, steps: int, **grid: Unpack[GridOptions]) -> Plan:
        """Explicit midpoint: order 2, 2 evaluations per step; ``grid`` as in ``parse``."""
        return cls(**SOLVERS["MID"].columns(steps, Grid(**grid)))

    @classmethod
    def rk4(cls, steps: int, **grid: Unpack[GridOptions]) -> Plan:
        """Classic Runge-Kutta: order 4, 4 evaluations per step; ``grid`` as in ``parse``."""
        return cls(**SOLVERS["RK4"].columns(steps, Grid(**grid)))

    @classmethod
    def rk38(cls, steps: int, **grid: Unpack[GridOptions]) -> Plan:
        """Kutta's 3/8 rule: order 4, 4 evaluations per step; ``grid`` as in ``parse``."""
        return cls(**SOLVERS["RK38"].columns(steps, Grid(**grid)))

    @classmethod
    def adams_bashforth(
        cls,
        evaluations: int,
        order: int = 2,
        starter: Literal["low", "runge-kutta"] = "low",
        **grid: Unpack[GridOptions],
    ) -> Plan:
        """Adams-Bashforth on any grid: one evaluation per step, none at the end of the grid.

        Args:
            evaluations: number of evaluations, the start included.
            order: 2, 3 or 4.
            starter: "low" begins with steps of lower order (order 2 overall); "runge-kutta" with
                ``order - 1`` Runge-Kutta steps of ``order`` evaluations each.
            grid: as in ``parse``.

        Raises:
            ValueError: if an argument is outside its range, or there are too few evaluations for
                the start and one more step.
        """
        order = checks.whole("order", order, 2, 4)
        checks.one_of("starter", starter, ("low", "runge-kutta"))
        solver = SOLVERS[f"AB{order}{'RK' if starter == 'runge-kutta' else ''}"]
        return cls(**solver.columns(evaluations, Grid(**grid)))

    @classmethod
    def unipc(cls, steps: int, order: int = 2, **grid: Unpack[GridOptions]) -> Plan:
        """UniPC (bh2) of order 2 or 3: predictor and corrector, one evaluation per step.

        The corrector of a step shares its evaluation with the next predictor; the last step, of
        order 1, has none. ``grid`` as in ``parse``; backward in the predicted noise.
        """
        order = checks.whole("order", order, 2, 3)
        return cls(**SOLVERS[f"UNIPC{order}"].columns(steps, Grid(**grid)))

    @classmethod
    def dpm(cls, steps: int, order: int = 2, **grid: Unpack[GridOptions]) -> Plan:
        """DPM-Solver++ multistep (2M or 3M), one evaluation per step; ``grid`` as in ``unipc``."""
        order = checks.whole("order", order, 2, 3)
        return cls(**SOLVERS[f"DPM{order}"].columns(steps, Grid(**grid)))

    @classmethod
    def from_scheduler(
        cls,
        scheduler: Scheduler,
        steps: int | None = None,
        *,
        sigmas: Points = None,
        mu: float | None = None,
        timesteps: Points = None,
    ) -> Plan:
        """The table of a flow scheduler of diffusers, which is not changed.

        It must be deterministic and linear: FlowMatchEuler, FlowMatchHeun, and UniPC, DPMSolver
        (multistep, singlestep) and DEIS with ``prediction_type="flow_prediction"`` and
        ``use_flow_sigmas=True``. The plan starts at ``times[0] = 1 - sigmas[0]``, which may be
        slightly above 0, from unscaled noise, like the scheduler's own loop.

        Args:
            scheduler: a flow scheduler; its current timesteps are not used.
            steps: as in its ``set_timesteps``; by default the length of ``sigmas`` or
                ``timesteps``, else 8.
            sigmas: passed to ``set_timesteps``, if it accepts them.
            mu: likewise; for dynamic shifting.
            timesteps: likewise.

        Raises:
            ValueError: one line with the reason, if the scheduler has no such table.
        """
        from flowturbo.plan.from_scheduler import from_scheduler

        return cls(**from_scheduler(scheduler, steps, sigmas=sigmas, mu=mu, timesteps=timesteps))

    def restrict(self, t: float) -> Plan:
        """The plan from time ``t`` on, for a noised image at ``t`` (image-to-image).

        Evaluations before ``t`` are dropped. The first row is an Euler step from ``t`` to the next
        time of the plan. Rows that use a dropped velocity become Adams-Bashforth steps over the
        available ones, of no higher order than the row they replace (at most 3); other rows are
        kept. An evaluation that only corrected the state by a dropped velocity is dropped too, and
        replaced by the next evaluation at its time. Rows whose weights do not sum to their step, as
        in fitted plans, are replaced too, since they compensate for errors of earlier rows. A
        refiner row needs velocities at two distinct times before it; without them it becomes a
        model row.

        Args:
            t: from ``times[0]``, which gives the plan itself, to ``times[-1]``, exclusive; within
                1e-9 of a time of the plan it is that time.

        Raises:
            ValueError: if ``t`` is not in that range.
        """
        time = start_time(t, self.times, self.name)
        if time == self.times[0]:
            return self
        columns = restricted(time, **{name: getattr(self, name) for name in COLUMNS})
        info = {"restricted_to": time, "from": dict(self.info)}
        return Plan(**columns, name=f"{self.name} from {time:g}", info=info)

    def until(self, t: float) -> Plan:
        """The plan up to time ``t``, to invert an image as far as there.

        The evaluations up to ``t`` are kept, and so are their updates, except the one that passes
        ``t``: it is replaced by an Adams-Bashforth step to ``t`` of no higher order (at most 3).
        UniPC and the blocks P correct a state together with the step from it. A plan that ends
        there lacks that correction, so use ``parse(..., end=t)`` for them.

        Args:
            t: from ``times[0]``, exclusive, to ``times[-1]``, which gives the plan itself; within
                1e-9 of a time of the plan it is that time.

        Raises:
            ValueError: if ``t`` is not in that range.
        """
        time = end_time(t, self.times, self.name)
        if time == self.times[-1]:
            return self
        columns = truncated(time, self)
        info = {"until": time, "from": dict(self.info)}
        return Plan(**columns, name=f"{self.name} until {time:g}", info=info)

    # -- on disk ------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The plan as JSON, one row per line, floats exact."""
        from flowturbo.plan import io

        return io.dumps(self)

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "plan") -> Plan:
        """The plan that ``to_json`` wrote; ``source`` names the text in messages.

        Raises:
            ValueError: if the text is not such a plan or of another version.
        """
        if not isinstance(text, (str, bytes)):
            raise ValueError(f"text={checks.shown(text)}: must be the JSON of a plan")
        from flowturbo.plan import io

        columns = io.loads(text, source)
        try:
            return cls(**columns)
        except ValueError as error:
            raise ValueError(f"{source}: not a plan of this library: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a JSON file atomically (``OSError`` if it cannot be written)."""
        with atomic_write(checks.path("path", path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan from a JSON file.

        Raises:
            ValueError: if the file, named in the message, does not contain a plan.
            OSError: if it cannot be read.
        """
        from flowturbo.plan import io
        from flowturbo.schema import read_bytes

        content = read_bytes(checks.path("path", path), io.MOST_BYTES)
        return cls.from_json(content, source=printable(str(path)))
