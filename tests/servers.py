"""Servers over real sockets, in a thread."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from PIL import Image

from flowturbo.serve.api import create_app
from flowturbo.serve.engine import Engine
from flowturbo.serve.metrics import Metrics
from flowturbo.serve.server import bind

KEY = "a-test-key"


class Served:
    """A server that runs: its address, its engine, and a client of it."""

    def __init__(self, url: str, engine: Engine, client: httpx.Client) -> None:
        self.url, self.engine, self.client = url, engine, client

    def draw(self, **fields) -> httpx.Response:
        return self.client.post("/v1/images/generations", json={"prompt": "tiger", **fields})

    def edit(self, **fields) -> httpx.Response:
        """An edit as JSON, by default of a small image."""
        given = {"prompt": "tiger", "images": [{"image_url": data_url(photo())}], **fields}
        return self.client.post("/v1/images/edits", json=given)

    def form(self, files: list | None = None, **fields) -> httpx.Response:
        """An edit as a form."""
        files = [("image", ("a.png", png(photo()), "image/png"))] if files is None else files
        return self.client.post("/v1/images/edits", data={"prompt": "tiger", **fields}, files=files)

    def stream(self, path: str, **fields) -> list[tuple[str, dict]]:
        """The events of a stream."""
        with self.client.stream("POST", path, json={"stream": True, **fields}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream"), answer.read()
            blocks = answer.read().decode().strip().split("\n\n")
        found = []
        for block in blocks:
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return found

    def figure(self, name: str) -> float:
        """A figure of ``/metrics``; 0 where it is not there yet."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        return 0.0


@contextmanager
def serving(model, *, engine: dict | None = None, **options) -> Iterator[Served]:
    """A server of ``model``, with arguments of the engine and of the application."""
    metrics = Metrics()
    runs = Engine(model, observe=metrics.tick, **(engine or {}))
    listening = bind("127.0.0.1", 0, ())
    app = create_app(runs, metrics=metrics, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=30) as client:
            yield Served(url, runs, client)
    finally:
        server.should_exit = True
        thread.join()


def soon(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until ``condition`` holds, and fail if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def photo(size=(20, 16), mode="RGB") -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


def png(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def hole(size=(20, 16)) -> Image.Image:
    """A mask, transparent on the left."""
    made = Image.new("RGBA", size, (0, 0, 0, 255))
    made.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    return made


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def images(answer: httpx.Response) -> list[Image.Image]:
    """The images of an answer."""
    assert answer.status_code == 200, answer.text
    return [decoded(entry["b64_json"]) for entry in answer.json()["data"]]


def decoded(text: str) -> Image.Image:
    made = Image.open(io.BytesIO(base64.b64decode(text)))
    made.load()
    return made
