"""HTTP: OpenAI's images API on an engine.

``POST /v1/images/generations``, ``POST /v1/images/edits`` and ``GET /v1/models`` answer as OpenAI's
do, so that its clients work unchanged, and accept a few more fields (`flowturbo.serve.schema`).
``/healthz``, ``/readyz`` and ``/metrics`` are for the operator of the server.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from torch import Tensor

from flowturbo._version import __version__
from flowturbo.serve.bodies import EDIT_BODY, GENERATION_BODY, content_type, edit_body
from flowturbo.serve.engine import Engine, Job
from flowturbo.serve.errors import ApiError, of_exception
from flowturbo.serve.loopback import is_loopback
from flowturbo.serve.metrics import Metrics
from flowturbo.serve.middleware import Surround
from flowturbo.serve.safeguards import Safeguards
from flowturbo.serve.schema import GenerationRequest
from flowturbo.serve.ui import add_page
from flowturbo.serve.work import (
    Answer,
    Work,
    edit_work,
    generation_work,
    opened,
    preview,
)

__all__ = ["create_app", "event"]

LOG = logging.getLogger("flowturbo.serve")
POLL = 0.1  # seconds between checks that the client is still connected
LARGEST_BODY = 2**26
GRACE = 30.0


def create_app(
    engine: Engine,
    *,
    metrics: Metrics | None = None,
    keys: Sequence[str] = (),
    largest_body: int = LARGEST_BODY,
    timeout: float = 120.0,
    grace: float = GRACE,
    safeguards: Safeguards | None = None,
    ui: bool = False,
) -> FastAPI:
    """The server of an engine, an ASGI application, which closes the engine when it stops.

    Args:
        engine: generates the images.
        metrics: the metrics that the engine reports its batches to.
        keys: API keys, one of which every request needs; if empty, requests need no key.
        largest_body: limit of a request, in bytes.
        timeout: time limit of a request, in seconds, above 0.
        grace: seconds that requests have to finish when the server stops.
        safeguards: checks of prompts and images, and credentials; none by default.
        ui: also serve the page, at ``/``.
    """
    metrics = metrics or Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close, grace)

    app = FastAPI(
        title="flowturbo", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(Surround, largest_body=largest_body, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _raised)
    app.add_exception_handler(HTTPException, _raised)
    app.state.engine, app.state.metrics = engine, metrics
    server = _Server(engine, metrics, timeout, safeguards or Safeguards())
    expected = [key.encode() for key in keys]

    def authorized(request: Request) -> None:
        if not expected:
            _check_local(request)
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        sent = given.encode() if kind.lower() == "bearer" else b""
        if not any(hmac.compare_digest(sent, key) for key in expected):
            raise ApiError(
                401, "send an API key: 'Authorization: Bearer KEY'", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    guarded = [Depends(authorized)]

    @app.get("/healthz")
    async def health() -> JSONResponse:
        alive = engine.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        open_ = not engine.closing
        return JSONResponse({"ready": open_}, 200 if open_ else 503)

    @app.get("/metrics", dependencies=guarded)
    async def figures() -> PlainTextResponse:
        metrics.waiting.set(engine.waiting)
        metrics.running.set(engine.running)
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [server.model_entry()]}

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> dict[str, Any]:
        server.check_model(name)
        return server.model_entry()

    @app.post("/v1/images/generations", dependencies=guarded, openapi_extra=GENERATION_BODY)
    async def generations(request: Request) -> Response:
        kind = content_type(request)
        if kind != "application/json":
            raise ApiError(415, f"content-type {kind!r}: send application/json")
        content = await request.body()
        body = await asyncio.to_thread(GenerationRequest.model_validate_json, content)
        server.check_model(body.model)
        return await server.answer(request, generation_work(engine.model, body), "image_generation")

    @app.post("/v1/images/edits", dependencies=guarded, openapi_extra=EDIT_BODY)
    async def edits(request: Request) -> Response:
        body, images, mask = await edit_body(request)
        server.check_model(body.model)
        contents = {f"image[{i}]": data for i, data in enumerate(images)}
        contents |= {} if mask is None else {"mask": mask}
        found = opened(contents)
        hole = found.pop("mask", None)
        work = edit_work(engine.model, body, [*found.values()], hole)
        return await server.answer(request, work, "image_edit")

    if ui:
        add_page(app)
    return app


async def _raised(request: Request, error: Exception) -> Response:
    """Leave an error to `Surround`, which answers all of them."""
    raise error


class _Server:
    """Hands work to the engine, and its answers to clients."""

    def __init__(
        self, engine: Engine, metrics: Metrics, timeout: float, safeguards: Safeguards
    ) -> None:
        self.engine, self.metrics, self.timeout = engine, metrics, timeout
        self.safeguards = safeguards
        self.created = int(time.time())

    def model_entry(self) -> dict[str, Any]:
        """The model as ``/v1/models`` shows it, with its plans, styles and sizes."""
        model = self.engine.model
        _, height, width = model.image_shape
        return {
            "id": model.name,
            "object": "model",
            "created": self.created,
            "owned_by": "flowturbo",
            "description": model.card.get("description", ""),
            "size": f"{width}x{height}",
            "defaults": model.defaults,
            "plans": {name: str(plan.name) for name, plan in model.plans.items()},
            "styles": model.styles,
            "names": model.names[:2000],
        }

    def check_model(self, name: str | None) -> None:
        """Refuse another model than the one that is served."""
        served = self.engine.model.name
        if name is not None and name != served:
            raise ApiError(
                404, f"model={name!r}: this server has {served!r}; use that, or leave it out",
                param="model", code="model_not_found",
            )  # fmt: skip

    async def answer(self, request: Request, work: Work, kind: str) -> Response:
        """Run ``work`` and answer with its images, or with the events of a stream.

        A stream begins with its first event, so an error before that has its own status.
        """
        loop = asyncio.get_running_loop()

        def partial(index: int, states: Tensor) -> None:
            loop.call_soon_threadsafe(lambda: running.add(index, states))

        work.partial = partial
        limit = min(self.timeout, work.request.timeout or self.timeout)
        job = self.engine.submit(self.safeguards.guarded(work), images=work.images, timeout=limit)
        running: _Running = _Running(request, job)
        try:
            begun = await running.next()
            if begun is None:
                await running.done  # raises what ended it
            if work.request.stream:
                stream = self._events(request, running, begun, work, kind)
                headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
                return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
            made = await running.done
        except BaseException as e:
            job.cancel()
            if isinstance(e, Exception):
                raise of_exception(e, job.begun) from e
            raise
        self.metrics.first(time.monotonic() - job.submitted)
        facts = self._facts(job, made, request.state.log)
        width, height = made.sizes[0]
        return JSONResponse({
            "created": int(time.time()),
            "data": [_image(image) for image in made.images],
            "size": f"{width}x{height}",
            **work.request.described(),
            "usage": made.usage,
            "flowturbo": facts,
        })  # fmt: skip

    async def _events(
        self,
        request: Request,
        running: _Running,
        begun: tuple[int, Tensor] | None,
        work: Work,
        kind: str,
    ) -> AsyncIterator[bytes]:
        """The server-sent events of a stream; a client that leaves cancels the job."""
        job, first = running.job, True
        try:
            while begun is not None:
                index, states = begun
                images = await asyncio.to_thread(self._previews, work, states)
                if first:
                    self.metrics.first(time.monotonic() - job.submitted)
                    first = False
                for i, image in enumerate(images):
                    yield event(f"{kind}.partial_image", {
                        "partial_image_index": index, "image_index": i,
                        **_image(image), **self._about(work, None),
                    })  # fmt: skip
                begun = await running.next()
            made = await running.done
            if first:
                self.metrics.first(time.monotonic() - job.submitted)
            facts = self._facts(job, made, request.state.log)
            for i, image in enumerate(made.images):
                yield event(f"{kind}.completed", {
                    "image_index": i, **_image(image), **self._about(work, made.sizes[i]),
                    "usage": made.usage, "flowturbo": facts,
                })  # fmt: skip
        except Exception as e:
            error = of_exception(e, begun=True)
            self.metrics.refused(error.code or "other")
            if error.fault:
                LOG.error(f"request {request.state.request_id} failed", exc_info=e)
            yield event("error", error.body())
        finally:
            job.cancel()

    def _previews(self, work: Work, states: Tensor) -> list[bytes]:
        """Partial images, checked."""
        made = preview(self.engine.model, states, work.request)
        self.safeguards.check_files(work.request, made)
        return made

    def _about(self, work: Work, size: tuple[int, int] | None) -> dict[str, Any]:
        _, height, width = self.engine.model.image_shape
        width, height = size or work.request.size or (width, height)
        return {
            "created_at": int(time.time()),
            "size": f"{width}x{height}",
            **work.request.described(),
        }

    def _facts(self, job: Job[Answer], made: Answer, log: dict[str, Any]) -> dict[str, Any]:
        """What a response says about how it was made; also for the log and the metrics."""
        now = time.monotonic()
        self.metrics.finished(now - job.submitted, len(made.images))
        started = job.started or now
        facts = {
            "seed": made.seed,
            "plan": made.plan,
            "evaluations": made.evaluations,
            "passes": made.passes,
            "milliseconds": round(1e3 * (now - started), 1),
            "queued_milliseconds": round(1e3 * (started - job.submitted), 1),
        }
        log.update(images=len(made.images), **facts)
        return facts


class _Running:
    """A job as its request waits for it.

    Attributes:
        job: in the engine.
        done: its future.
    """

    def __init__(self, request: Request, job: Job[Answer]) -> None:
        self.job, self.done = job, asyncio.wrap_future(job.future)
        self._request, self._news = request, asyncio.Event()
        self._partials: deque[tuple[int, Tensor]] = deque()
        self.done.add_done_callback(self._over)

    def add(self, index: int, states: Tensor) -> None:
        """Enter a partial image."""
        self._partials.append((index, states))
        self._news.set()

    async def next(self) -> tuple[int, Tensor] | None:
        """The next partial image; None when the job is over, with images or without.

        Raises:
            Cancelled: if the client has left.
            Expired: if the time of the job is over, whether it has begun or not.
        """
        while not self._partials and not self.done.done():
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), POLL)
            if await self._request.is_disconnected():
                self.job.cancel()
            if not self.done.done():
                self.job.check()
        return self._partials.popleft() if self._partials else None

    def _over(self, done: asyncio.Future[Answer]) -> None:
        if not done.cancelled():
            done.exception()  # seen, even if nobody waits any more
        self._news.set()


def _check_local(request: Request) -> None:
    """Refuse what another site sends through a browser, by its Origin or a name of this machine."""
    for name in ("host", "origin"):
        value = request.headers.get(name)
        host = urlsplit(value if name == "origin" else f"//{value}").hostname if value else None
        if value is not None and not is_loopback(host or ""):
            raise ApiError(
                403, f"{name} {value!r}: a server without an API key only answers this machine; "
                "ask it as 127.0.0.1 or localhost, or serve with a key",
                code="forbidden",
            )  # fmt: skip


def _image(data: bytes) -> dict[str, str]:
    return {"b64_json": base64.b64encode(data).decode()}


def event(name: str, data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()
