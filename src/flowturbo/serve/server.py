"""A server process: an engine behind a socket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence

import uvicorn
from fastapi import FastAPI

from flowturbo.serve.loopback import is_loopback

__all__ = ["bind", "serve"]


def bind(host: str, port: int, keys: Sequence[str]) -> socket.socket:
    """A listening socket.

    Args:
        host: an address or a name.
        port: 0 picks a free one.
        keys: API keys.

    Raises:
        ValueError: if ``host`` is not loopback and there is no key.
        OSError: if the address is not available.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as e:
        raise ValueError(f"host={host!r}: is not an address of this machine ({e})") from e
    if not keys and not is_loopback(str(address[0])):
        raise ValueError(
            f"host={host!r}: others can reach it, so it needs an API key; give one with "
            "--api-key-file or FLOWTURBO_API_KEY, or serve 127.0.0.1"
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as e:
        raise OSError(f"{host}:{port} cannot be served: {e.strerror or e}") from e


def serve(
    app: FastAPI, listening: socket.socket, *, grace: float, ready: Callable[[str], None]
) -> None:
    """Serve ``app`` until SIGINT or SIGTERM, and let accepted requests finish.

    Args:
        app: from `flowturbo.serve.api.create_app`.
        listening: from `bind`.
        grace: seconds that requests have to finish.
        ready: called with the URL once it accepts requests.
    """
    logging.getLogger("flowturbo.serve").setLevel(logging.INFO)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=max(1, round(grace)),
    )  # fmt: skip
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(f"http://{shown}:{port}")

    Server(config).run(sockets=[listening])
