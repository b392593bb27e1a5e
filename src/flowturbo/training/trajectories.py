"""Teacher trajectories on disk: what a refiner is trained on, with no data and no teacher calls.

Two-step Adams-Bashforth integrates from noise to data under guidance, and at each evaluation the
state and the guided velocity are kept in half precision, in one memory-mapped ``.npy``. Each batch
has its own randomly jittered time grid, so that a refiner sees every time and gaps of every size.
An index of what is finished lets an interrupted run be resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowturbo.digests import content
from flowturbo.field import Field
from flowturbo.files import check_room, write_json
from flowturbo.path import Times, shift_times
from flowturbo.plan import Plan
from flowturbo.progress import Progress, Report
from flowturbo.sampling import sample
from flowturbo.schema import Schema, read_json
from flowturbo.stores import warn_damaged
from flowturbo.training.devices import autocast
from flowturbo.training.initial_states import InitialStateSampler
from flowturbo.tree import map_condition
from flowturbo.types import Condition, Time

__all__ = ["Batch", "Trajectories", "generate_trajectories"]

Halves: TypeAlias = NDArray[np.float16]


class Batch(NamedTuple):
    """Velocities ``v`` to predict, one per row, and the inputs of the refiner for them.

    These are the states ``x`` at times ``t``, the last (time, velocity) ``a``, the one before it
    ``b``, conditions and guidance scales.
    """

    x: Tensor
    t: Tensor
    cond: Condition
    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]
    guidance: Tensor
    v: Tensor

    @property
    def step(self) -> Tensor:
        """What linear extrapolation adds to the last velocity, (B, ...)."""
        (t_a, v_a), (t_b, v_b) = self.a, self.b
        ratio = (self.t - t_a) / (t_a - t_b)
        return ratio.reshape(-1, *[1] * (v_a.ndim - 1)) * (v_a - v_b)

    def map(self, fn: Callable[..., Tensor], *others: Batch) -> Batch:
        """``fn`` of the corresponding tensors of this batch and ``others``."""
        each = lambda *tensors: None if tensors[0] is None else fn(*tensors)
        return Batch(*map_condition(each, self, *others))

    def to(self, device: torch.device) -> Batch:
        """The same on ``device``."""
        return self.map(lambda c: c.to(device))


class Trajectories:
    """States and velocities (N, K, 2, *shape) at times (N, K).

    Triples ``b < a < k`` of evaluations are sampled with gaps of 1 to ``gap`` steps between them.
    The last sixteenth of the trajectories is held out.
    """

    def __init__(
        self, arrays: Halves, times: Tensor, initial: InitialStateSampler, gap: int
    ) -> None:
        self.arrays, self.times, self.device, self.gap = arrays, times, initial.device, gap
        _, self.cond, self.scales = initial.rows(0, len(arrays))
        self.held_out = max(1, len(arrays) // 16)

    def batch(
        self, n: int, generator: torch.Generator, *, gap: int = 0, held_out: bool = False
    ) -> Batch:
        """``n`` triples from the trajectories to train on, or from those held out."""
        gap, border = gap or self.gap, len(self.arrays) - self.held_out
        first, last = (border, len(self.arrays)) if held_out else (0, border)
        row = torch.randint(first, last, (n,), generator=generator)
        k = torch.randint(2, self.times.shape[1], (n,), generator=generator)
        u = torch.rand(2, n, generator=generator)
        a = k - 1 - (u[0] * (k - 1).clamp(max=gap)).long()
        b = a - 1 - (u[1] * a.clamp(max=gap)).long()
        (x, v), (_, v_a), (_, v_b) = (self._read(row, j) for j in (k, a, b))
        t, t_a, t_b = (self.times[row, j].to(x.device) for j in (k, a, b))
        row = row.to(x.device)
        cond = None if self.cond is None else map_condition(lambda c: c[row], self.cond)
        return Batch(x, t, cond, (t_a, v_a), (t_b, v_b), self.scales[row], v)

    def _read(self, row: Tensor, j: Tensor) -> Tensor:
        """States and velocities (2, n, *shape) of evaluations ``j`` (n,) of ``row`` (n,)."""
        pairs = torch.from_numpy(self.arrays[row.numpy(), j.numpy()])
        return pairs.transpose(0, 1).to(self.device).float()


def generate_trajectories(
    model: Field,
    folder: Path,
    initial: InitialStateSampler,
    steps: int,
    trajectories: int,
    *,
    shift: float = 1.0,
    jitter: float = 0.0,
    batch: int = 64,
    gap: int = 0,
    bf16: bool = False,
    report: Report | None = None,
) -> Trajectories:
    """Generate ``trajectories`` of ``model`` in ``folder``, or those of them that are missing.

    Args:
        model: the teacher.
        folder: where ``trajectories.npy`` and ``trajectories.json``, the index, are written.
        initial: their initial states.
        steps: evaluations on each, at least 3: two to predict the third from.
        trajectories: how many, at least 2: one is held out.
        shift: shift of the time grid.
        jitter: how far each inner time of a batch's grid may move, in steps, below 0.5.
        batch: trajectories computed at once.
        gap: see `Trajectories`; a quarter of the steps by default.
        bf16: run the model under bfloat16 autocast.
        report: called with a `Progress` at each evaluation.

    Raises:
        OSError: if they do not fit on the disk; nothing is computed then.
        ValueError: if a velocity is not finite in half precision.

    Warns:
        UserWarning: if existing trajectories are damaged, and computed again.
    """
    path, index = folder / "trajectories.npy", folder / "trajectories.json"
    shape = (trajectories, steps, 2, *initial.shape)
    arrays, digests = _kept(path, index, shape)
    firsts = range(0, trajectories, batch)
    grids = [_grid(steps, shift, jitter, initial.seed, first) for first in firsts]
    damaged = False
    for i, (first, grid) in enumerate(zip(firsts, grids, strict=True)):
        last = min(first + batch, trajectories)
        rows = arrays[first:last]
        if i < len(digests) and digests[i] == content(rows):
            continue
        if i < len(digests) and not damaged:
            warn_damaged(path, "damaged")
            damaged = True
        x0, cond, w = initial.rows(first, last)
        record = _Record(initial.guided(model, w), rows, first, trajectories, report)
        with autocast(x0.device, bf16):
            sample(Plan.adams_bashforth(steps, times=grid), record, x0, cond)
        if not np.isfinite(rows).all():
            raise ValueError(
                f"trajectories {first} to {last - 1} are not finite in half precision; "
                "check the field, or scale its states"
            )
        arrays.flush()
        digests[i : i + 1] = [content(rows)]
        write_json(index, {"digests": digests})
    times = torch.tensor(np.repeat(grids, batch, axis=0)[:trajectories, :-1], dtype=torch.float32)
    return Trajectories(arrays, times, initial, gap or max(1, steps // 4))


def _grid(steps: int, shift: float, jitter: float, seed: int, first: int) -> Times:
    """The times (steps + 1,) of the batch that begins with trajectory ``first``."""
    moved = np.arange(steps + 1, dtype=np.float64)
    rng = np.random.default_rng((seed, first))
    moved[1:-1] += rng.uniform(-jitter, jitter, steps - 1)
    return shift_times(moved / steps, shift)


class _Record:
    """A field that writes its states and velocities into rows of the trajectories."""

    def __init__(
        self, field: Field, rows: Halves, first: int, total: int, report: Report | None
    ) -> None:
        self.field, self.rows, self.report = field, rows, report
        self.first, self.total, self.evaluations = first, total, 0

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        v = self.field(x, t, cond)
        for i, state in enumerate((x, v)):
            self.rows[:, self.evaluations, i] = state.half().cpu().numpy()
        self.evaluations += 1
        if self.report:
            done = self.first + len(self.rows) * self.evaluations // self.rows.shape[1]
            self.report(Progress("trajectories", done, self.total))
        return v


class _Index(Schema):
    """Of the finished trajectories: a digest of each batch."""

    digests: list[str]


def _kept(
    path: Path, index: Path, shape: tuple[int, ...]
) -> tuple[np.memmap[tuple[int, ...], np.dtype[np.float16]], list[str]]:
    """The array of all trajectories, and the digests of those in it; new ones if it is damaged."""
    if index.is_file():
        try:
            digests = read_json(index, _Index).digests
            arrays = np.lib.format.open_memmap(path, mode="r+")
            if arrays.shape == shape and arrays.dtype == np.float16:
                return arrays, digests
        except Exception:  # whatever reading damaged bytes raises
            pass
        warn_damaged(path, "damaged, or its index is")
        index.unlink()
    _reserve(path, shape)
    return np.lib.format.open_memmap(path, mode="r+"), []


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Make a file for half-precision numbers of ``shape``, with its disk space allocated."""
    path.unlink(missing_ok=True)
    check_room(path.parent, 2 * int(np.prod(shape)))
    try:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a page not written later would kill the process
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror or e}; choose another folder") from e
