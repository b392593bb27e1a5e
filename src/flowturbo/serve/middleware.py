"""Around every request: an id, a limit on its body, a line in the log, metrics for Prometheus."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowturbo.serve.errors import ApiError, of_exception
from flowturbo.serve.metrics import Metrics

__all__ = ["Surround"]

LOG = logging.getLogger("flowturbo.serve")
_ID = re.compile(r"[\w.-]{1,100}")


class Surround:
    """Middleware that gives a request its id, refuses a body that is too large, and logs.

    What a route puts into ``scope["state"]["log"]`` goes into the line of the log.
    """

    def __init__(self, app: ASGIApp, *, largest_body: int, metrics: Metrics) -> None:
        self.app, self.largest_body, self.metrics = app, largest_body, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, begun = Headers(scope=scope), time.perf_counter()
        given = headers.get("x-request-id", "")
        name = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        log: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=name, log=log)
        status, size = 0, 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.largest_body:
                raise self._too_large()
            return message

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            declared = headers.get("content-length", "0")
            if declared.isdecimal() and int(declared) > self.largest_body:
                raise self._too_large()
            await self.app(scope, limited, named)
        except ClientDisconnect:
            pass
        except Exception as e:
            found = self._too_large() if size > self.largest_body else of_exception(e)
            self.metrics.refused(found.code or "other")
            if found.fault:
                LOG.error(f"request {name} failed", exc_info=e)
            if status:  # too late for a response
                raise
            await JSONResponse(found.body(), found.status, found.headers)(scope, receive, named)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(route, status or 499)
            line = {
                "request_id": name,
                "method": scope["method"],
                "path": scope["path"],
                "status": status or 499,
                "ms": round(1e3 * (time.perf_counter() - begun), 1),
                **log,
            }
            LOG.info(json.dumps(line))

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is over {self.largest_body} bytes; send smaller images",
            code="body_too_large", headers={"Connection": "close"},
        )  # fmt: skip
