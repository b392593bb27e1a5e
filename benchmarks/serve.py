"""A server under load: one running batch, compared with one request at a time and static batching.

    python benchmarks/serve.py --out benchmarks/records/serve.json
    python benchmarks/serve.py --quick --out /tmp/serve.json

Three servers with the same model, HTTP and network run in processes of their own, on loopback:

- ``one``: `flowturbo serve --running 1`, one request at a time;
- ``static``: whenever it is idle, it takes all waiting requests of the plan of the oldest, up to
  the largest batch, and samples them to the end in one call of `flowturbo.sample`;
- ``running``: `flowturbo serve`, whose batch requests join and leave at any evaluation.

Closed loop: enough clients to keep the largest batch full, each of which sends a request as soon as
its last is answered; images per second are the capacity. Open loop: Poisson arrivals, the same for
every server, at fractions of the capacity of ``static``; all requests are streams with three
partial images.

    python benchmarks/serve.py --table benchmarks/records/serve.json
    python benchmarks/serve.py --figure docs/images/serve.png benchmarks/records/serve.json

print and plot a record. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from http_load import Reply, Server, post, server
from ratios import table

import flowturbo as ft
from flowturbo.files import write_json
from flowturbo.images import to_pil
from flowturbo.provenance import conditions
from flowturbo.serve import work
from flowturbo.serve.api import create_app
from flowturbo.serve.batching import LARGEST
from flowturbo.serve.engine import Engine, Job
from flowturbo.serve.safeguards import Safeguards
from flowturbo.stats import interval

WAYS = ("one", "static", "running")
PLANS = ("fast", "light", "balanced", "best")
SCALES = (1.25, 1.5, 1.75, 2.0)
AT = 0.8  # of the capacity of static batching, where most is measured
PARTS = 4  # runs of each way, in turn, of full batches and there
MODEL = "emoji"
PARTIAL = 3
ENDS = {"n": (1, 8), "plan": ("fast", "best")}  # the shortest and longest requests of a workload

GROUPS = ("all", *(f"{key}={end}" for key, ends in ENDS.items() for end in ends))
Request = dict[str, Any]
Latencies = dict[str, Any]


def equal(random: random.Random) -> Request:
    return {"plan": "balanced", "guidance_scale": 1.5}


def mixed(random: random.Random) -> Request:
    return {"plan": random.choice(PLANS), "guidance_scale": random.choice(SCALES)}


def lengths(random: random.Random) -> Request:
    return {**equal(random), "n": 8 if random.random() < 0.2 else 1}


WORKLOADS: dict[str, tuple[str, Callable[[random.Random], Request]]] = {
    "equal": ("one image each, plan balanced, guidance 1.5", equal),
    "mixed": ("one image each, plans fast to best, guidance 1.25 to 2", mixed),
    "lengths": ("plan balanced, guidance 1.5, eight images for every fifth, else one", lengths),
}


def requests(kind: str, seed: int) -> Iterator[Request]:
    """The requests of a workload, the same for every way."""
    source, names = random.Random(seed), ft.load(MODEL).names
    while True:
        yield {
            **WORKLOADS[kind][1](source), "prompt": source.choice(names),
            "seed": source.randrange(2**31), "stream": True, "partial_images": PARTIAL,
        }  # fmt: skip


class StaticBatching(Engine):
    """The rival: batches of whole requests of one plan, which run to their end."""

    def __init__(self, model: ft.Model, largest_batch: int) -> None:
        super().__init__(model, running=1)
        self._model, self._largest = model, largest_batch
        self._queue: deque[tuple[Job[Any], work.Work, ft.Plan]] = deque()
        self._filled = threading.Condition()
        threading.Thread(target=self._serve, daemon=True).start()

    def submit(self, task: Any, *, images: int = 1, timeout: float | None = None) -> Job[Any]:
        job: Job[Any] = Job(images, None)
        with self._filled:
            self._queue.append((job, task.work, work.plan_of(self._model, task.work.request)))
            self._filled.notify()
        return job

    def _serve(self) -> None:
        while True:
            with self._filled:
                self._filled.wait_for(lambda: self._queue)
                plan, taken, rows = self._queue[0][2], [], 0
                for entry in list(self._queue):
                    more = 2 * entry[0].images  # of both branches of guidance
                    if entry[2] is plan and (not taken or rows + more <= self._largest):
                        rows += more
                        taken.append(entry)
                        self._queue.remove(entry)
            for (job, _, _), answer in zip(taken, self._run(plan, taken), strict=True):
                job.future.set_result(answer)

    def _run(self, plan: ft.Plan, taken: list[Any]) -> list[work.Answer]:
        model, asked = self._model, [w.request for _, w, _ in taken]
        counts = [r.count for r in asked]
        images = [(r, i) for r in asked for i in range(r.count)]
        for job, _, _ in taken:
            job.started = time.monotonic()
        sees = [work._partials(w) for _, w, _ in taken]

        def see(step: Any) -> None:
            split = [v.split(counts) for v in (step.x, step.v, step.x1)]
            for show, *parts in zip(sees, *split, strict=True):
                show(ft.sampling.Step(step.index, step.total, step.time, *parts, step.evaluator))

        x = ft.sample(
            plan, model, ft.noise.draw([r.seed + i for r, i in images], model.shape),
            model.condition([r.prompt for r, _ in images]),
            guidance=torch.tensor([r.guidance_scale for r, _ in images]),
            refiner=self.model.refiner._refiner, callback=see,
        )  # fmt: skip
        return [
            work._answer(model, r, to_pil(model.decode(part)), r.seed, plan.name,
                         (len(plan), 2 * len(plan)), 0)
            for r, part in zip(asked, x.split(counts), strict=True)
        ]  # fmt: skip


class Task:
    """A task that static batching can look into."""

    def __init__(self, made: work.Work) -> None:
        self.work = made


class Tasks(Safeguards):
    """No safeguards; the task of a request is a `Task`."""

    def guarded(self, made: work.Work) -> Any:
        return Task(made)


def serve_static(dtype: str, largest_batch: int) -> None:
    """Serve by static batching, as the command serves."""
    from flowturbo.serve.memory import keep_freed_memory
    from flowturbo.serve.server import bind, serve

    keep_freed_memory()
    loaded = ft.load(MODEL, dtype=getattr(torch, dtype))
    app = create_app(StaticBatching(loaded, largest_batch), safeguards=Tasks())
    with bind("127.0.0.1", 0, ()) as listening:
        serve(app, listening, grace=1, ready=lambda url: print(url, flush=True))


async def closed(
    server: Server, kind: str, clients: int, seconds: float, seed: int
) -> tuple[int, float]:
    """Images, and seconds, while ``clients`` always have a request each."""
    asked, begun = requests(kind, seed + 200), time.perf_counter()

    async def client() -> int:
        images = 0
        while time.perf_counter() < begun + seconds:
            images += checked(await post(server.port, next(asked))).images
        return images

    images = sum(await asyncio.gather(*(client() for _ in range(clients))))
    return images, time.perf_counter() - begun


def capacity(clients: int, parts: list[tuple[int, float]]) -> dict[str, Any]:
    """Images a second of several runs of `closed`."""
    images, seconds = (sum(of) for of in zip(*parts, strict=True))
    return {"clients": clients, "images": images, "images_per_second": images / seconds}


async def opened(
    server: Server, kind: str, rate: float, seconds: float, seed: int
) -> tuple[list[tuple[Request, Reply]], float]:
    """Requests that arrive at random times, ``rate`` images a second, with replies; seconds."""
    source, asked = random.Random(seed), requests(kind, seed + 100)
    at, plan = 0.0, []
    while at < seconds:
        request = next(asked)
        plan.append((at, request))
        at += source.expovariate(rate) * request.get("n", 1)
    begun = time.perf_counter()

    async def arrive(at: float, request: Request) -> tuple[Request, Reply]:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        return request, checked(await post(server.port, request))

    replies = await asyncio.gather(*(arrive(at, request) for at, request in plan))
    return replies, time.perf_counter() - begun


def latencies(rate: float, parts: list[tuple[list[tuple[Request, Reply]], float]]) -> Latencies:
    """What the replies of several runs at one rate say, of all and of short and long requests."""
    replies, taken = [r for part, _ in parts for r in part], sum(seconds for _, seconds in parts)
    images = sum(request.get("n", 1) for request, _ in replies)
    groups = {"all": [reply for _, reply in replies]}
    for key, ends in ENDS.items():
        found = {f"{key}={end}": [reply for request, reply in replies if request.get(key, 1) == end]
                 for end in ends}  # fmt: skip
        groups |= found if all(found.values()) else {}
    return {
        "rate": rate, "requests": len(replies), "images": images,
        "images_per_second": images / taken,
        **{name: {"total": percentiles([r.total for r in some]),
                  "first": percentiles([r.first for r in some])}
           for name, some in groups.items()},
    }  # fmt: skip


def checked(reply: Reply) -> Reply:
    if reply.status != 200 or not reply.images or reply.first is None:
        raise RuntimeError(f"status {reply.status}: {reply.body[:500]!r}")
    return reply


def percentiles(seconds: list[float]) -> dict[str, Any]:
    found = {f"p{p}": float(np.percentile(seconds, p)) for p in (50, 95, 99)}
    return {**found, "p95_95": interval(lambda s: np.percentile(s, 95), seconds)}


def measure(servers: Mapping[str, Server], options: argparse.Namespace) -> dict[str, Any]:
    """All workloads, in short runs of one way after the other, so that they share what drifts."""
    seconds, clients = options.seconds, options.clients
    for one in servers.values():  # kernels are chosen at the first batch of a size
        asyncio.run(closed(one, "lengths", clients, seconds / 4, 0))
    found: dict[str, Any] = {}
    for kind in options.workloads:
        about, _ = WORKLOADS[kind]
        full = [[asyncio.run(closed(one, kind, clients, seconds / 2, seed))
                 for one in servers.values()] for seed in range(PARTS)]  # fmt: skip
        ways: dict[str, Any] = {
            way: {"closed": capacity(clients, list(parts)), "open": {}}
            for way, parts in zip(servers, zip(*full, strict=True), strict=True)
        }
        most = ways["static"]["closed"]["images_per_second"]
        print(kind, {way: round(e["closed"]["images_per_second"], 2) for way, e in ways.items()})
        for share in options.rates:
            rate, runs = share * most, {way: [] for way in servers}
            for seed in range(PARTS if share == AT else 1):
                for way, one in servers.items():
                    if way != "one" or (share <= 1 and not seed):
                        runs[way].append(asyncio.run(opened(one, kind, rate, seconds, seed)))
            for way, parts in runs.items():
                if not parts:
                    continue
                at = ways[way]["open"][f"{share:g}"] = latencies(rate, parts)
                print(f"{kind}, {share:g}, {way}: p95 {at['all']['total']['p95']:.3f} s, first "
                      f"{at['all']['first']['p95']:.3f} s", flush=True)  # fmt: skip
        found[kind] = {"about": about, "ways": ways}
    return found


def show(record: dict[str, Any]) -> None:
    """Capacities, and latencies at the rate `AT`."""
    print(json.dumps(record["conditions"], indent=1))
    rows, ratios = [], []
    for kind, part in record["workloads"].items():
        for way, entry in part["ways"].items():
            capacity = f"{entry['closed']['images_per_second']:.1f}"
            at = entry["open"].get(f"{AT:g}")
            for group in GROUPS if at else ():
                if group not in at:
                    continue
                cells = [f"{1e3 * at[group][what][p]:.0f}" for what in ("total", "first")
                         for p in ("p50", "p95", "p99")]  # fmt: skip
                rows.append([kind, group, way, capacity, *cells])
        ours, static, one = (part["ways"][way] for way in ("running", "static", "one"))
        most = ours["closed"]["images_per_second"]
        a, b = ours["open"][f"{AT:g}"], static["open"][f"{AT:g}"]
        for group in [g for g in GROUPS if g in a]:
            ratios.append([
                kind, group, f"{most / one['closed']['images_per_second']:.2f}",
                f"{most / static['closed']['images_per_second']:.2f}",
                *(f"{a[group][what]['p95'] / b[group][what]['p95']:.2f}"
                  for what in ("total", "first")),
            ])  # fmt: skip
    heads = [f"{what}, {p}" for what in ("total", "first") for p in ("p50", "p95", "p99")]
    print(table(["requests", "of", "way", "images/s", *heads], rows))
    print(table(["requests", "of", "images/s over one", "over static", "total p95 over static",
                 "first p95 over static"], ratios))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dtype", default="bfloat16")
    add("--largest-batch", type=int, default=LARGEST)
    add("--seconds", type=float, default=12.0, help="of a run")
    add("--clients", type=int, default=24, help="of the closed loop")
    add("--rates", type=float, nargs="+", default=[0.5, AT, 0.95, 1.2], help="of static's capacity")
    add(
        "--workloads",
        nargs="+",
        choices=WORKLOADS,
        default=list(WORKLOADS),
        help="to measure; the record keeps the others",
    )
    add("--quick", action="store_true", help="a dry run")
    add("--out", default="benchmarks/records/serve.json")
    add("--table", metavar="RECORD", help="print a record, and stop")
    add("--figure", nargs=2, metavar=("IMAGE", "RECORD"), help="draw a record, and stop")
    add("--serve-static", action="store_true", help="be the rival, and nothing else")
    options = parser.parse_args()
    if options.serve_static:
        serve_static(options.dtype, options.largest_batch)
        return
    if options.table:
        show(json.loads(Path(options.table).read_text("utf-8")))
        return
    if options.figure:
        from figures import serving

        serving(json.loads(Path(options.figure[1]).read_text("utf-8")), Path(options.figure[0]))
        return
    if options.quick:
        options.seconds, options.clients, options.rates = 1.0, 8, [AT]
    shared = ["--model", MODEL, "--dtype", options.dtype,
              "--largest-batch", str(options.largest_batch)]  # fmt: skip
    ours = ["-m", "flowturbo", "serve", "--port", "0", *shared]
    commands = {
        "one": [*ours, "--running", "1"],
        "static": [__file__, "--serve-static", *shared[2:]],
        "running": ours,
    }
    model = ft.load(MODEL, dtype=getattr(torch, options.dtype))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {
            way: stack.enter_context(server(*commands[way], log=Path(folder) / f"{way}.log"))
            for way in WAYS
        }
        found = measure(servers, options)
    out, kept = Path(options.out), {}
    if out.exists() and {*options.workloads} != {*WORKLOADS}:
        kept = json.loads(out.read_text("utf-8"))["workloads"]
    about = conditions(model, None, torch.empty(options.largest_batch, *model.shape))
    record = {
        "kind": "serve",
        "conditions": {
            **about, "dtype": options.dtype, "largest_batch": options.largest_batch,
            "seconds": options.seconds, "partial_images": PARTIAL, "ways": list(WAYS),
        },
        "workloads": {**kept, **found},
    }  # fmt: skip
    write_json(out, record)
    show(record)


if __name__ == "__main__":
    main()
