"""The processes of a run: one, or those that ``torchrun`` or ``accelerate launch`` started.

All of them train the same network on data of their own; only the first writes, and the others wait
for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Union, cast

import torch
from torch import nn

from flowturbo.checks import shown
from flowturbo.files import claim, exclusive
from flowturbo.types import JsonObject

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

__all__ = ["FORMAT", "Processes", "Tracker"]

FORMAT = 2  # of the folder of a run, and of how what it holds is computed

WAIT = timedelta(days=7)  # of a process for what the first does, such as all trajectories

PROJECT = "flowturbo"  # that trackers file runs under

T = TypeVar("T")
Tracker: TypeAlias = Union[str, "GeneralTracker"]
"""An experiment tracker of accelerate, or the name of one."""


class Processes:
    """This process among those of the run.

    Args:
        trackers: experiment trackers, by name ("tensorboard", "wandb") or as accelerate's class.
        out: folder for those that write files.

    Attributes:
        device: where this process computes.
        index: its number, from 0.
        count: number of processes.

    Raises:
        ImportError: if accelerate is missing.
        ValueError: if the processes do not work together, accelerate is configured to split the
            network, or a tracker is unknown or not installed.
    """

    def __init__(self, trackers: Sequence[Tracker] = (), out: Path | None = None) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs
        except ImportError as e:
            raise ImportError("training needs accelerate: pip install 'flowturbo[train]'") from e
        started = int(os.environ.get("WORLD_SIZE", "1"))
        alone = (
            started > 1 and not torch.accelerator.is_available()
        )  # accelerate would look for one
        log_with = _checked_trackers(trackers)
        self._accelerator = Accelerator(  # a run decides on the precision
            cpu=alone,
            mixed_precision="no",
            log_with=log_with or None,
            project_dir=out,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        )
        self.tracked = bool(log_with)
        self.device: torch.device = self._accelerator.device
        self.index: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        if self.count != started:
            raise ValueError(
                f"{started} processes were started, and accelerate makes {self.count} of them work "
                "together; start them with torchrun, or with 'accelerate launch --multi_gpu'"
            )
        kind = str(self._accelerator.distributed_type.value)
        if kind != "NO" and not kind.startswith("MULTI_"):
            raise ValueError(
                f"accelerate is set up for {kind}: each process must hold the whole network; "
                "choose multi-GPU or multi-CPU in 'accelerate config'"
            )

    def first(self, do: Callable[[], T]) -> T:
        """What ``do`` returns, or raises, in the first process; the others do nothing."""
        result: T | None = None
        error: Exception | None = None
        if self.index == 0:
            try:
                result = do()
            except Exception as e:
                if self.count == 1:
                    raise
                known = isinstance(e, (ValueError, OSError, ImportError))
                error = e if known else RuntimeError(f"{type(e).__name__}: {e}")
        if self.count > 1:
            from accelerate.utils import broadcast_object_list

            result, error = broadcast_object_list([result, error])
        if error is not None:
            raise error
        return cast(T, result)

    def in_turn(self, do: Callable[[], T]) -> T:
        """What ``do`` returns here; the first process does it before the others."""
        made: list[T] = []
        self.first(lambda: made.append(do()))
        return made[0] if made else do()

    @contextmanager
    def exclusive(self, folder: Path) -> Iterator[None]:
        """Hold ``folder`` for this run; raises as `flowturbo.files.exclusive`."""
        with ExitStack() as held:
            self.first(lambda: held.enter_context(exclusive(folder)))
            yield

    @contextmanager
    def tracking(self, config: JsonObject) -> Iterator[None]:
        """Start the trackers of a run with this configuration, and finish them at the end."""
        if self.tracked:
            self._accelerator.init_trackers(PROJECT, config)
        try:
            yield
        finally:
            if self.tracked and self.index == 0:
                for tracker in self._accelerator.trackers:
                    tracker.finish()

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step with the trackers, in the first process."""
        if self.tracked:
            self._accelerator.log(dict(values), step=step)

    def claim(self, path: Path, made: dict[str, JsonObject], *, empty: bool = False) -> str:
        """Write to ``path`` what determines a run, and its number of processes.

        A run that left nothing to resume (``empty``) is replaced.

        Returns:
            the same as a text.

        Raises:
            ValueError: if ``path`` holds something else, naming what differs.
        """
        made = {**made, "run": {"format": FORMAT, "processes": self.count}}
        self.first(lambda: claim(path, made, empty=empty))
        return json.dumps(made, sort_keys=True)

    def parallel(self, network: nn.Module) -> nn.Module:
        """``network`` on the device, to be called in its place: it averages gradients."""
        return cast(nn.Module, self._accelerator.prepare_model(network))

    def synchronized(self, network: nn.Module, now: bool) -> AbstractContextManager[object]:
        """A context in which ``network``, of `parallel`, averages gradients if ``now``, else adds
        them up.
        """
        return nullcontext() if now else self._accelerator.no_sync(network)


def _checked_trackers(trackers: Sequence[Tracker]) -> list[Tracker]:
    """``trackers``, where accelerate knows them and they are installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    there = [str(name) for name in get_available_trackers()]
    if isinstance(trackers, str):
        raise ValueError(f"trackers={trackers!r}: must be a list, such as [{trackers!r}]")
    for tracker in trackers:
        if isinstance(tracker, GeneralTracker) or tracker in there:
            continue
        if tracker in known:
            raise ValueError(f"trackers={shown(tracker)}: not installed; pip install {tracker}")
        raise ValueError(f"trackers={shown(tracker)}: must be of {', '.join(known)}")
    return list(trackers)
