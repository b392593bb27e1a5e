"""Serving on a Ray cluster: replicas of the server of `flowturbo.serve.api`, by Ray Serve.

Ray's proxies accept requests, queue them, and hand them to replicas; Ray scales, replaces and
drains replicas. Each replica has an engine of its own, with its running batch.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from fastapi import FastAPI
from ray import serve as ray_serve
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowturbo.serve.api import event
from flowturbo.serve.errors import ApiError
from flowturbo.serve.server import bind

__all__ = ["NAME", "serve"]

NAME = "flowturbo"
"""Of the application, and of its deployment."""
TARGET = 0.8
"""Of the requests that a replica runs at once, how many autoscaling aims at: Ray advises a limit
that is a fifth to a half above the target."""
RETRY_AFTER = 1  # seconds
ERRORS = {
    404: (503, "unavailable"), 408: (504, "timeout"), 429: (429, "queue_full"),
    503: (503, "unavailable"),
}  # fmt: skip
"""Status and code of our API for those of Ray's proxies; 404 if there is no application."""
LOST = ApiError(
    503, "the replica that ran the request was lost; send it again", code="replica_lost",
    headers={"Retry-After": str(RETRY_AFTER)},
)  # fmt: skip


class Replica:
    """An engine and its server, in a process of Ray.

    Args:
        build: makes the server.
    """

    def __init__(self, build: Callable[[], FastAPI]) -> None:
        self._build = build

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray, for the application that it hands requests to."""
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        logging.getLogger("flowturbo.serve").setLevel(logging.INFO)
        app = self._build()
        self._engine = app.state.engine
        return app

    def check_health(self) -> None:
        """Called by Ray, which replaces the replica if it raises."""
        if not self._engine.alive:
            raise RuntimeError("the engine has stopped")


def serve(
    build: Callable[[], FastAPI],
    *,
    replicas: int,
    max_replicas: int | None,
    gpus: int,
    host: str,
    port: int,
    keys: Sequence[str],
    running: int,
    queue: int,
    timeout: float,
    grace: float,
    ready: Callable[[str], None],
) -> None:
    """Serve on the cluster that was joined, until SIGINT or SIGTERM.

    Replicas then finish the requests that they accepted. If this process is killed and the cluster
    is not its own, the application keeps running; another call replaces it, replica by replica.

    Args:
        build: makes the server of a replica, in its process.
        replicas: number of replicas, from 1; with ``max_replicas``, the smallest number.
        max_replicas: largest number of replicas under load; None keeps the number.
        gpus: of each replica, 0 or 1; a replica on the CPU takes a core.
        host: address that the proxy of every machine listens on.
        port: of the proxies, from 1.
        keys: API keys.
        running: largest number of requests that are handed to a replica at once.
        queue: largest number of requests that wait at a proxy.
        timeout: time limit of a request, in seconds, above 0.
        grace: seconds that a replica has to finish when it stops.
        ready: called with the URL once it accepts requests.

    Raises:
        ValueError: if there is no key, and ``host`` is not loopback or the cluster serves already,
            at an address that others may reach.
        OSError: if the address is not available, or replicas do not start.
    """
    begun = not ray_serve.status().proxies
    if begun:
        bind(host, port, keys).close()
    elif not keys:
        raise ValueError(
            "the cluster serves already, at an address of its own that others may reach, so an API "
            "key is needed; give one with --api-key-file or FLOWTURBO_API_KEY"
        )
    callback = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.proxy_middleware"}
    ray_serve.start(
        http_options={"host": host, "port": port, "request_timeout_s": timeout},
        controller_options={"runtime_env": {"env_vars": callback}},
    )
    number = (
        {"num_replicas": replicas}
        if max_replicas is None
        else {
            "autoscaling_config": {
                "min_replicas": replicas,
                "max_replicas": max_replicas,
                "target_ongoing_requests": TARGET * running,
            }
        }
    )
    deployment = ray_serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        max_ongoing_requests=running,
        max_queued_requests=queue,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_AFTER},
        graceful_shutdown_timeout_s=grace,
        logging_config={"enable_access_log": False},
        **number,
    )
    stopped = threading.Event()
    replaced = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    try:
        try:
            ray_serve.run(deployment(ray_serve.ingress()(Replica)).bind(build), name=NAME)
        except RuntimeError as e:
            raise OSError(f"Ray Serve cannot start replicas: {' '.join(str(e).split())}") from e
        for each in replaced:
            signal.signal(each, stop)
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        while not stopped.wait(1):
            pass
    finally:
        while NAME in ray_serve.status().applications:
            with suppress(TimeoutError):  # Ray's own, of a minute
                ray_serve.delete(NAME)
        if begun:
            ray_serve.shutdown()
        for each, handler in replaced.items():
            signal.signal(each, handler)


class Reasons:
    """Middleware of Ray's proxies: errors that are theirs have the form of our API.

    A proxy answers by itself if no replica does: in plain text if the queue is full or the time is
    over, with an empty response if the replica was lost. Such a request may be sent again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        kind, status, text, open_ = "", 0, b"", True

        async def seen(message: Message) -> None:
            nonlocal kind, status, text, open_
            if message["type"] == "http.response.start":
                headers, status = MutableHeaders(scope=message), message["status"]
                kind = headers.get("content-type", "")
                if "x-request-id" in headers:  # the replica's, and the same of the proxy
                    headers["x-request-id"] = headers["x-request-id"]
            else:
                open_ = message.get("more_body", False)
            if self._own(kind, status):
                text += message.get("body", b"")
            else:
                await send(message)

        await self.app(scope, receive, seen)
        if self._own(kind, status):
            known, code = ERRORS[status]
            said = "the server starts or stops; try again" if status == 404 else text.decode()
            error = ApiError(known, said, code=code, headers=LOST.headers)
            await self._answer(error, scope, receive, send)
        elif not status:
            await self._answer(LOST, scope, receive, send)
        elif open_ and kind.startswith("text/event-stream"):
            await send({"type": "http.response.body", "body": event("error", LOST.body())})

    def _own(self, kind: str, status: int) -> bool:
        return kind.startswith("text/plain") and status in ERRORS

    async def _answer(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        made = JSONResponse(error.body(), error.status, error.headers)
        await made(scope, receive, send)


def proxy_middleware() -> list[Middleware]:
    """What Ray calls when a proxy starts."""
    return [Middleware(Reasons)]
