"""Checkpoints of a run: sealed safetensors files, of which the last two are kept.

Nothing in them can run code. A file that is damaged, or from another run, is not loaded: the one
before it is used, with a warning.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from flowturbo.checks import warn
from flowturbo.stores import read_tensors, write_tensors

__all__ = ["Checkpoints", "restore", "tensors_of"]

KEPT = 2
Optimizers = list[torch.optim.Optimizer]


class Checkpoints:
    """The checkpoints in ``folder`` of the run that ``of`` describes."""

    def __init__(self, folder: Path, of: str) -> None:
        self.folder, self.of = folder, of

    def write(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Write the checkpoint of a step, then remove all but the last two.

        Raises:
            OSError: if the disk is full; earlier checkpoints are kept.
        """
        write_tensors(self.folder / f"step-{step:08d}.safetensors", tensors, self.of)
        for old in [path for found, path in self._found() if found <= step][:-KEPT]:
            old.unlink()

    def last(self) -> tuple[int, dict[str, Tensor]]:
        """The step and the tensors of the last intact checkpoint; 0 and none if there is none.

        Raises:
            ValueError: if there are checkpoints, but none is intact.
        """
        found = self._found()
        for step, path in reversed(found):
            tensors = read_tensors(path, self.of)
            if tensors is not None:
                if step != found[-1][0]:
                    warn(f"{path}: going on from this older checkpoint")
                return step, tensors
        if found:
            raise ValueError(
                f"{self.folder}: holds no whole checkpoint of this run; restore one, or remove the "
                "folder to start again"
            )
        return 0, {}

    def _found(self) -> list[tuple[int, Path]]:
        named = ((re.fullmatch(r"step-(\d{8,})\.safetensors", p.name), p) for p in self._files())
        return sorted((int(match[1]), p) for match, p in named if match)

    def _files(self) -> list[Path]:
        return [*self.folder.iterdir()] if self.folder.is_dir() else []


def tensors_of(modules: dict[str, nn.Module], optimizers: Optimizers) -> dict[str, Tensor]:
    """The state of modules and optimizers, by name."""
    found = {f"{part}/{k}": p for part, m in modules.items() for k, p in m.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for n, state in optimizer.state_dict()["state"].items():
            found |= {f"optimizer {i}/{n}/{k}": torch.as_tensor(v) for k, v in state.items()}
    return found


def restore(
    tensors: dict[str, Tensor], modules: dict[str, nn.Module], optimizers: Optimizers
) -> None:
    """Restore what `tensors_of` returned.

    Raises:
        ValueError: if names or shapes differ.
    """
    under = lambda part: {
        k.removeprefix(f"{part}/"): p for k, p in tensors.items() if k.startswith(f"{part}/")
    }
    try:
        for part, module in modules.items():
            module.load_state_dict(under(part))
        for i, optimizer in enumerate(optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in under(f"optimizer {i}").items():
                n, _, key = name.partition("/")
                state.setdefault(int(n), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except RuntimeError as e:  # of load_state_dict, over many lines
        reason = " ".join(str(e).split())[:200]
        raise ValueError(
            f"the checkpoint is of another version of this library ({reason}); start again in "
            "another folder"
        ) from e
