"""Teacher trajectories on disk: what a refiner is trained on, with no data and no teacher calls.

Two-step Adams-Bashforth carries noise to data under guidance, and at each evaluation the state and
the guided velocity are kept in half precision, in one memory-mapped ``.npy``. Each batch has a grid
of its own, moved at random, so that a refiner sees every time and gaps of every size. Drawing goes
on after a kill where its index says.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowturbo import noise
from flowturbo.checks import DTYPES, function, number, shown, tensor, whole
from flowturbo.digests import content
from flowturbo.field import Field, device_of
from flowturbo.files import check_room, write_json
from flowturbo.guidance import Guidance
from flowturbo.models.model import Model
from flowturbo.path import Times, shift_times
from flowturbo.plan import Plan
from flowturbo.sampling import sample
from flowturbo.schema import Schema, read_json
from flowturbo.stores import warn_damaged
from flowturbo.training.loop import autocast
from flowturbo.tree import map_condition

__all__ = ["Batch", "Starts", "Trajectories", "draw_trajectories", "scales"]


@dataclass(frozen=True)
class Starts:
    """Where trajectories start: noise, conditions and guidance.

    Attributes:
        guidance: (lowest, highest) scale; each trajectory draws its own.
        seed: of everything random.
        noise: (N, *shape), to start from, N perhaps 0; then standard normal noise.
        cond: conditions, the first N those of ``noise``, then drawn from with replacement.
    """

    guidance: tuple[float, float]
    seed: int
    noise: Tensor
    cond: Any

    @classmethod
    def of(
        cls, model: Any, guidance: float | tuple[float, float], seed: int, noise: Any, cond: Any
    ) -> Starts:
        """What is known of ``model`` with what the caller gives.

        Raises:
            ValueError: if that does not say where to start.
        """
        low, high = scales(guidance)
        seed = whole("seed", seed, 0, 2**23 - 1)
        function("model", model, "x, t, cond")
        shape = getattr(model, "shape", None)
        if noise is None and shape is None:
            raise ValueError("noise=None: the field has no shape; pass noise and cond")
        if noise is not None:
            noise = tensor("noise", noise, ("N", "D", ...), dtypes=DTYPES, finite=True).detach()
            if shape is not None and tuple(noise.shape[1:]) != tuple(shape):
                raise ValueError(
                    f"noise={shown(noise)}: the field's states have the shape {tuple(shape)}"
                )
        if cond is not None:
            _check_rows(cond, None if noise is None else len(noise))
        if cond is None and noise is None and isinstance(model, Model):
            cond = model.random_condition(4096, torch.Generator().manual_seed(seed))
            if cond is None and model.card.get("condition", {}).get("kind") == "text":
                raise ValueError(
                    f"model {model.name!r} takes prompts and its card lists none; "
                    "pass cond=model.condition([...]) of prompts to train on"
                )
        if (low, high) != (1.0, 1.0) and (cond is None or not hasattr(model, "null_condition")):
            what = "no cond is given" if cond is None else "the field has no null_condition(cond)"
            raise ValueError(
                f"guidance={shown(guidance)}: {what}; pass guidance=1 if the field is guided "
                "already, or has no condition"
            )
        if noise is None and shape is not None:
            noise = torch.empty(0, *shape, device=device_of(model))
        return cls((low, high), seed, noise, cond)

    def rows(self, first: int, last: int) -> tuple[Tensor, Any, Tensor]:
        """Noise, conditions and scales of trajectories ``first`` to ``last``, always the same."""
        given = len(self.noise)
        which, shares = [], []
        for i in range(first, last):
            generator = torch.Generator().manual_seed(noise.mixed(self.seed, 0, i))
            drawn = int(torch.randint(2**31, (1,), generator=generator))
            which.append(i if i < given else drawn)
            shares.append(float(torch.rand(1, generator=generator)))
        low, high = self.guidance
        w = low + (high - low) * torch.tensor(shares, device=self.device)
        fresh = range(max(first, given), max(last, given))
        x0 = noise.draw(
            [noise.mixed(self.seed, 1, i) for i in fresh], self.shape, device=self.device
        )
        x0 = torch.cat([self.noise[first:last].to(x0), x0])
        pick = lambda c: c[[i % len(c) for i in which]].to(self.device)
        return x0, None if self.cond is None else map_condition(pick, self.cond), w

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state."""
        return tuple(self.noise.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.noise.device

    def guided(self, model: Field, scales: Tensor) -> Field:
        """``model`` guided by the scale of each row."""
        return model if self.guidance == (1.0, 1.0) else Guidance(model, scales)


@dataclass(frozen=True)
class Batch:
    """Velocities to predict, one a row: what the refiner is shown, and ``v``."""

    x: Tensor
    t: Tensor
    cond: Any
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
        every = [
            [b.x, b.t, b.a, b.b, b.guidance, b.v, *([] if b.cond is None else [b.cond])]
            for b in (self, *others)
        ]
        x, t, a, b, guidance, v, *cond = map_condition(fn, *every)
        return Batch(x, t, cond[0] if cond else None, a, b, guidance, v)

    def to(self, device: torch.device) -> Batch:
        """The same on ``device``."""
        return self.map(lambda c: c.to(device))


class Trajectories:
    """States and velocities (N, K, 2, *shape) at times (N, K).

    Triples ``b < a < k`` of evaluations are drawn with gaps of 1 to ``gap`` steps between them. The
    last sixteenth of the trajectories is held out.
    """

    def __init__(self, arrays: Any, times: Tensor, starts: Starts, gap: int) -> None:
        self.arrays, self.times, self.starts, self.gap = arrays, times, starts, gap
        _, self.cond, self.scales = starts.rows(0, len(arrays))
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
        return pairs.transpose(0, 1).to(self.starts.device).float()


def draw_trajectories(
    model: Field,
    folder: Path,
    starts: Starts,
    steps: int,
    trajectories: int,
    *,
    shift: float = 1.0,
    jitter: float = 0.0,
    batch: int = 64,
    gap: int = 0,
    bf16: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> Trajectories:
    """Draw ``trajectories`` of ``model`` into ``folder``, or what of them is missing.

    Args:
        model: the teacher.
        folder: gets ``trajectories.npy`` and ``trajectories.json``, the index.
        starts: where they start.
        steps: evaluations on each, at least 3: two to predict the third from.
        trajectories: how many, at least 2: one is held out.
        shift: of the grid.
        jitter: how far each inner time of a batch's grid may move, in steps, below 0.5.
        batch: trajectories at once.
        gap: see `Trajectories`; a quarter of the steps by default.
        bf16: run the model under bfloat16 autocast.
        report: called with (done, all).

    Raises:
        OSError: if they do not fit on the disk; nothing is drawn then.
        ValueError: if a velocity is not finite in half precision.

    Warns:
        UserWarning: if what is there is damaged, and drawn again.
    """
    path, index = folder / "trajectories.npy", folder / "trajectories.json"
    shape = (trajectories, steps, 2, *starts.shape)
    arrays, digests = _kept(path, index, shape)
    firsts = range(0, trajectories, batch)
    grids = [_grid(steps, shift, jitter, starts.seed, first) for first in firsts]
    damaged = False
    for i, (first, grid) in enumerate(zip(firsts, grids, strict=True)):
        last = min(first + batch, trajectories)
        rows = arrays[first:last]
        if i < len(digests) and digests[i] == content(rows):
            continue
        if i < len(digests) and not damaged:
            warn_damaged(path, "damaged")
            damaged = True
        x0, cond, w = starts.rows(first, last)
        told = lambda k: report and report(first + (last - first) * k // steps, trajectories)  # noqa: B023
        record = _Record(starts.guided(model, w), told)
        with autocast(x0.device, bf16):
            sample(Plan.adams_bashforth(steps, times=grid), record, x0, cond)
        for k, (x, v) in enumerate(record.seen):
            rows[:, k, 0], rows[:, k, 1] = x, v
        if not np.isfinite(rows).all():
            raise ValueError(
                f"trajectories {first} to {last - 1} are not finite in half precision; "
                "check the field, or scale its states"
            )
        arrays.flush()
        digests[i : i + 1] = [content(rows)]
        write_json(index, {"digests": digests})
    times = torch.tensor(np.repeat(grids, batch, axis=0)[:trajectories, :-1], dtype=torch.float32)
    return Trajectories(arrays, times, starts, gap or max(1, steps // 4))


def _grid(steps: int, shift: float, jitter: float, seed: int, first: int) -> Times:
    """The times (steps + 1,) of the batch that begins with trajectory ``first``."""
    moved = np.arange(steps + 1, dtype=np.float64)
    rng = np.random.default_rng((seed, first))
    moved[1:-1] += rng.uniform(-jitter, jitter, steps - 1)
    return shift_times(moved / steps, shift)


class _Record:
    """A field that keeps what it was asked and what it answered, in half precision."""

    def __init__(self, field: Field, told: Callable[[int], None]) -> None:
        self.field, self.told = field, told
        self.seen: list[tuple[Any, Any]] = []

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Tensor:
        v = self.field(x, t, cond)
        self.seen.append((x.half().cpu().numpy(), v.half().cpu().numpy()))
        self.told(len(self.seen))
        return v


class _Index(Schema):
    """Of the trajectories that are drawn: a digest of each batch."""

    digests: list[str]


def _kept(path: Path, index: Path, shape: tuple[int, ...]) -> tuple[Any, list[str]]:
    """The array of all trajectories, and the digests of those in it; new ones if it is damaged."""
    if index.is_file():
        try:
            digests = read_json(index, _Index).digests
            arrays = np.lib.format.open_memmap(path, mode="r+")
            if arrays.shape == shape and arrays.dtype == np.float16:
                return arrays, digests
        except Exception:  # whatever a reader says of bytes that are not what was written
            pass
        warn_damaged(path, "damaged, or its index is")
        index.unlink()
    _reserve(path, shape)
    return np.lib.format.open_memmap(path, mode="r+"), []


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """Make a file for half-precision numbers of ``shape``, its space taken from the disk."""
    path.unlink(missing_ok=True)
    check_room(path.parent, 2 * int(np.prod(shape)))
    try:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a page not written later would kill the process
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror or e}; choose another folder") from e


def scales(guidance: Any) -> tuple[float, float]:
    """(lowest, highest) of a scale of guidance, or of a range of them."""
    parts = guidance if isinstance(guidance, (tuple, list)) else (guidance, guidance)
    low, high = (number("guidance", w) for w in parts) if len(parts) == 2 else (1.0, 0.0)
    if not low <= high:
        raise ValueError(f"guidance={shown(guidance)}: must be a scale, or (lowest, highest)")
    return low, high


def _check_rows(cond: Any, rows: int | None) -> None:
    """Refuse conditions that are not tensors of as many rows."""
    found = set()

    def see(c: Any) -> None:
        if not isinstance(c, Tensor) or c.ndim == 0:
            raise ValueError(
                f"cond={shown(cond)}: must be a tensor with a row for each condition, or a tuple, "
                "list or dict of such; pass torch.as_tensor(cond), or model.condition([...])"
            )
        found.add(len(c))

    map_condition(see, cond)
    if len(found) != 1 or 0 in found or (rows is not None and found != {rows}):
        wanted = "as many for all, at least 1" if rows is None else f"{rows}, one for each of noise"
        raise ValueError(f"cond of {', '.join(map(str, sorted(found)))} rows: must be {wanted}")
