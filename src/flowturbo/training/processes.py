"""The processes of a run: one, or those that ``torchrun`` or ``accelerate launch`` started.

All of them compute the same network on data of their own; the first alone writes, and what it does
the others wait for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from flowturbo.files import claim, exclusive

__all__ = ["FORMAT", "Processes"]

FORMAT = 2  # of the folder of a run, and of how what it holds is computed

T = TypeVar("T")


class Processes:
    """This process among those of the run.

    Attributes:
        device: where this one computes.
        index: of this one, from 0.
        count: how many there are.

    Raises:
        ImportError: if accelerate is missing.
        ValueError: if they do not work together, or accelerate is to split the network.
    """

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as e:
            raise ImportError("training needs accelerate: pip install 'flowturbo[train]'") from e
        started = int(os.environ.get("WORLD_SIZE", "1"))
        alone = started > 1 and not torch.accelerator.is_available()  # accelerate needs to be told
        self._accelerator = Accelerator(cpu=alone, mixed_precision="no")  # of which a run decides
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
        outcome: list[Any] = [None, None]
        if self.index == 0:
            try:
                outcome[0] = do()
            except Exception as e:
                if self.count == 1:
                    raise
                known = isinstance(e, (ValueError, OSError, ImportError))
                outcome[1] = e if known else RuntimeError(f"{type(e).__name__}: {e}")
        if self.count > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]

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

    def claim(self, path: Path, made: dict[str, dict[str, Any]]) -> str:
        """Write to ``path`` what a run is made of, and how many processes it has.

        Returns:
            the same as a text.

        Raises:
            ValueError: if ``path`` holds something else, naming what differs.
        """
        made = {**made, "run": {"format": FORMAT, "processes": self.count}}
        self.first(lambda: claim(path, made))
        return json.dumps(made, sort_keys=True)

    def parallel(self, network: nn.Module) -> Any:
        """``network`` on the device, to be called in its place: it averages gradients."""
        return self._accelerator.prepare_model(network)
