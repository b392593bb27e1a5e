"""One run of the scheduler for each thread."""

from __future__ import annotations

import copy
import threading
from typing import Any

from torch import Tensor

from flowturbo.integrations.diffusers.run import Run
from flowturbo.plan import Plan
from flowturbo.types import JsonObject

__all__ = ["RunPerThread"]


class RunPerThread:
    """The part of the scheduler that keeps a run for each thread, and shows the one at work.

    A copy has a run of its own, which goes on from the state of the original.
    """

    def __init__(self) -> None:
        self.link: Any = None  # to the hook of a refiner
        self._here = threading.local()
        self._run = Run()

    @property
    def _run(self) -> Run:
        """The run of this thread; in one that has set no timesteps, the one set last."""
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
        """Tell the hook that this is the scheduler at work in this thread."""
        if self.link is not None:
            self.link.here.scheduler = self

    @property
    def timesteps(self) -> Tensor:
        """(K,) what the network is given."""
        return self._run.timesteps

    @property
    def sigmas(self) -> Tensor:
        """(K + 1,) the noise levels of the states, or 1 less them with ``invert_sigmas``."""
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
        """Where the run starts, if that was said."""
        return self._run.begin

    @property
    def step_index(self) -> int | None:
        """The timestep that the next ``step`` takes; None before the first."""
        return self._run.index

    @property
    def predicted(self) -> Tensor | None:
        """The clean state that the last step pointed to."""
        return self._run.predicted

    @property
    def answer(self) -> Tensor | None:
        """What the refiner said at this timestep, if it has been asked."""
        return self._run.answer

    @answer.setter
    def answer(self, v: Tensor | None) -> None:
        self._run.answer = v
