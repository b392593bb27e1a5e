"""Evaluations of many running samples in one batch.

Every request runs through the ordinary sampling loop, on a thread of its own, with a field whose
calls wait for a common batch: at each tick all evaluations that wait, each with its own state,
time and condition, are joined into one call of the network. A request may join and leave at any
tick, and what it does between evaluations (plan, guidance, masks, callbacks) does not affect
others.

Rows of a batch are independent, but matrix products round differently with the size of a batch.
With a single batch size, to which every tick is padded, an image is the same bit for bit whatever
else runs; otherwise it agrees up to rounding, as in batches of `flowturbo.generate`.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from flowturbo import checks
from flowturbo.field import Field, Wrapper
from flowturbo.refiner.binding import History, Refiner
from flowturbo.types import Condition, GuidanceScale, Time

__all__ = ["Batcher", "Member", "Tick"]

LOG = logging.getLogger("flowturbo.serve")
LARGEST = 24  # rows of a batch
PATIENCE = 0.2  # of the last tick, that a batch waits for requests that are between two evaluations
SHORTEST_WAIT, LONGEST_WAIT = 0.002, 1.0  # seconds

Network: TypeAlias = Callable[..., Tensor]


@dataclass(frozen=True)
class Tick:
    """A batch that was run.

    Attributes:
        rows: of the states in it.
        padded: rows that were added to make a batch size.
        members: requests that took part.
        seconds: how long the network took.
    """

    rows: int
    padded: int
    members: int
    seconds: float


@dataclass(eq=False)
class Member:
    """One running request as the batcher sees it.

    Attributes:
        check: called before and after every evaluation; what it raises ends the request.
        begun: whether it has requested an evaluation.
    """

    check: Callable[[], None] = lambda: None
    arrival: int = 0  # its place among all
    active: bool = False  # between its first evaluation and its last
    begun: bool = False


@dataclass(eq=False)
class _Call:
    """An evaluation that waits: a network, and its arguments with ``rows`` rows each."""

    network: Network
    key: Hashable  # of those that can be joined
    leaves: list[Any]
    tensors: list[int]  # which leaves have rows
    spec: TreeSpec
    rows: int
    member: Member
    parts: list[Tensor] = field(default_factory=list)
    taken: int = 0
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Joins evaluations that are requested on many threads.

    Attributes:
        observe: called with each `Tick`, on the batcher's thread.

    Args:
        largest_batch: largest number of rows in a batch, at least 1; a guided image takes two.
        batch_sizes: sizes that a batch is padded to, each at least 1; the largest takes the place
            of ``largest_batch``. None does not pad.
        observe: as above.

    Raises:
        ValueError: if an argument is not as described.
    """

    def __init__(
        self,
        largest_batch: int = LARGEST,
        batch_sizes: Sequence[int] | None = None,
        observe: Callable[[Tick], None] | None = None,
    ) -> None:
        self.sizes = None
        if batch_sizes is not None:
            listed = checks.is_list(batch_sizes) and len(batch_sizes) > 0
            sizes = {checks.whole("batch_sizes", n, 1) for n in batch_sizes} if listed else ()
            if not sizes:
                raise ValueError(
                    f"batch_sizes={checks.shown(batch_sizes)}: must be a list of sizes"
                )
            self.sizes = sorted(sizes)
            largest_batch = self.sizes[-1]
        self.largest = checks.whole("largest_batch", largest_batch, 1)
        self.observe = observe
        self._condition = threading.Condition()
        self._waiting: list[_Call] = []
        self._members: set[Member] = set()
        self._local = threading.local()
        self._arrivals, self._seconds, self._closed = itertools.count(), 0.0, False
        self._thread = threading.Thread(target=self._serve, name="flowturbo-batcher", daemon=True)
        self._thread.start()

    @contextmanager
    def member(self, check: Callable[[], None] = lambda: None) -> Iterator[Member]:
        """Run as one member: the evaluations of this thread are requested in its name."""
        before = getattr(self._local, "member", None)
        made = Member(check, next(self._arrivals))
        self._local.member = made
        with self._condition:
            self._members.add(made)
        try:
            yield made
        finally:
            self._local.member = before
            with self._condition:
                self._members.discard(made)
                self._condition.notify_all()

    def rest(self) -> None:
        """Mark this thread's member as making no evaluation now, so that no batch waits for it."""
        member = getattr(self._local, "member", None)
        if member is not None and member.active:
            with self._condition:
                member.active = False
                self._condition.notify_all()

    def call(self, network: Network, key: Hashable, rows: int, arguments: object) -> Tensor:
        """``network(*arguments)``, in a batch with other calls of ``key``; waits for it.

        Args:
            network: returns a tensor of as many rows as it is given.
            key: identifies ``network``; calls are joined if they share it, the shapes of their
                tensors, and everything that is not a tensor.
            rows: how many rows the tensors of ``arguments`` have; others are shared.
            arguments: a tuple, of tensors and nests of tensors.
        """
        member = getattr(self._local, "member", None) or Member(arrival=next(self._arrivals))
        member.check()
        leaves, spec = tree_flatten(arguments)
        of_rows = [
            i
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == rows
        ]
        shared = [leaf for i, leaf in enumerate(leaves) if i not in of_rows]
        kinds = [(leaves[i].shape[1:], leaves[i].dtype, leaves[i].device) for i in of_rows]
        hashable = all(isinstance(s, (str, int, float, bool, type(None))) for s in shared)
        apart: object = None if hashable else object()  # what cannot be compared is not joined
        whole = (key, str(spec), *kinds, *(shared if hashable else [apart]))
        made = _Call(network, whole, leaves, of_rows, spec, rows, member)
        with self._condition:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            member.active = member.begun = True
            self._waiting.append(made)
            self._condition.notify_all()
        made.done.wait()
        if made.error is not None:
            raise made.error
        member.check()
        return made.parts[0] if len(made.parts) == 1 else torch.cat(made.parts)

    @property
    def alive(self) -> bool:
        """Whether it still runs evaluations."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop; evaluations that wait raise ``RuntimeError``."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        try:
            while self._tick():
                pass
        finally:  # nobody may wait forever
            with self._condition:
                self._closed = True
                for call in self._waiting:
                    call.error = RuntimeError("the batcher is closed")
                    call.done.set()

    def _tick(self) -> bool:
        """Run one batch; False if the batcher is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._closed)
            patience = min(max(SHORTEST_WAIT, PATIENCE * self._seconds), LONGEST_WAIT)
            self._condition.wait_for(lambda: self._complete() or self._closed, patience)
            if self._closed:
                return False
            self._waiting = [call for call in self._waiting if not self._ended(call)]
            taken = self._take() if self._waiting else []
        begun = time.perf_counter()
        by_key: dict[Hashable, list[tuple[_Call, slice]]] = {}
        for call, part in taken:
            by_key.setdefault(call.key, []).append((call, part))
        for group in by_key.values():
            self._run(group)
        self._seconds = time.perf_counter() - begun
        with self._condition:
            self._waiting = [c for c in self._waiting if c.error is None and c.taken < c.rows]
        for call, _ in taken:
            if call.error is not None or call.taken == call.rows:
                call.done.set()
        return True

    def _ended(self, call: _Call) -> bool:
        """Whether the request of a call has ended; its thread is then free."""
        try:
            call.member.check()
        except Exception as e:
            call.error = e
            call.done.set()
        return call.error is not None

    def _complete(self) -> bool:
        """Whether all members with a share of the next batch have requested their evaluation."""
        asked = {call.member for call in self._waiting}
        members = asked | {member for member in self._members if member.active}
        first = sorted(members, key=lambda member: member.arrival)[: max(1, self.largest // 2)]
        return asked.issuperset(first)

    def _take(self) -> list[tuple[_Call, slice]]:
        """The rows of the next batch.

        The requests that came first, as many as can have two rows each, have equal shares of it.
        Rows that these leave unused go to the large requests among them, but only up to half a
        batch while small ones wait: small requests take part in every batch, and large ones must
        not make it longer for them. Later requests wait for the first: if all took turns, all would
        finish late.
        """
        order = sorted(self._waiting, key=lambda call: call.member.arrival)
        share, left = max(2, self.largest // len(order)), self.largest
        rows = {}
        for call in order:
            rows[call] = min(call.rows - call.taken, share, left)
            left -= rows[call]
        if any(call.rows == rows[call] for call in order):
            left = max(0, left - self.largest // 2)
        taken = []
        for call in order:
            more = min(call.rows - call.taken - rows[call], left)
            left -= more
            if rows[call] + more:
                end = call.taken + rows[call] + more
                taken.append((call, slice(call.taken, end)))
                call.taken = end
        return taken

    def _run(self, group: list[tuple[_Call, slice]]) -> None:
        """Run calls that can be joined as one; those of a batch that fails are run one by one."""
        begun = time.perf_counter()
        first, counts = group[0][0], [part.stop - part.start for _, part in group]
        rows = sum(counts)
        size = rows if self.sizes is None else next(n for n in self.sizes if n >= rows)
        leaves = list(first.leaves)
        try:
            with torch.no_grad():
                for i in first.tensors:
                    parts = [call.leaves[i][part] for call, part in group]
                    if size > rows:
                        parts.append(parts[-1][-1:].expand(size - rows, *parts[-1].shape[1:]))
                    leaves[i] = torch.cat(parts) if len(parts) > 1 else parts[0]
                out = first.network(*tree_unflatten(leaves, first.spec))
            made = [v.clone() for v in out[:rows].split(counts)]
        except Exception as e:
            if len(group) > 1:
                for one in group:
                    self._run([one])
            else:
                first.error = e
            return
        for (call, _), v in zip(group, made, strict=True):
            call.parts.append(v)
        if (observe := self.observe) is not None:
            members = len({id(call.member) for call, _ in group})
            tick = Tick(rows, size - rows, members, time.perf_counter() - begun)
            try:
                observe(tick)
            except Exception:  # an observer must not end what it observes
                LOG.exception("the observer of batches failed")


class BatchedField(Wrapper):
    """A field whose calls run in the batches of a `Batcher`; all else is that of ``model``.

    Calls that are differentiated through run at once, by themselves.

    Attributes:
        refiner: that tasks use by default.

    Args:
        model: the field.
        batcher: runs its calls.
        refiner: that tasks use by default.
        network: computes what the field does for a batch, compiled for example; by default the
            field itself.
    """

    def __init__(
        self,
        model: Field,
        batcher: Batcher,
        refiner: BatchedRefiner | None = None,
        network: Network | None = None,
    ) -> None:
        super().__init__(model)
        self._batcher, self.refiner = batcher, refiner
        self._network = model if network is None else network

    def __call__(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """``field(x, t, cond)``."""
        if torch.is_grad_enabled() and x.requires_grad:
            return self.field(x, t, cond)
        key = ("field", id(self.field))
        return self._batcher.call(self._network, key, len(x), (x, _per_row(t, x), cond))

    def embed_condition(self, cond: Condition) -> Condition:
        """``cond`` itself: conditions of many requests are joined before they are embedded."""
        return cond

    def decode(self, x: Tensor) -> Tensor:
        """Decode final states with the model; batches do not wait for this request meanwhile."""
        self._batcher.rest()
        decoded: Tensor = self.field.decode(x)  # type: ignore[attr-defined]
        return decoded


class BatchedRefiner:
    """A refiner whose calls run in the batches of a `Batcher`.

    A refiner with ``per_image_times`` is called for different rows and plans at once, and may be
    compiled: ``compiled`` returns a compiled function.
    """

    def __init__(
        self,
        refiner: Refiner,
        batcher: Batcher,
        compiled: Callable[[Network], Network] | None = None,
    ) -> None:
        self._refiner, self._batcher = refiner, batcher
        per_image = getattr(refiner, "per_image_times", False)
        self._network = compiled(self._together) if compiled and per_image else self._together

    def __getattr__(self, name: str) -> Any:
        if name in ("_refiner", "embed_rows", "embed_condition"):
            raise AttributeError(name)  # conditions are joined before they are embedded
        return getattr(self._refiner, name)

    def __call__(
        self, x: Tensor, t: Time, cond: Condition, history: History, **scale: GuidanceScale
    ) -> Tensor:
        """``refiner(x, t, cond, history)``, and the scale where it takes that."""
        if getattr(self._refiner, "per_image_times", False):
            latest = _latest(history, self._refiner.distinct_times)  # type: ignore[attr-defined]
            seen: list[tuple[Time, Tensor]] = [(_per_row(s, x), v) for s, v in latest]
            t, scale = _per_row(t, x), {k: _per_row(w, x) for k, w in scale.items()}
        else:
            seen, t = list(history), float(t)  # calls are joined where their times are the same
        arguments = (x, t, cond, seen, scale)
        return self._batcher.call(self._network, ("refiner", id(self)), len(x), arguments)

    def _together(
        self, x: Tensor, t: Time, cond: Condition, history: History, scale: dict[str, Any]
    ) -> Tensor:
        return self._refiner(x, t, cond, history, **scale)


def _latest(history: History, distinct: int) -> History:
    """The latest velocities at ``distinct`` distinct times, oldest first."""
    found: list[tuple[float, Tensor]] = []
    for t, v in reversed(history):
        if len(found) < distinct and all(t != s for s, _ in found):
            found.insert(0, (t, v))
    return found


def _per_row(value: GuidanceScale | Time, x: Tensor) -> Tensor:
    """``value`` for each row of ``x``, (B,)."""
    if not isinstance(value, Tensor):
        value = x.new_full((), value)
    return value.to(x.device).expand(len(x))
