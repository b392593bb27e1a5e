"""Server processes, and a lightweight client: raw HTTP/1.1, one connection per request."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATH = "/v1/images/generations"


@dataclass(frozen=True)
class Server:
    """A server that runs: its process and port."""

    process: subprocess.Popen[str]
    port: int


@contextmanager
def server(*command: str, log: Path, **env: str) -> Iterator[Server]:
    """Run a command that prints its URL when it is ready, and end it with SIGTERM."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, **env},
        )  # fmt: skip
    try:
        line = process.stdout.readline()
        found = re.search(r"http://[^:]+:(\d+)", line)
        if found is None:
            raise RuntimeError(f"{' '.join(command)} did not start: {line}{log.read_text()}")
        yield Server(process, int(found[1]))
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@dataclass
class Reply:
    """What a request came to.

    Attributes:
        status: of HTTP; 0 if the connection ended before one.
        body: all that came after the head.
        first: seconds to the first image, partial or not; None if there was none.
        total: seconds to the end.
    """

    status: int
    body: bytes
    first: float | None
    total: float

    @property
    def images(self) -> int:
        """Finished images of a stream."""
        return self.body.count(b"event: image_generation.completed")


def head(body: bytes, path: str = PATH, kind: str = "application/json") -> bytes:
    """The head of a request."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()


async def post(port: int, request: dict[str, Any]) -> Reply:
    """Send a request as JSON, and read its reply to the end."""
    body = json.dumps(request).encode()
    return await exchange(port, head(body) + body)


async def exchange(port: int, sent: bytes, pause: float = 0.0) -> Reply:
    """Send these bytes, and read until the server closes, with a pause before each read."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    parts, first = [], None
    try:
        writer.write(sent)
        await writer.drain()
        while part := await reader.read(2**16 if not pause else 2**12):
            if first is None and b"b64_json" in part:
                first = time.perf_counter() - begun
            parts.append(part)
            await asyncio.sleep(pause)
    finally:
        writer.close()
    start, _, rest = b"".join(parts).partition(b"\r\n\r\n")
    status = int(start.split(b" ", 2)[1]) if start else 0
    return Reply(status, rest, first, time.perf_counter() - begun)


async def get(port: int, path: str) -> str:
    """The text at ``path``."""
    sent = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    return (await exchange(port, sent)).body.decode()
