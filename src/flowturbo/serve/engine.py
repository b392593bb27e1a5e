"""The engine: tasks of many clients on one model, sharing its batches, in bounded number."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

from flowturbo import checks, noise
from flowturbo.models.model import Model
from flowturbo.progress import Progress, Report
from flowturbo.refiner.binding import Refiner
from flowturbo.refiner.resolve import own_refiner
from flowturbo.sampling import sample
from flowturbo.serve.batching import LARGEST, BatchedField, BatchedRefiner, Batcher, Member, Tick
from flowturbo.serve.compilation import CompiledCalls
from flowturbo.tasks.generate import check_model, condition_of

__all__ = ["Busy", "Cancelled", "Engine", "Expired", "Job"]

T = TypeVar("T")
BATCH_SIZES = (2, 4, 8, 16)  # that graphs are made for, by default
MEMORY = 32  # finished requests that the pace is a mean of


class Busy(Exception):
    """The queue is full, or the engine is closing.

    Attributes:
        retry_after: seconds after which a place should be free.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Cancelled(Exception):
    """The request was cancelled."""


class Expired(Exception):
    """The request did not finish within its time."""


@dataclass(eq=False)
class Job(Generic[T]):
    """A request that was accepted.

    Attributes:
        images: number of images that it generates.
        timeout: seconds from ``submitted`` on until it expires; None is no limit.
        future: resolves to what the task returns, or raises what it raises, `Cancelled` or
            `Expired`.
        submitted: when it was accepted, in seconds of ``time.monotonic``.
        started: when it left the queue; None while it waits.
    """

    images: int
    timeout: float | None
    future: Future[T] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    _error: Cancelled | Expired | None = None
    _place: Future[None] | None = None  # in the queue
    _member: Member | None = None  # of the batches, from when it started

    @property
    def begun(self) -> bool:
        """Whether it has requested an evaluation: its input has been checked by then."""
        return self._member is not None and self._member.begun

    @property
    def ended(self) -> bool:
        """Whether it was cancelled or its time is over."""
        return self._error is not None

    def cancel(self) -> None:
        """End it: in the queue at once, else before its next evaluation; not if it is over."""
        self._end(Cancelled("the request was cancelled"))

    def expire(self) -> None:
        """End it in the same way because its time is over; one that runs checks the time itself."""
        self._end(Expired(f"the request did not finish within {self.timeout:g} seconds"))

    def check(self) -> None:
        """Raise `Cancelled` or `Expired` if it has to end."""
        if self.timeout is not None and time.monotonic() > self.submitted + self.timeout:
            self.expire()
        if self._error is not None:
            raise self._error

    def _end(self, error: Cancelled | Expired) -> None:
        self._error = self._error or error
        if self._place is not None:
            self._place.cancel()

    def result(self, timeout: float | None = None) -> T:
        """What the task returned; waits for it."""
        return self.future.result(timeout)


@checks.known_keywords
class Engine:
    """Runs tasks on ``model``, all in one running batch.

    A task is any function that samples the model it is given, such as
    ``lambda model: ft.generate(model, ["red apple"])``; plans, scales, sizes and tasks may differ.

    Attributes:
        model: the model that is passed to tasks, whose calls share the running batch.

    Args:
        model: from `flowturbo.load`.
        refiner: for plans with refiner evaluations; by default the one that came with the model.
        largest_batch: largest number of rows in a batch, at least 1; a guided image takes two.
        batch_sizes: sizes that every batch is padded to, instead. With a single size, an image is
            the same bit for bit, whatever else is in its batch.
        compile: compile the network for each of ``batch_sizes``, by default `BATCH_SIZES` up to
            ``largest_batch``; this takes minutes, in `warm_up`.
        running: largest number of requests that run at once, at least 1.
        queue: largest number of images in waiting and running requests, at least 1.
        observe: called with each `flowturbo.serve.batching.Tick`, on another thread.

    Raises:
        ValueError: if an argument is not as described.
    """

    def __init__(
        self,
        model: Model,
        *,
        refiner: Refiner | None = None,
        largest_batch: int = LARGEST,
        batch_sizes: list[int] | None = None,
        compile: bool = False,
        running: int = 32,
        queue: int = 256,
        observe: Callable[[Tick], None] | None = None,
    ) -> None:
        check_model(model)
        running = checks.whole("running", running, 1)
        self.queue = checks.whole("queue", queue, 1)
        self._compiled, network, compiled = None, None, None
        if checks.flag("compile", compile):
            if batch_sizes is None:
                largest_batch = checks.whole("largest_batch", largest_batch, 1)
                batch_sizes = [*(n for n in BATCH_SIZES if n < largest_batch), largest_batch]
            self._compiled = CompiledCalls()
            network = self._compiled.of(model, "network")
            compiled = partial(self._compiled.of, name="refiner")
        self._batcher = Batcher(largest_batch, batch_sizes, observe)
        refiner = own_refiner(model) if refiner is None else refiner
        shared = None if refiner is None else BatchedRefiner(refiner, self._batcher, compiled)
        self.model = cast(Model, BatchedField(model, self._batcher, shared, network))
        self._threads = ThreadPoolExecutor(running, "flowturbo-request")
        self._lock = threading.Condition()
        self._jobs: set[Job[Any]] = set()
        self._closing = False
        self._pace: list[tuple[float, int]] = []  # when requests finished, and their images

    @property
    def images(self) -> int:
        """Images of requests that wait or run, without those that were ended."""
        with self._lock:
            return sum(job.images for job in self._jobs if not job.ended)

    @property
    def alive(self) -> bool:
        """Whether its batches still run; otherwise no request is finished."""
        return self._batcher.alive

    @property
    def closing(self) -> bool:
        """Whether it accepts no more requests."""
        return self._closing

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        with self._lock:
            return sum(job.started is None for job in self._jobs)

    @property
    def running(self) -> int:
        """Requests that run."""
        with self._lock:
            return sum(job.started is not None for job in self._jobs)

    def warm_up(self, report: Report | None = None) -> None:
        """Run batches of each size, the largest first, and compile them if ``compile`` is set.

        Memory, kernels, graphs and the autoencoder are then ready for the first requests. These
        batches are not observed, nor counted in the pace of requests.

        Args:
            report: called with a `Progress` after each size.

        Raises:
            ValueError: if the network or the refiner cannot be compiled whole, or the autoencoder
                is missing, damaged or of other states.
            ImportError: if the autoencoder needs diffusers, and that is missing.
        """
        _ = self.model.codec
        sizes = self._batcher.sizes or [self._batcher.largest]
        observe, self._batcher.observe = self._batcher.observe, None
        try:
            for done, size in enumerate(reversed(sizes), 1):
                self.submit(partial(_draw, images=size)).result()
                if report:
                    report(Progress("warm-up", done, len(sizes), batch=size))
        finally:
            self._batcher.observe, self._pace = observe, []
        if self._compiled is not None:
            self._compiled.close()

    def submit(
        self, task: Callable[[Model], T], *, images: int = 1, timeout: float | None = None
    ) -> Job[T]:
        """Accept a task, to run when a thread is free.

        Args:
            task: called with the model, whose evaluations share the running batch.
            images: number of images that it generates, from 1.
            timeout: seconds until it expires, above 0.

        Raises:
            ValueError: if an argument is not as described, or there are more images than the queue
                can ever hold.
            Busy: if the queue has no room for the images at present, or the engine is closing.
        """
        images = checks.whole("images", images, 1)
        if timeout is not None:
            timeout = checks.number("timeout", timeout, above=0)
        if images > self.queue:
            raise ValueError(f"images={images}: the queue takes {self.queue}; ask for fewer")
        job: Job[T] = Job(images, timeout)
        with self._lock:
            if self._closing:
                raise Busy("the server is shutting down", 1.0)
            there = self.images
            if there + images > self.queue:
                raise Busy(
                    f"{there} images wait or run, and {images} more exceed the queue of "
                    f"{self.queue}",
                    self._seconds_of(images),
                )
            self._jobs.add(job)
            job.future.set_running_or_notify_cancel()  # only the engine ends it
            job._place = self._threads.submit(self._run, job, task)
        job._place.add_done_callback(lambda place: self._withdraw(job, place))
        return job

    def close(self, timeout: float | None = None) -> bool:
        """Accept no more requests, let the accepted ones finish, and stop.

        Args:
            timeout: seconds after which those that still wait or run are cancelled; None is no
                limit.

        Returns:
            Whether everything finished.
        """
        with self._lock:
            self._closing = True
            finished = self._lock.wait_for(lambda: not self._jobs, timeout)
            for job in list(self._jobs):
                job.cancel()
        self._threads.shutdown()
        self._batcher.close()
        return finished

    def _run(self, job: Job[T], task: Callable[[Model], T]) -> None:
        with self._lock:
            job.started = time.monotonic()
        try:
            with self._batcher.member(job.check) as job._member:
                job.check()
                made = task(self.model)
        except BaseException as e:
            self._finish(job)
            job.future.set_exception(e)
        else:
            self._finish(job)
            job.future.set_result(made)

    def _withdraw(self, job: Job[Any], place: Future[None]) -> None:
        """End a job that was cancelled in the queue."""
        if not place.cancelled():
            return
        with self._lock:
            self._jobs.discard(job)
            self._lock.notify_all()
        try:
            job.check()
        except (Cancelled, Expired) as e:
            job.future.set_exception(e)

    def _finish(self, job: Job[Any]) -> None:
        with self._lock:
            self._jobs.discard(job)
            self._pace = [*self._pace[1 - MEMORY :], (time.monotonic(), job.images)]
            self._lock.notify_all()

    def _seconds_of(self, images: int) -> float:
        """How long it takes until ``images`` places are free, at the pace of the last requests."""
        if len(self._pace) < 2:
            return 1.0
        done = sum(n for _, n in self._pace[1:])
        return images * (self._pace[-1][0] - self._pace[0][0]) / done


def _draw(model: Model, images: int) -> None:
    """Call the network, and the refiner if there is one, on ``images`` rows."""
    cond = condition_of(model, [""] * images)
    x = noise.draw(range(images), model.shape, device=model.device)
    sample("E1", model, x, cond)
    refiner = own_refiner(model)
    if refiner is not None:
        scale = getattr(refiner, "guidance_range", (1.0, 1.0))[0]
        sample("E2R2", model, x, cond, guidance=scale, refiner=refiner)
