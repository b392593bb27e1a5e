"""The page: static files in ``page/``, which use only the public API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles

__all__ = ["add_page"]

FOLDER = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "; ".join((
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob:",
        "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    )),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # revalidate every time
}  # fmt: skip


class _Page(StaticFiles):
    """Files with the headers of the page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The response with a file, or that it has not changed."""
        made = super().file_response(*args, **kwargs)
        made.headers.update(HEADERS)
        return made


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/`` and its parts under ``/page/``; neither needs an API key."""
    files = _Page(directory=FOLDER)

    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.add_route("/", index)
    app.mount("/page", files)
