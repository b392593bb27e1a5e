"""`flowturbo serve`: a model behind OpenAI's images API."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flowturbo import checks
from flowturbo.cli.options import (
    DEFAULT_MODEL,
    Device,
    DtypeName,
    ModelName,
    RefinerName,
    Vae,
    resolve_batch,
    resolve_device,
    resolve_dtype,
)
from flowturbo.cli.output import say
from flowturbo.models.zoo import load
from flowturbo.refiner.checkpoint import load_refiner
from flowturbo.serve.batching import LARGEST

__all__ = ["run"]

KEY = "FLOWTURBO_API_KEY"


def run(
    model: ModelName = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option("--host", help="Address; one that others reach needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", help=f"API keys, one a line; one alone may be in {KEY} instead."
        ),
    ] = None,
    refiner: RefinerName = None,
    largest_batch: Annotated[
        int, typer.Option("--largest-batch", help="Most rows of a batch; a guided image takes two.")
    ] = LARGEST,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            "--batch-sizes",
            help="Sizes that batches are padded to (2,8,16). With one, an image does not depend on "
            "its company, bit for bit.",
        ),
    ] = None,
    running: Annotated[int, typer.Option("--running", help="Most requests that run at once.")] = 32,
    queue: Annotated[
        int, typer.Option("--queue", help="Most images in requests that run or wait.")
    ] = 256,
    timeout: Annotated[float, typer.Option("--timeout", help="Most seconds of a request.")] = 120.0,
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds that requests have to finish at the end.")
    ] = 30.0,
    checker: Annotated[
        list[str] | None,
        typer.Option(
            "--checker",
            help="What checks prompts and images: the file of a block list, a URL, or module:name "
            "of a function. May be given several times.",
        ),
    ] = None,
    checker_timeout: Annotated[
        float, typer.Option("--checker-timeout", help="Seconds to wait for a URL of --checker.")
    ] = 5.0,
    c2pa_cert: Annotated[
        Path | None,
        typer.Option("--c2pa-cert", help="PEM file of certificates, to sign images (C2PA)."),
    ] = None,
    c2pa_key: Annotated[
        Path | None, typer.Option("--c2pa-key", help="PEM file of the key of --c2pa-cert.")
    ] = None,
    ui: Annotated[
        bool, typer.Option("--ui", help="Also serve a page to try the model, at the root.")
    ] = False,
    vae: Vae = None,
    device: Device = "auto",
    dtype: DtypeName = "float32",
) -> None:
    """Serve a model over HTTP, as OpenAI's images API, with one running batch for all requests.

    Example: flowturbo serve --model emoji --port 8000
    """
    try:
        from flowturbo.serve.api import create_app
        from flowturbo.serve.credentials import Credentials
        from flowturbo.serve.engine import Engine
        from flowturbo.serve.memory import keep_freed_memory
        from flowturbo.serve.metrics import Metrics
        from flowturbo.serve.safeguards import Safeguards, load_checker
        from flowturbo.serve.server import bind, serve
    except ImportError as e:
        raise ImportError(f"flowturbo serve needs {e.name}: pip install 'flowturbo[serve]'") from e
    port = checks.whole("--port", port, 0, 65535)
    timeout, grace = checks.number("--timeout", timeout, 0), checks.number("--grace", grace, 0)
    sizes = None if batch_sizes is None else resolve_batch(batch_sizes)
    keys = _keys(api_key_file)
    wait = checks.number("--checker-timeout", checker_timeout, 0.001)
    if (c2pa_cert is None) != (c2pa_key is None):
        raise ValueError("--c2pa-cert and --c2pa-key: give both")
    safeguards = Safeguards(
        [load_checker(spec, wait) for spec in checker or ()],
        Credentials(c2pa_cert, c2pa_key) if c2pa_cert and c2pa_key else None,
    )
    listening = bind(host, port, keys)
    with listening:
        chosen = resolve_device(device)
        if chosen.type == "cpu":
            keep_freed_memory()
        field = load(model, device=chosen, dtype=resolve_dtype(dtype), vae=vae)
        metrics = Metrics()
        engine = Engine(
            field,
            refiner=None if refiner is None else load_refiner(refiner, field),
            largest_batch=largest_batch,
            batch_sizes=sizes,
            running=running,
            queue=queue,
            observe=metrics.tick,
        )
        app = create_app(
            engine, metrics=metrics, keys=keys, timeout=timeout, grace=grace,
            safeguards=safeguards, ui=ui,
        )  # fmt: skip
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        serve(
            app, listening, grace=grace,
            ready=lambda url: say(f"{field.name} at {url}/v1" + f", the page at {url}/" * ui),
        )  # fmt: skip


def _keys(path: Path | None) -> list[str]:
    """The API keys of a file, or of the environment."""
    if path is None:
        lines = [os.environ.get(KEY, "")]
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"--api-key-file {path}: cannot be read ({e})") from e
    keys = [line.strip() for line in lines if line.strip()]
    if path is not None and not keys:
        raise ValueError(f"--api-key-file {path}: holds no keys, one a line")
    if any(len(key) < 8 or not key.isascii() for key in keys):
        raise ValueError("an API key must be ASCII, of at least 8 characters")
    return keys
