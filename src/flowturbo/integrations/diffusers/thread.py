"""One run of the scheduler for each thread."""

from __future__ import annotations

import copy
import threading
import weakref
from typing import TYPE_CHECKING

from torch import Tensor

from flowturbo.integrations.diffusers.grid import number, shortened
from flowturbo.integrations.diffusers.run import Run, places
from flowturbo.plan import Plan, Row
from flowturbo.refiner.binding import History
from flowturbo.sampling import Velocities
from flowturbo.types import JsonObject

if TYPE_CHECKING:
    from flowturbo.integrations.diffusers.fit import Fit
    from flowturbo.integrations.diffusers.hook import Link

__all__ = ["RunPerThread", "running"]

_RUNNING = threading.local()  # a weak reference to the scheduler that each thread used last


class RunPerThread:
    """Base class of the scheduler: a run for each thread, with its attributes and timesteps.

    A copy has a run of its own, which continues from the state of the original.
    """

    def __init__(self) -> None:
        self.link: Link | None = None  # to the hook of a refiner
        self.fit: Fit | None = None  # what the plan was fitted to
        self._here = threading.local()
        self._run = Run()

    @property
    def _run(self) -> Run:
        """The run of this thread; if it has set no timesteps, the latest of any thread."""
        run: Run = getattr(self._here, "run", self._latest)
        return run

    @_run.setter
    def _run(self, run: Run) -> None:
        self._here.run = self._latest = run
        self._announce()

    def __getstate__(self) -> JsonObject:
        state = {**vars(self), "_latest": copy.copy(self._run)}
        del state["_here"]
        return state

    def __setstate__(self, state: JsonObject) -> None:
        self.__dict__.update(state, _here=threading.local())

    def _announce(self) -> None:
        """Register this scheduler with hook and guider as the one that this thread runs."""
        if self.plan is not None:  # else it does not run yet
            _RUNNING.scheduler = weakref.ref(self)
        if self.link is not None:
            self.link.here.scheduler = self

    @property
    def timesteps(self) -> Tensor:
        """(K,) of the network."""
        return self._run.timesteps

    @property
    def sigmas(self) -> Tensor:
        """(K + 1,) the noise levels of the states; with ``invert_sigmas``, 1 minus them."""
        return self._run.sigmas

    @property
    def plan(self) -> Plan | None:
        """Of the timesteps that are set."""
        return self._run.plan

    @property
    def num_inference_steps(self) -> int | None:
        """The number of timesteps that are set."""
        return None if self.plan is None else len(self.plan)

    @property
    def begin_index(self) -> int | None:
        """Index of the first timestep, if it was set."""
        return self._run.begin

    @property
    def step_index(self) -> int | None:
        """The index of the timestep that the next ``step`` takes; None before the first."""
        return self._run.index

    @property
    def predicted(self) -> Tensor | None:
        """The clean state predicted at the last step."""
        return self._run.predicted

    @property
    def answer(self) -> Tensor | None:
        """The velocity of a refiner or a conditional evaluation here, once it is known."""
        return self._run.answer

    @answer.setter
    def answer(self, v: Tensor | None) -> None:
        self._run.answer = v

    @property
    def output(self) -> tuple[Tensor, bool] | None:
        """The network's first output at this timestep; see `Run`."""
        return self._run.output

    @output.setter
    def output(self, output: tuple[Tensor, bool]) -> None:
        self._run.output = output

    @property
    def next_row(self) -> Row | None:
        """The row of the plan that the next step takes."""
        return self._run.next_row

    @property
    def velocities(self) -> Velocities:
        """The velocities of the run so far that are still used."""
        return self._run.velocities

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this timestep: the table from there on is ``Plan.restrict`` of the plan.

        Raises:
            ValueError: if there is no such timestep.
        """
        if self.plan is not None and not 0 <= begin_index < len(self.plan):
            raise ValueError(
                f"begin_index={begin_index}: the timesteps are 0 to {len(self.plan) - 1}"
            )
        run = self._run
        self._run = Run(run.plan, run.timesteps, run.sigmas, begin=begin_index)

    def index_for_timestep(
        self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None
    ) -> int:
        """The index of ``timestep`` in ``self.timesteps``; of equal ones, only a view is unique.

        Args:
            timestep: one number. In a tensor of whole numbers, the timestep without its fraction.
            schedule_timesteps: timesteps to search instead.

        Raises:
            ValueError: if there is no such timestep, or several.
        """
        schedule = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = places(timestep, schedule)
        if len(found) != 1:
            raise ValueError(
                f"timestep={number('timestep', timestep):g}: {len(found) or 'none'} of the "
                f"timesteps {shortened(schedule.tolist())}; pass one of scheduler.timesteps, or "
                "call set_begin_index before"
            )
        return found[0]

    def refiner_input(self) -> tuple[float, History] | None:
        """Time and history of the next evaluation if it is a refiner's."""
        return self._run.refiner_input()


def running() -> RunPerThread | None:
    """The scheduler that this thread used last; None without one."""
    scheduler: RunPerThread | None = getattr(_RUNNING, "scheduler", lambda: None)()
    return scheduler
