"""`flowturbo serve --ray`: replicas that share the load, and what clients see when one is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from flowturbo.cli import main

KEY = {"Authorization": "Bearer a-key-of-tests"}


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as e:
        main(["serve", "-m", "digits", *map(str, arguments)])
    assert e.value.code == 2
    return capsys.readouterr().err


def test_options_that_do_not_go_together(capsys):
    assert "--replicas, --max-replicas: need --ray" in refused(capsys, "--replicas", 2)
    assert "--max-replicas=1" in refused(capsys, "--ray", "--replicas", 2, "--max-replicas", 1)
    assert "--port=0" in refused(capsys, "--ray", "--port", 0)
    assert "needs --ray" in refused(capsys, "--ray-address", "local")


# -- without a cluster --------------------------------------------------------------------------

ray_serve = pytest.importorskip("flowturbo.serve.ray_serve", exc_type=ImportError)


def answer(*messages: dict, path: str = "/v1/images/generations") -> list[dict]:
    """What a client gets where a proxy of Ray sends ``messages``."""

    async def proxy(scope, receive, send):
        for message in messages:
            await send(message)

    async def send(message):
        sent.append(message)

    sent: list[dict] = []
    (middleware,) = ray_serve.proxy_middleware()
    scope = {"type": "http", "path": path, "headers": []}
    asyncio.run(middleware.cls(proxy)(scope, None, send))
    return sent


def start(status: int, kind: bytes) -> dict:
    return {
        "type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]
    }  # fmt: skip


def body(data: bytes, more: bool = False) -> dict:
    return {"type": "http.response.body", "body": data, "more_body": more}


def error(sent: list[dict]) -> tuple[int, str, str | None]:
    """Status, code and when to ask again."""
    headers = dict(sent[0]["headers"])
    found = json.loads(b"".join(m["body"] for m in sent[1:]))["error"]
    return sent[0]["status"], found["code"], headers.get(b"retry-after")


@pytest.mark.parametrize(
    ("status", "known", "code"),
    [
        (429, 429, "queue_full"),
        (503, 503, "unavailable"),
        (408, 504, "timeout"),
        (404, 503, "unavailable"),
    ],
)
def test_what_a_proxy_refuses_has_a_reason_in_the_form_of_the_api(status, known, code):
    sent = answer(start(status, b"text/plain; charset=utf-8"), body(b"no ", True), body(b"room"))
    assert error(sent) == (known, code, b"1")
    said = "the server starts or stops; try again" if status == 404 else "no room"
    assert json.loads(sent[1]["body"])["error"]["message"] == said


def test_a_lost_replica_is_an_error_that_says_when_to_ask_again():
    assert error(answer()) == (503, "replica_lost", b"1")
    begun = [start(200, b"text/event-stream"), body(b"event: a\n\n", True)]
    *same, last = answer(*begun)
    assert same == begun
    name, data, *_ = last["body"].decode().splitlines()
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "replica_lost"


def test_answers_of_replicas_and_of_other_applications_pass_unchanged():
    refusal = [start(429, b"application/json"), body(b"{}")]
    assert answer(*refusal) == refusal
    other = [start(503, b"text/plain"), body(b"x")]
    assert answer(*other, path="/-/healthz") == other
    stream = [start(200, b"text/event-stream"), body(b"event: a\n\n", True), body(b"")]
    assert answer(*stream) == stream


def test_a_replica_is_as_healthy_as_its_engine(digits):
    from flowturbo.serve.api import create_app
    from flowturbo.serve.engine import Engine

    engine = Engine(digits)
    replica = ray_serve.Replica(lambda: create_app(engine))
    assert replica.__serve_build_asgi_app__().state.engine is engine
    replica.check_health()
    engine.close()
    with pytest.raises(RuntimeError, match="stopped"):
        replica.check_health()


# -- with a cluster -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address():
    from ray_cluster import small_cluster

    with small_cluster() as address:
        yield address


@pytest.fixture(scope="module")
def server(address):
    """A server of two replicas, each of which runs two requests; its URL and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--replicas", 2, "--running", 2, "--queue", 2, "--batch-sizes", 8, "--device", "cpu"]
    command = ["serve", "-m", "digits", "--ray", "--ray-address", address, "--port", port, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "flowturbo", *map(str, command)],
        env={**os.environ, "FLOWTURBO_API_KEY": KEY["Authorization"].split()[1]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("digits at "):
            break
    else:
        raise AssertionError("".join(said))
    threading.Thread(target=process.stdout.read, daemon=True).start()
    yield f"http://127.0.0.1:{port}", process
    process.terminate()
    process.wait(60)


def ask(url: str, seed: int, evaluations: int, codes: list[str]) -> str:
    """An image, asked for again when refusals say so, whose codes are noted."""
    for _ in range(60):
        made = httpx.post(
            f"{url}/v1/images/generations",
            json={"prompt": "7", "seed": seed, "num_inference_steps": evaluations},
            headers=KEY,
            timeout=120,
        )
        if made.status_code == 200:
            return made.json()["data"][0]["b64_json"]
        codes.append(made.json()["error"]["code"])
        time.sleep(int(made.headers["retry-after"]))
    raise AssertionError(codes)


@pytest.mark.slow
def test_the_rules_of_keys_hold(address, server):
    url, _ = server
    refused = httpx.get(f"{url}/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    shown = httpx.get(f"{url}/v1/models", headers=KEY)
    assert shown.json()["data"][0]["id"] == "digits"
    assert shown.headers.get_list("x-request-id") == [shown.headers["x-request-id"]]
    others: dict = dict(
        replicas=1, max_replicas=None, gpus=0, port=8000, running=1, queue=1, timeout=1, grace=1
    )
    with pytest.raises(ValueError, match=r"serves already.*an API key is needed"):
        ray_serve.serve(lambda: None, host="127.0.0.1", keys=[], ready=print, **others)


@pytest.mark.slow
def test_a_killed_replica_loses_nothing_that_is_asked_for_again(server):
    from ray_cluster import processes

    url, _ = server
    replicas = processes("ray::ServeReplica")
    assert len(replicas) == 2
    codes: list[str] = []
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(ask, url, seed, 40, codes) for seed in range(16)]
        while not codes:  # both replicas run as many as they take, and the queue is full
            assert not all(job.done() for job in asked)
            time.sleep(0.01)
        os.kill(replicas[0], signal.SIGKILL)
        images = [job.result(timeout=120) for job in asked]
    assert {"queue_full", "replica_lost"} <= {*codes}
    assert {*codes} <= {"queue_full", "replica_lost", "unavailable"}
    assert len({*images}) == 16
    assert ask(url, 3, 40, []) == images[3]  # whichever replica drew it


@pytest.mark.slow
def test_a_server_that_is_stopped_finishes_what_it_accepted(server):
    url, process = server
    with ThreadPoolExecutor(1) as client:
        refusals: list[str] = []
        asked = client.submit(ask, url, 0, 100, refusals)
        time.sleep(0.5)
        assert not asked.done()
        process.terminate()
        assert asked.result(timeout=60)
        assert refusals == []
    assert process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
