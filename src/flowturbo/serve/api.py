"""HTTP: OpenAI's images API on an engine.

``POST /v1/images/generations``, ``POST /v1/images/edits`` and ``GET /v1/models`` answer as OpenAI's
do, so that its clients work unchanged, and take a few fields more (`flowturbo.serve.schema`).
``/healthz``, ``/readyz`` and ``/metrics`` are for who runs it.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from torch import Tensor

from flowturbo._version import __version__
from flowturbo.serve.engine import Cancelled, Engine, Job
from flowturbo.serve.errors import ApiError, of_exception, response
from flowturbo.serve.metrics import Metrics
from flowturbo.serve.middleware import Surround
from flowturbo.serve.schema import EditRequest, GenerationRequest
from flowturbo.serve.work import (
    Answer,
    Work,
    data_url,
    edit_work,
    generation_work,
    opened,
    preview,
)

__all__ = ["create_app", "event"]

LOG = logging.getLogger("flowturbo.serve")
POLL = 0.1  # seconds between looks whether the client is still there
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
) -> FastAPI:
    """The server of an engine, an ASGI application, which closes the engine when it stops.

    Args:
        engine: draws.
        metrics: what the engine reports its batches to.
        keys: API keys, one of which every request needs; none is asked for if there are none.
        largest_body: most bytes of a request.
        timeout: most seconds of a request, from 0.
        grace: seconds that requests have to finish when the server stops.
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
    app.add_exception_handler(RequestValidationError, response)
    app.add_exception_handler(HTTPException, response)  # all others are answered by `Surround`
    app.state.engine, app.state.metrics = engine, metrics
    server = _Server(engine, metrics, timeout)
    expected = [key.encode() for key in keys]

    def authorized(request: Request) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        sent = given.encode() if kind.lower() == "bearer" else b""
        if expected and not any(hmac.compare_digest(sent, key) for key in expected):
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

    @app.post("/v1/images/generations", dependencies=guarded)
    async def generations(request: Request, body: GenerationRequest) -> Response:
        server.check_model(body.model)
        return await server.answer(request, generation_work(engine.model, body), "image_generation")

    @app.post("/v1/images/edits", dependencies=guarded, openapi_extra=_EDIT_BODY)
    async def edits(request: Request) -> Response:
        body, images, mask = await _edit_body(request)
        server.check_model(body.model)
        sources = [
            await asyncio.to_thread(opened, f"image[{i}]", data) for i, data in enumerate(images)
        ]
        hole = None if mask is None else await asyncio.to_thread(opened, "mask", mask)
        work = edit_work(engine.model, body, sources, hole)
        return await server.answer(request, work, "image_edit")

    return app


class _Server:
    """Hands work to the engine, and its answers to clients."""

    def __init__(self, engine: Engine, metrics: Metrics, timeout: float) -> None:
        self.engine, self.metrics, self.timeout = engine, metrics, timeout
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
                404, f"model={name!r}: this server has {served!r}; ask for that, or leave it out",
                param="model", code="model_not_found",
            )  # fmt: skip

    async def answer(self, request: Request, work: Work, kind: str) -> Response:
        """Run ``work`` and answer with its images, or with the events of a stream."""
        log: dict[str, Any] = request.state.log
        events: asyncio.Queue[tuple[int, Tensor]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def partial(index: int, states: Tensor) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (index, states))

        work.partial = partial
        limit = min(self.timeout, work.request.timeout or self.timeout)
        try:
            job = self.engine.submit(work.run, images=work.images, timeout=limit)
        except Exception as e:
            self._refused(e)
            raise
        if work.request.stream:
            stream = self._events(job, work, kind, events, log)
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        done = asyncio.wrap_future(job.future)
        try:
            while not done.done():
                await asyncio.wait([done], timeout=POLL)
                if not done.done() and await request.is_disconnected():
                    job.cancel()
                    break
            made: Answer = await done
        except BaseException as e:
            job.cancel()
            self._refused(e)
            raise
        self.metrics.first(time.monotonic() - job.submitted)
        return JSONResponse(self._whole(job, work, made, log))

    def _refused(self, error: BaseException) -> None:
        self.metrics.refused(of_exception(error).code or "other")

    async def _events(
        self,
        job: Job[Answer],
        work: Work,
        kind: str,
        events: asyncio.Queue[tuple[int, Tensor]],
        log: dict[str, Any],
    ) -> AsyncIterator[bytes]:
        """The server-sent events of a stream; a client that leaves cancels the job."""
        done = asyncio.wrap_future(job.future)
        first = True
        try:
            while True:
                more = asyncio.ensure_future(events.get())
                waited: set[asyncio.Future[Any]] = {done, more}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if not more.done():
                    more.cancel()
                    break
                index, states = more.result()
                images = await asyncio.to_thread(preview, self.engine.model, states, work.request)
                if first:
                    self.metrics.first(time.monotonic() - job.submitted)
                    first = False
                for i, image in enumerate(images):
                    yield event(f"{kind}.partial_image", {
                        "partial_image_index": index, "image_index": i,
                        **_image(image), **self._about(work, None),
                    })  # fmt: skip
            made = await done
            if first:
                self.metrics.first(time.monotonic() - job.submitted)
            whole = self._whole(job, work, made, log)
            for i, image in enumerate(made.images):
                yield event(f"{kind}.completed", {
                    "image_index": i, **_image(image), **self._about(work, made.sizes[i]),
                    "usage": made.usage, "flowturbo": whole["flowturbo"],
                })  # fmt: skip
        except Exception as e:
            self._refused(e)
            if of_exception(e).status == 500:
                LOG.error("a stream failed", exc_info=e)
            yield event("error", of_exception(e).body())
        finally:
            job.cancel()
            with suppress(Cancelled, asyncio.CancelledError):
                done.cancel()

    def _about(self, work: Work, size: tuple[int, int] | None) -> dict[str, Any]:
        _, height, width = self.engine.model.image_shape
        width, height = size or work.request.size or (width, height)
        return {
            "created_at": int(time.time()),
            "size": f"{width}x{height}",
            **work.request.described(),
        }

    def _whole(
        self, job: Job[Answer], work: Work, made: Answer, log: dict[str, Any]
    ) -> dict[str, Any]:
        """The answer without a stream."""
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
        width, height = made.sizes[0]
        return {
            "created": int(time.time()),
            "data": [_image(image) for image in made.images],
            "size": f"{width}x{height}",
            **work.request.described(),
            "usage": made.usage,
            "flowturbo": facts,
        }


def _image(data: bytes) -> dict[str, str]:
    return {"b64_json": base64.b64encode(data).decode()}


def event(name: str, data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


async def _edit_body(request: Request) -> tuple[EditRequest, list[bytes], bytes | None]:
    """The fields, images and mask of an edit, sent as JSON or as a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = EditRequest.model_validate_json(await request.body())
        if body.images is None:
            raise ApiError(
                400, "images: is missing", param="images", code="missing_required_parameter"
            )
        images = [
            data_url(f"images[{i}].image_url", image.image_url)
            for i, image in enumerate(body.images)
        ]
        mask = None if body.mask is None else data_url("mask.image_url", body.mask.image_url)
        return body, images, mask
    if kind != "multipart/form-data":
        raise ApiError(415, f"content-type {kind!r}: send application/json or multipart/form-data")
    fields: dict[str, Any] = {}
    images, mask = [], None
    async with request.form(max_files=20, max_fields=100) as form:
        for name, value in form.multi_items():
            if name in ("image", "image[]") and isinstance(value, UploadFile):
                images.append(await value.read())
            elif name == "mask" and isinstance(value, UploadFile):
                mask = await value.read()
            elif isinstance(value, UploadFile) or name in ("images", "mask", "image"):
                raise ApiError(
                    400, f"{name}: send images as files named 'image', and a mask as 'mask'",
                    param=name, code="invalid_value",
                )  # fmt: skip
            elif name.endswith("[]"):
                fields.setdefault(name[:-2], []).append(value)
            else:
                fields[name] = value
    if not images:
        raise ApiError(400, "image: is missing", param="image", code="missing_required_parameter")
    return EditRequest.model_validate(fields), images, mask


_FILE = {"type": "string", "format": "binary"}
_EDIT_FIELDS = EditRequest.model_json_schema(ref_template="#/components/schemas/{model}")
_EDIT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {k: v for k, v in _EDIT_FIELDS.items() if k != "$defs"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        **{
                            name: value
                            for name, value in _EDIT_FIELDS["properties"].items()
                            if name != "images"
                        },
                        "image": {"type": "array", "items": _FILE},
                        "mask": _FILE,
                    },
                }
            },
        },
    }
}
