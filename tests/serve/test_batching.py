"""The batcher: what is joined, who is served when, and what a failure does to the others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fields import Reuse, mixture

import flowturbo as ft
from flowturbo.serve import batching
from flowturbo.serve.batching import BatchedField, BatchedRefiner, Batcher

PATIENT = 10.0  # seconds until a test gives up


class Gate:
    """A field that waits, from its first call on, until the test opens it; keeps its batches."""

    def __init__(self, field=lambda x, t, cond: -x) -> None:
        self.field, self.batches = field, []
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, x, t, cond=None):
        self.batches.append(x.flatten(1)[:, 0].tolist())
        self.entered.set()
        assert self.open.wait(PATIENT)
        return self.field(x, t, cond)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(32) as pool:
        yield pool


def rows(value: float, n: int) -> torch.Tensor:
    """States (n, 2) that are told apart by ``value``."""
    return torch.full((n, 2), float(value))


def member(batcher: Batcher, field, x: torch.Tensor, evaluations: int = 1) -> list[torch.Tensor]:
    """A request: so many evaluations at ``x``."""
    with batcher.member():
        return [field(x, 0.5, None) for _ in range(evaluations)]


def arrive(batcher: Batcher, threads, field, *sizes: int, evaluations: int = 1) -> list:
    """Requests of these sizes in this order, when the batcher is busy with another, of value -1."""
    gate = field.field
    made = [threads.submit(member, batcher, field, rows(-1, 1))]
    assert gate.entered.wait(PATIENT)
    for i, size in enumerate(sizes):
        made.append(threads.submit(member, batcher, field, rows(i, size), evaluations))
        wait_until(lambda n=i + 1: len(batcher._waiting) > n)
    return made


def wait_until(true) -> None:
    ticks = threading.Event()
    for _ in range(int(PATIENT * 1000)):
        if true():
            return
        ticks.wait(0.001)
    raise AssertionError("it never came true")


def finish(gate: Gate, batcher: Batcher, requests: list) -> list:
    gate.open.set()
    made = [request.result(PATIENT) for request in requests]
    batcher.close()
    return made


@pytest.mark.parametrize("plan", ["E3", "AB2:5", "H2", "H1P2R2", "RK4:1"])
def test_one_alone_is_sampled_as_without(plan):
    batcher, x = Batcher(4), torch.randn(9, 2, dtype=torch.float64)
    made = ft.sample(
        plan, BatchedField(mixture, batcher), x, refiner=BatchedRefiner(Reuse(), batcher)
    )
    batcher.close()
    torch.testing.assert_close(made, ft.sample(plan, mixture, x, refiner=Reuse()))


def test_evaluations_that_wait_are_one_batch_and_each_gets_its_own(threads):
    gate = Gate(lambda x, t, cond: x * t[:, None] + cond)
    batcher = Batcher(16)
    field = BatchedField(gate, batcher)
    with ThreadPoolExecutor(1) as first:
        busy = first.submit(field, rows(-1, 1), 0.5, rows(0, 1))
        assert gate.entered.wait(PATIENT)
        asked = [threads.submit(field, rows(i, i), i / 8, rows(10 * i, i)) for i in (1, 2, 3)]
        wait_until(lambda: len(batcher._waiting) == 4)
        finish(gate, batcher, [busy])
    assert sorted(gate.batches[1]) == [1, 2, 2, 3, 3, 3]
    for i, future in zip((1, 2, 3), asked, strict=True):
        torch.testing.assert_close(future.result(PATIENT), rows(i * i / 8 + 10 * i, i))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((rows(1, 1), 0.5, None), (torch.ones(1, 3), 0.5, None)),
        ((rows(1, 1), 0.5, None), (rows(1, 1).double(), 0.5, None)),
        ((rows(1, 1), 0.5, None), (rows(1, 1), 0.5, rows(1, 1))),
        ((rows(1, 1), 0.5, {"a": rows(1, 1)}), (rows(1, 1), 0.5, {"b": rows(1, 1)})),
        ((rows(1, 1), 0.5, ["a"]), (rows(1, 1), 0.5, ["b"])),
        ((rows(1, 1), 0.5, [object()]), (rows(1, 1), 0.5, [object()])),
    ],
)
def test_what_differs_in_more_than_its_rows_is_not_joined(threads, a, b):
    gate, batcher = Gate(), Batcher(16)
    field = BatchedField(gate, batcher)
    requests = arrive(batcher, threads, field)
    requests += [threads.submit(field, *arguments) for arguments in (a, b)]
    wait_until(lambda: len(batcher._waiting) == 3)
    finish(gate, batcher, requests)
    assert [len(batch) for batch in gate.batches] == [1, 1, 1]


def test_batches_are_padded_to_the_sizes_and_no_larger(threads):
    seen, gate = [], Gate()
    batcher = Batcher(batch_sizes=[6, 2], observe=seen.append)
    field = BatchedField(gate, batcher)
    finish(gate, batcher, arrive(batcher, threads, field, 1, 2, 8))
    assert {len(batch) for batch in gate.batches} == {2, 6}
    assert sum(tick.rows for tick in seen) == 12
    assert [tick.rows + tick.padded for tick in seen] == [len(b) for b in gate.batches]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([32, 9], [8, 8]),
        ([32, 11, 11], [6, 5, 5]),  # what is left over goes to the first
        ([32, 2, 1], [5, 2, 1]),
        ([32, 1, 1, 1, 1, 1], [3, 1, 1, 1, 1, 1]),  # half a batch, for the small ones' sake
        ([2, 2, 2, 32, 2, 2, 2, 2, 2], [2] * 8),
    ],
)
def test_shares_are_equal_and_what_small_ones_leave_goes_to_the_large(threads, asked, expected):
    gate, batcher = Gate(), Batcher(16)
    field = BatchedField(gate, batcher)
    finish(gate, batcher, arrive(batcher, threads, field, *asked))
    first = gate.batches[1]
    assert [first.count(i) for i in range(len(expected))] == expected


def test_a_large_request_neither_starves_nor_is_starved(threads, monkeypatch):
    monkeypatch.setattr(batching, "SHORTEST_WAIT", PATIENT)
    gate, batcher = Gate(), Batcher(8)
    field = BatchedField(gate, batcher)
    requests = arrive(batcher, threads, field, 16, *[2] * 6, evaluations=3)
    finish(gate, batcher, requests)
    shares = [[batch.count(i) for i in range(7)] for batch in gate.batches[1:]]
    assert all(share[0] >= 2 for share in shares)
    done = [max(k for k, share in enumerate(shares) if share[i]) for i in range(7)]
    assert done[1:4] == [2, 2, 2]  # one batch an evaluation, as if they were alone
    assert done[4:] == [5, 5, 5]  # and then the next
    assert sum(map(sum, shares)) == 3 * (16 + 6 * 2)


def test_a_batch_waits_for_none_that_it_has_no_share_for(threads, monkeypatch):
    monkeypatch.setattr(batching, "SHORTEST_WAIT", 100 * PATIENT)
    batcher, x = Batcher(4), rows(0, 2)
    field = BatchedField(lambda x, t, cond: -x, batcher)
    go = threading.Event()

    def early():
        with batcher.member():
            go.wait(PATIENT)
            return field(x, 0.5, None)

    asked = [threads.submit(early) for _ in range(2)]
    wait_until(lambda: len(batcher._members) == 2)
    with batcher.member():  # a third, between two evaluations for as long as it likes
        field(x, 0.5, None)
        go.set()
        assert [len(request.result(PATIENT)) for request in asked] == [2, 2]
    batcher.close()


def test_a_member_that_rests_is_not_waited_for(threads, monkeypatch):
    monkeypatch.setattr(batching, "SHORTEST_WAIT", 100 * PATIENT)
    batcher, x = Batcher(8), rows(0, 2)
    field = BatchedField(lambda x, t, cond: -x, batcher)
    with batcher.member():
        field(x, 0.5, None)
        asked = threads.submit(member, batcher, field, x)
        wait_until(lambda: batcher._waiting)
        assert not asked.done()
        batcher.rest()
        assert asked.result(PATIENT)
    batcher.close()


def test_one_that_fails_fails_alone(threads):
    def field(x, t, cond):
        if (x == 1).any():
            raise ArithmeticError("one of these rows")
        return -x

    gate, batcher = Gate(field), Batcher(16)
    batched = BatchedField(gate, batcher)
    requests = arrive(batcher, threads, batched, 2, 2, 2)
    gate.open.set()
    for i, request in enumerate(requests[1:]):
        if i == 1:
            with pytest.raises(ArithmeticError, match="one of these rows"):
                request.result(PATIENT)
        else:
            torch.testing.assert_close(request.result(PATIENT)[0], -rows(i, 2))
    batcher.close()
    assert max(map(len, gate.batches)) == 6  # they were joined at first


def test_a_network_that_returns_too_few_rows_is_an_error_of_its_callers(threads):
    gate, batcher = Gate(lambda x, t, cond: x[:0]), Batcher(16)
    requests = arrive(batcher, threads, BatchedField(gate, batcher), 2)
    gate.open.set()
    for request in requests:
        with pytest.raises(RuntimeError):
            request.result(PATIENT)
    batcher.close()


def test_nobody_waits_for_a_batcher_that_has_stopped(threads, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    def take():
        raise MemoryError

    gate, batcher = Gate(), Batcher(16)
    field = BatchedField(gate, batcher)
    requests = arrive(batcher, threads, field, 1)
    monkeypatch.setattr(batcher, "_take", take)
    gate.open.set()
    for request in requests[1:]:
        with pytest.raises(RuntimeError, match="closed"):
            request.result(PATIENT)
    with pytest.raises(RuntimeError, match="closed"):
        field(rows(0, 1), 0.5, None)


def test_an_observer_that_raises_ends_nothing(caplog):
    def observe(tick):
        raise OSError("no space left")

    batcher, x = Batcher(2, observe=observe), rows(3, 2)
    field = BatchedField(lambda x, t, cond: -x, batcher)
    for _ in range(2):
        torch.testing.assert_close(field(x, 0.5, None), -x)
    batcher.close()
    assert "no space left" in caplog.text


def test_closing_ends_those_that_wait(threads):
    gate, batcher = Gate(), Batcher(1)
    requests = arrive(batcher, threads, BatchedField(gate, batcher), 1, 1)
    closing = threads.submit(batcher.close)
    wait_until(lambda: batcher._closed)
    gate.open.set()
    assert requests[0].result(PATIENT)
    for request in requests[1:]:
        with pytest.raises(RuntimeError, match="closed"):
            request.result(PATIENT)
    closing.result(PATIENT)


def test_what_is_differentiated_through_runs_by_itself():
    batcher = Batcher(2)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    BatchedField(mixture, batcher)(x, 0.5, None).sum().backward()
    batcher.close()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(largest_batch=0), "largest_batch=0"),
        (dict(batch_sizes=[]), "batch_sizes="),
        (dict(batch_sizes=[0, 2]), "batch_sizes=0"),
        (dict(batch_sizes=8), "batch_sizes=8"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batcher(**arguments)


def test_a_call_whose_request_has_ended_takes_no_more_batches(threads):
    class Ended(Exception):
        pass

    ended = threading.Event()

    def check() -> None:
        if ended.is_set():
            raise Ended

    gate, batcher = Gate(), Batcher(largest_batch=2)
    field = BatchedField(gate, batcher)

    def ask() -> None:
        with batcher.member(check):
            field(rows(1, 20), 0.5, None)

    asked = threads.submit(ask)
    assert gate.entered.wait(PATIENT)
    ended.set()
    gate.open.set()
    with pytest.raises(Ended):
        asked.result(PATIENT)
    batcher.close()
    assert len(gate.batches) == 1
