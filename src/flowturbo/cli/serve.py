"""`flowturbo serve`: a model behind OpenAI's images API."""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowturbo import checks, cluster
from flowturbo.cli.options import (
    DEFAULT_MODEL,
    Device,
    DtypeName,
    ModelName,
    Ray,
    RayAddress,
    RefinerName,
    Vae,
    absolute,
    check_ray,
    read_lines,
    resolve_batch,
    resolve_device,
    resolve_dtype,
)
from flowturbo.cli.output import say
from flowturbo.models.zoo import load
from flowturbo.progress import bars
from flowturbo.refiner.checkpoint import load_refiner
from flowturbo.serve.batching import LARGEST

if TYPE_CHECKING:
    from fastapi import FastAPI

    from flowturbo.serve.safeguards import Safeguards

__all__ = ["run"]

KEY = "FLOWTURBO_API_KEY"


def run(
    model: ModelName = DEFAULT_MODEL,
    host: Annotated[
        str,
        typer.Option("--host", help="Address; one that other machines can reach needs an API key."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 picks a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            help=f"File of API keys, one per line; a single key may be in {KEY} instead.",
        ),
    ] = None,
    refiner: RefinerName = None,
    largest_batch: Annotated[
        int,
        typer.Option(
            "--largest-batch", help="Largest number of rows in a batch; a guided image takes two."
        ),
    ] = LARGEST,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            "--batch-sizes",
            help="Sizes that batches are padded to (2,8,16). With a single size, an image is the "
            "same bit for bit, whatever else is in its batch.",
        ),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the network for each size, by default 2, 4, 8, 16 and --largest-batch, "
            "before the first request.",
        ),
    ] = False,
    running: Annotated[
        int, typer.Option("--running", help="Largest number of requests that run at once.")
    ] = 32,
    queue: Annotated[
        int,
        typer.Option("--queue", help="Largest number of images in running and waiting requests."),
    ] = 256,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Time limit of a request, in seconds.")
    ] = 120.0,
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds that requests have to finish at shutdown.")
    ] = 30.0,
    checker: Annotated[
        list[str] | None,
        typer.Option(
            "--checker",
            help="Checks prompts and images: a block list file, a URL, or a function as "
            "module:name. May be given several times.",
        ),
    ] = None,
    checker_timeout: Annotated[
        float, typer.Option("--checker-timeout", help="Seconds to wait for the URL of a --checker.")
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
    ray: Ray = False,
    ray_address: RayAddress = None,
    replicas: Annotated[
        int, typer.Option("--replicas", help="With --ray: number of processes.")
    ] = 1,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            "--max-replicas",
            help="With --ray: number of processes under load; by default --replicas.",
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's images API, with one running batch for all requests.

    Example: flowturbo serve --model emoji --port 8000
    """
    try:
        import_module("flowturbo.serve.api")
        from flowturbo.serve.server import bind, serve
    except ImportError as e:
        raise ImportError(f"flowturbo serve needs {e.name}: pip install 'flowturbo[serve]'") from e
    check_ray(ray, ray_address)
    port = checks.whole("--port", port, int(ray), 65535)
    timeout = checks.number("--timeout", timeout, above=0)
    grace = checks.number("--grace", grace, 0)
    sizes = None if batch_sizes is None else resolve_batch(batch_sizes, "--batch-sizes")
    keys = _keys(api_key_file)
    wait = checks.number("--checker-timeout", checker_timeout, 0.001)
    if (c2pa_cert is None) != (c2pa_key is None):
        raise ValueError("--c2pa-cert and --c2pa-key: give both")
    replicas = checks.whole("--replicas", replicas, 1)
    if max_replicas is not None:
        max_replicas = checks.whole("--max-replicas", max_replicas, replicas)
    if not ray and (replicas, max_replicas) != (1, None):
        raise ValueError("--replicas, --max-replicas: need --ray")
    options = dict(
        largest_batch=largest_batch, batch_sizes=sizes, compile=compile, running=running,
        queue=queue,
    )  # fmt: skip
    protection = dict(
        checkers=[absolute(spec) if Path(spec).is_file() else spec for spec in checker or ()],
        wait=wait,
        credentials=[path.resolve() for path in (c2pa_cert, c2pa_key) if path is not None],
    )
    build = partial(
        _app, options=options, protection=protection, dtype=dtype, keys=keys, timeout=timeout,
        grace=grace, ui=ui,
    )  # fmt: skip
    if ray:
        name = _checked(build(model, vae=vae, refiner=refiner, device="cpu", warm=False))
        with cluster.joined(ray_address, logs=True):
            from flowturbo.serve import ray_serve

            there, gpus = cluster.placed(device)
            replica = partial(
                build, absolute(model), vae=vae and absolute(vae),
                refiner=refiner and absolute(refiner), device=there,
            )  # fmt: skip
            ray_serve.serve(
                replica, replicas=replicas, max_replicas=max_replicas, gpus=gpus, host=host,
                port=port, keys=keys, running=running, queue=queue, timeout=timeout, grace=grace,
                ready=lambda url: say(_where(name, url, ui)),
            )  # fmt: skip
        return
    with bind(host, port, keys) as listening:
        app = build(model, vae=vae, refiner=refiner, device=device)
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        name = app.state.engine.model.name
        serve(app, listening, grace=grace, ready=lambda url: say(_where(name, url, ui)))


def _app(
    model: str,
    *,
    vae: str | None,
    refiner: str | None,
    device: str,
    dtype: str,
    options: dict[str, Any],
    protection: dict[str, Any],
    keys: list[str],
    timeout: float,
    grace: float,
    ui: bool,
    warm: bool = True,
) -> FastAPI:
    """The server of a model, with an engine of these options, warmed up if ``warm``."""
    from flowturbo.serve.api import create_app
    from flowturbo.serve.engine import Engine
    from flowturbo.serve.memory import keep_freed_memory
    from flowturbo.serve.metrics import Metrics

    safeguards = _safeguards(**protection)
    chosen = resolve_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    field = load(model, device=chosen, dtype=resolve_dtype(dtype), vae=vae)
    light = None if refiner is None else load_refiner(refiner, field)
    metrics = Metrics()
    engine = Engine(field, refiner=light, observe=metrics.tick, **options)
    if warm:
        with bars() as report:
            engine.warm_up(report)
    return create_app(
        engine, metrics=metrics, keys=keys, timeout=timeout, grace=grace, safeguards=safeguards,
        ui=ui,
    )  # fmt: skip


def _safeguards(checkers: list[str], wait: float, credentials: list[Path]) -> Safeguards:
    from flowturbo.serve.credentials import Credentials
    from flowturbo.serve.safeguards import Safeguards, load_checker

    loaded = [load_checker(spec, wait) for spec in checkers]
    return Safeguards(loaded, Credentials(*credentials) if credentials else None)


def _where(name: str, url: str, ui: bool) -> str:
    return f"{name} at {url}/v1" + f", the page at {url}/" * ui


def _checked(app: FastAPI) -> str:
    """The model name of a server that was built only to check that it can be."""
    name: str = app.state.engine.model.name
    app.state.engine.close()
    return name


def _keys(path: Path | None) -> list[str]:
    """The API keys of a file, or of the environment."""
    given = (
        [os.environ.get(KEY, "")] if path is None else read_lines(path, "--api-key-file", "keys")
    )
    keys = [line.strip() for line in given if line.strip()]
    if any(len(key) < 8 or not key.isascii() for key in keys):
        raise ValueError("an API key must be ASCII, of at least 8 characters")
    return keys
