"""A server with misbehaving clients: it answers or refuses every request, and stops cleanly.

    python benchmarks/serve_abuse.py --requests 10000

Random requests, most of them invalid: malformed and oversized bodies, files that are not images or
far too large, clients that disconnect at any moment, send or read slowly, or set a tiny time limit.
Each must be answered, or refused with an error that says why; afterwards nothing may run or wait,
and the memory of the process must not have grown since the first half. Then SIGTERM during many
requests: those that were accepted are answered, and the process exits by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from http_load import PATH, Reply, Server, exchange, get, head, server
from PIL import Image

EDITS = "/v1/images/edits"
CLIENTS = 32
KINDS = (
    "good", "good", "stream", "malformed", "malformed", "leaves", "leaves", "slow reader",
    "slow sender", "truncated", "no time", "edit",
)  # fmt: skip
GROWTH = 32  # MiB that memory may vary by
BUSY = re.compile(r"^flowturbo_requests_(?:waiting|running) (\S+)$", re.M)


@dataclass
class Outcome:
    """What came of many requests: statuses by kind, and what should not have happened."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def png(width: int, height: int) -> bytes:
    made = io.BytesIO()
    Image.new("L", (width, height)).save(made, "PNG")
    return made.getvalue()


HUGE = png(9000, 9000)  # a file of few bytes


def good(source: random.Random, **more: Any) -> dict[str, Any]:
    return {
        "prompt": "", "plan": source.choice(["E1", "E2", "AB2:4"]), "seed": source.randrange(99),
        "n": source.choice([1, 1, 3]), "guidance_scale": source.choice([1, 2]), **more,
    }  # fmt: skip


def sent(body: object, path: str = PATH, kind: str = "application/json") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(content, path, kind) + content


def edit(image: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    return {"prompt": "", "plan": "AB2:2", "images": [{"image_url": url}]}


def malformed(source: random.Random) -> bytes:
    """A request that is refused, whatever the server is doing."""
    wrong: list[Callable[[], bytes]] = [
        lambda: sent(b""),
        lambda: sent(source.randbytes(200)),
        lambda: sent(json.dumps(good(source)).encode()[: source.randrange(20)]),
        lambda: sent([good(source)]),
        lambda: sent(good(source, n=source.choice([0, -1, 11, 10**40, "x", None, 1.5, []]) or "0")),
        lambda: sent(good(source, size=source.choice(["1", "0x0", "9999x9", "axb", 7]))),
        lambda: sent(good(source, plan=source.choice(["", "Q9", "E999999", "../x.json"]))),
        lambda: sent(good(source, plan="E" * 300)),
        lambda: sent(good(source, guidance_scale=source.choice([1e9, "two", {}, [1]]))),
        lambda: sent(good(source, **{source.choice("abcdef"): 1})),
        lambda: sent(good(source, model="another")),
        lambda: sent(b'{"prompt": ' + b"[" * 50_000),
        lambda: sent(b'{"prompt": "", "guidance_scale": NaN}'),
        lambda: sent({**good(source), "prompt": "x" * 40_000}),
        lambda: sent(good(source), kind="text/plain"),
        lambda: sent(good(source), EDITS),
        lambda: sent(edit(HUGE), EDITS),
        lambda: sent(edit(source.randbytes(300)), EDITS),
        lambda: sent(edit(png(64, 64)[:60]), EDITS),
        lambda: sent(source.randbytes(500), EDITS, "multipart/form-data; boundary=x"),
        lambda: sent(b"--x\r\n\r\n", EDITS, "multipart/form-data"),
        lambda: sent(good(source), "/v1/nothing"),
        lambda: head(b"").replace(b"Length: 0", b"Length: 99999999999"),
        lambda: head(b"").replace(b"Length: 0", b"Length: -7"),
        lambda: source.randbytes(100) + b"\r\n\r\n",
    ]  # fmt: skip
    return source.choice(wrong)()


def refused_well(reply: Reply) -> bool:
    """Whether a reply is an error with its reason; the HTTP parser's own are lines of text."""
    if reply.status == 400 and reply.body.startswith(b"Invalid HTTP request"):
        return True
    try:
        return 400 <= reply.status < 500 and bool(json.loads(reply.body)["error"]["message"])
    except (ValueError, KeyError):
        return False


def finished(reply: Reply) -> bool:
    """Whether a reply has images, or says why not; a stream says so in its last event."""
    if reply.status == 200:
        return b"b64_json" in reply.body or b"event: error" in reply.body
    return reply.status in (429, 504) and b'"message"' in reply.body


async def one(port: int, source: random.Random, outcome: Outcome) -> None:
    """One client."""
    kind = source.choice(KINDS)
    stream = {"stream": True, "partial_images": source.randrange(4)}
    if kind == "malformed":
        what = malformed(source)
        reply = await exchange(port, what)
        if not refused_well(reply):
            outcome.wrong.append(f"{what[-300:]!r}: {reply.status} {reply.body[:300]!r}")
    elif kind in ("leaves", "truncated", "slow sender"):
        body = sent(good(source, **(stream if source.random() < 0.5 else {})))
        reply = await partly(port, kind, body, source)
        if kind == "slow sender" and not finished(reply):
            outcome.wrong.append(f"{kind}: {reply.status} {reply.body[:300]!r}")
    else:
        more = stream if kind in ("stream", "slow reader") or source.random() < 0.3 else {}
        if kind == "no time":
            more = {**more, "timeout": 10 ** source.uniform(-6, -1)}
        what = edit(png(8, 8)) if kind == "edit" else good(source, **more)
        pause = 0.005 if kind == "slow reader" else 0.0
        reply = await exchange(port, sent(what, EDITS if kind == "edit" else PATH), pause)
        if not finished(reply):
            outcome.wrong.append(f"{kind}, {what}: {reply.status} {reply.body[:300]!r}")
    outcome.statuses[kind, reply.status] += 1


async def partly(port: int, kind: str, what: bytes, source: random.Random) -> Reply:
    """A client that leaves, before all is sent or at any moment after, or sends in pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    with suppress(ConnectionError):
        if kind == "truncated":
            writer.write(what[: source.randrange(len(what))])
            await writer.drain()
        elif kind == "leaves":
            writer.write(what)
            await writer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(100), 10 ** source.uniform(-4, 0))
        else:
            for i in range(0, len(what), 40):
                writer.write(what[i : i + 40])
                await writer.drain()
                await asyncio.sleep(0.01)
            received = await reader.read()
    writer.close()
    status = int(received.split(b" ", 2)[1]) if received else 0
    return Reply(status, received.partition(b"\r\n\r\n")[2], None, 0.0)


async def many(port: int, requests: int, seed: int) -> Outcome:
    """So many requests by `CLIENTS` at a time."""
    outcome, source, left = Outcome(), random.Random(seed), iter(range(requests))

    async def client() -> None:
        for _ in left:
            try:
                await one(port, source, outcome)
            except ConnectionError as e:  # without an answer
                outcome.wrong.append(repr(e))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return outcome


async def quiet(port: int, seconds: float = 30.0) -> bool:
    """Whether nothing runs or waits any more, after at most so long."""
    for _ in range(int(10 * seconds)):
        if not sum(map(float, BUSY.findall(await get(port, "/metrics")))):
            return True
        await asyncio.sleep(0.1)
    return False


def memory(server: Server) -> float:
    """The resident memory of a server, in MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


async def terminated(server: Server, requests: int, seed: int) -> Outcome:
    """SIGTERM while so many requests are there, all of them good."""
    outcome, source = Outcome(), random.Random(seed)

    async def ask() -> None:
        try:
            reply = await exchange(server.port, sent(good(source)))
        except ConnectionError:  # it no longer listens
            outcome.statuses["terminated", 0] += 1
            return
        outcome.statuses["terminated", reply.status] += 1
        if not finished(reply) and reply.status != 503:
            outcome.wrong.append(f"terminated: {reply.status} {reply.body[:300]!r}")

    asked = [asyncio.create_task(ask()) for _ in range(requests)]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    server.process.send_signal(signal.SIGTERM)
    asked += [asyncio.create_task(ask()) for _ in range(requests // 4)]
    await asyncio.gather(*asked)
    code = await asyncio.to_thread(server.process.wait, 60)
    if code not in (0, -signal.SIGTERM):  # uvicorn raises the signal again when it is done
        outcome.wrong.append(f"the process ended with {code}")
    return outcome


def run(model: str, requests: int, seed: int, log: Path) -> dict[str, Any]:
    """All of it, against a server process; ``wrong`` is empty if all was well."""
    command = ("-m", "flowturbo", "serve", "--port", "0", "--model", model, "--queue", "64")
    with server(*command, log=log) as there:
        first = asyncio.run(many(there.port, requests // 2, seed))
        calm = asyncio.run(quiet(there.port))
        before = memory(there)
        second = asyncio.run(many(there.port, requests - requests // 2, seed + 1))
        calm = asyncio.run(quiet(there.port)) and calm
        after = memory(there)
        last = asyncio.run(terminated(there, 2 * CLIENTS, seed + 2))
    wrong = [*first.wrong, *second.wrong, *last.wrong]
    if not calm:
        wrong.append("something still ran or waited when all clients had left")
    if after > before + GROWTH:
        wrong.append(f"memory grew from {before:.0f} to {after:.0f} MiB")
    text = log.read_text()
    if "Traceback" in text:
        wrong.append("the log has a traceback: " + text[text.index("Traceback") :][:2000])
    statuses = first.statuses + second.statuses + last.statuses
    return {
        "requests": statuses.total(),
        "statuses": {f"{kind}, {status}": n for (kind, status), n in sorted(statuses.items())},
        "mebibytes": [round(before), round(after)],
        "wrong": wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="digits")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(options.model, options.requests, options.seed, Path(folder) / "log")
    print(json.dumps(found, indent=1))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
