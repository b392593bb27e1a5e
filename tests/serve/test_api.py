"""The images API over sockets: OpenAI's client, our fields, and every refusal."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from servers import KEY, data_url, decoded, hole, images, photo, png, serving, soon

import flowturbo as ft
from flowturbo.serve.errors import of_exception
from flowturbo.serve.server import bind

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture(scope="module")
def words(text_model):
    return ft.load(text_model)


@pytest.fixture(scope="module")
def server(words):
    with serving(words) as running:
        yield running


@pytest.fixture(scope="module")
def official(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def slow(words):
    """Makes every evaluation of the model take a twentieth of a second."""
    hook = words.network.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    yield words
    hook.remove()


def refused(answer: httpx.Response, status: int, code: str | None, param: str | None = None) -> str:
    """The message of a refusal, whose form is that of OpenAI's API."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
    body = answer.json()
    assert [*body] == ["error"]
    error = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert (error["code"], error["param"]) == (code, param)
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    assert error["type"] == kind
    return error["message"]


# -- OpenAI's client ----------------------------------------------------------------------------


def test_openai_generates_what_generate_does(official, words):
    made = official.images.generate(
        model="words",
        prompt="red apple",
        n=2,
        size="16x8",
        output_format="png",
        extra_body={"seed": 3, "plan": "AB2:3"},
    )
    wanted = ft.generate(words, ["red apple"] * 2, plan="AB2:3", seed=3)
    for entry, image in zip(made.data, wanted, strict=True):
        found = decoded(entry.b64_json)
        assert found.size == (16, 8)
        expected = image.resize((16, 8), Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1
    assert (made.size, made.output_format, made.background) == ("16x8", "png", "opaque")
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made.flowturbo["evaluations"] == 3


def test_openai_streams(official):
    events = list(
        official.images.generate(
            prompt="tiger",
            stream=True,
            partial_images=2,
            n=1,
            extra_body={"seed": 3, "plan": "AB2:6"},
        )
    )
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    whole = official.images.generate(prompt="tiger", extra_body={"seed": 3, "plan": "AB2:6"})
    assert events[-1].b64_json == whole.data[0].b64_json
    assert len({event.b64_json for event in events}) == 3


def test_openai_edits_a_file_with_a_mask(official):
    source = photo()
    made = official.images.edit(
        image=("a.png", png(source), "image/png"),
        mask=("mask.png", png(hole()), "image/png"),
        prompt="tiger",
        extra_body={"seed": 1},
    )
    found = np.asarray(decoded(made.data[0].b64_json))
    assert found.shape == (16, 20, 3)
    assert (found[:, 10:] == np.asarray(source)[:, 10:]).all()
    assert (found[:, :10] != np.asarray(source)[:, :10]).any()


def test_openai_edits_several_files_and_streams(official):
    files = [("a.png", png(photo()), "image/png"), ("b.png", png(photo()), "image/png")]
    made = official.images.edit(image=files, prompt="tiger", n=2)
    assert len(made.data) == 4
    events = list(official.images.edit(image=files[0], prompt="tiger", stream=True))
    assert [event.type for event in events] == ["image_edit.completed"]


def test_openai_lists_the_model(official):
    (model,) = official.models.list().data
    assert model.id == "words"
    assert official.models.retrieve("words").styles == ["noto", "fluent", "flat", "fx"]
    with pytest.raises(openai.NotFoundError):
        official.models.retrieve("dall-e-3")


def test_openai_raises_its_own_errors(official, server):
    with pytest.raises(openai.BadRequestError) as error:
        official.images.generate(prompt="tiger", n=11)
    assert (error.value.code, error.value.param) == ("invalid_value", "n")


# -- edits --------------------------------------------------------------------------------------

TASKS = {
    "img2img": {},
    "edit": {"source_prompt": "red apple"},
    "flowedit": {"source_prompt": "red apple", "method": "flowedit"},
    "sdedit": {"source_prompt": "red apple", "method": "sdedit", "keep": 0.3},
    "inpaint": {"mask": {"image_url": data_url(hole())}},
    "remove": {"box": [2, 2, 9, 9], "task": "remove"},
}


@pytest.mark.parametrize("task", TASKS)
def test_an_edit_as_json_streams_partial_images(server, task):
    fields = {
        **TASKS[task],
        "prompt": "tiger",
        "seed": 2,
        "plan": "AB2:6",
        "images": [{"image_url": data_url(photo())}],
    }
    events = server.stream(EDITS, partial_images=2, **fields)
    assert [name for name, _ in events] == ["image_edit.partial_image"] * 2 + [
        "image_edit.completed"
    ]
    assert all(name == data["type"] for name, data in events)
    assert [data["partial_image_index"] for _, data in events[:2]] == [0, 1]
    (whole,) = images(server.edit(**fields))
    last = decoded(events[-1][1]["b64_json"])
    assert last.tobytes() == whole.tobytes()
    assert last.size == (20, 16)
    assert events[-1][1]["size"] == "20x16"


def test_an_edit_as_a_form_is_that_as_json(server):
    fields = {"seed": 5, "strength": 0.4, "n": 2}
    form, body = server.form(**fields), server.edit(**fields)
    assert [i.tobytes() for i in images(form)] == [i.tobytes() for i in images(body)]
    cut = server.form(box="2,2,9,9")
    assert images(cut)[0].size == (20, 16)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("I;16", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
    ],
)
def test_an_image_may_have_any_mode(server, mode, kind):
    image = photo()
    image = (
        Image.fromarray(np.asarray(photo(mode="L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    files = [("image", ("a", png(image, kind), "image/png"))]
    assert images(server.form(files, strength=0.1))[0].size == (20, 16)


def test_of_an_animation_the_first_image_is_edited(server):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        data = png(frames[0], kind, save_all=True, append_images=frames[1:])
        (made,) = images(server.form([("image", ("a", data, "image/png"))], strength=0.0))
        red, _, blue = made.getpixel((8, 8))
        assert red > 200 > 50 > blue


# -- refusals -----------------------------------------------------------------------------------


def test_a_key_is_needed_where_there_are_keys(words):
    with serving(words, keys=[KEY]) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            for path in ("/v1/models", "/metrics"):
                answer = server.client.get(path, headers=headers)
                refused(answer, 401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
            # before the body is read, and whatever it is
            answer = server.client.post(GENERATIONS, headers=headers, json={"prompt": "tiger"})
            refused(answer, 401, "invalid_api_key")
            refused(
                server.client.post(EDITS, headers=headers, content=b"x"), 401, "invalid_api_key"
            )
        assert server.client.get("/healthz").status_code == 200
        assert server.client.get("/readyz").status_code == 200
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        images(server.draw())


FIELDS = [
    ({"n": 11}, "n", "less than or equal to 10"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 10**400}, "n", ""),
    ({"n": 1.5}, "n", "integer"),
    ({"size": "0x8"}, "size", "1 to 3840"),
    ({"size": "8"}, "size", "width and height"),
    ({"size": "9999999x8"}, "size", "1 to 3840"),
    ({"size": [8, 8]}, "size", "width and height"),
    ({"size": "3840x3840", "n": 10}, "size", "over"),
    ({"quality": "hd"}, "quality", "medium"),
    ({"response_format": "url"}, "response_format", "b64_json"),
    ({"background": "transparent"}, "background", "opaque"),
    ({"output_format": "gif"}, "output_format", "webp"),
    ({"output_compression": 101}, "output_compression", "100"),
    ({"partial_images": 4}, "partial_images", "3"),
    ({"seed": -1}, "seed", "0"),
    ({"seed": 2**31}, "seed", "2147483647"),
    ({"plan": "nonsense"}, "plan", ""),
    ({"plan": "secret.json"}, "plan", "notation"),
    ({"plan": "E2000"}, "plan", "200"),
    ({"plan": "[H1P1]x150"}, "plan", "200"),
    ({"plan": "AB2:4", "num_inference_steps": 4}, "plan", "pass one"),
    ({"num_inference_steps": 10**6}, "num_inference_steps", "200"),
    ({"guidance_scale": -1}, "guidance_scale", "0"),
    ({"style": "oil"}, "style", "noto"),
    ({"prompt": "a" * 32_001}, "prompt", "32000"),
    ({"prompt": None}, "prompt", "string"),
    ({"prompt": 3}, "prompt", "string"),
    ({"prompt": "xyzzyx qqqq"}, None, ""),
    ({"timeout": 0}, "timeout", "0"),
]


@pytest.mark.parametrize(("fields", "param", "part"), FIELDS)
def test_a_wrong_value_is_refused(server, fields, param, part):
    answer = server.draw(**fields)
    assert answer.status_code == 400
    found = answer.json()["error"]["param"]
    message = refused(answer, 400, "invalid_value", param if param else found)
    assert part in message
    assert "\n" not in message


def test_an_unknown_field_is_refused_with_the_nearest(server):
    message = refused(server.draw(negativ_prompt="x"), 400, "unknown_parameter", "negativ_prompt")
    assert "negative_prompt" in message
    message = refused(server.edit(strenght=1), 400, "unknown_parameter", "strenght")
    assert "strength" in message
    message = refused(server.form(strenght=1), 400, "unknown_parameter", "strenght")
    assert "strength" in message


def test_another_model_is_refused(server):
    assert "words" in refused(server.draw(model="gpt-image-1"), 404, "model_not_found", "model")
    assert "words" in refused(server.edit(model="gpt-image-1"), 404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'"x"', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"prompt": "\xff"}', "application/json"),
        (b'{"prompt": "tiger"}', "text/plain"),
        (b"[" * 100_000, "application/json"),
    ],
)
@pytest.mark.parametrize("path", [GENERATIONS, EDITS])
def test_a_body_that_is_no_json_object_is_refused(server, path, content, kind):
    answer = server.client.post(path, content=content, headers={"Content-Type": kind})
    status = 415 if kind == "text/plain" else 400
    assert "application/json" in refused(answer, status, None)


def test_lone_surrogates_are_refused(server):
    body = b'{"prompt": "\\ud800"}'
    answer = server.client.post(
        GENERATIONS, content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text


def test_fields_that_are_missing_are_named(server):
    answer = server.client.post(GENERATIONS, json={})
    refused(answer, 400, "missing_required_parameter", "prompt")
    refused(server.edit(images=None), 400, "missing_required_parameter", "images")
    refused(server.form([]), 415, None)  # without files it is no multipart form
    refused(
        server.form([("mask", ("m", png(hole()), "image/png"))]),
        400,
        "missing_required_parameter",
        "image",
    )


def part(name: str, value: bytes, head: bytes = b"") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (
        name.encode(),
        head,
        value,
    )


IMAGE = part("image", png(photo()), b'; filename="a.png"')
FORMS = {
    "no boundary": (b"", "multipart/form-data", None),
    "no end": (IMAGE, "multipart/form-data; boundary=b", "image"),
    "garbage": (b"\x00\xff" * 50, "multipart/form-data; boundary=b", None),
    "two prompts": (IMAGE + part("prompt", b"a") * 2 + b"--b--\r\n", None, "prompt"),
    "a box, and parts of one": (
        IMAGE + part("box", b"0,0,1,1") + part("box[]", b"0") + b"--b--\r\n",
        None,
        "box[]",
    ),
    "two masks": (
        IMAGE
        + part("mask", png(hole()), b'; filename="m"') * 2
        + part("prompt", b"a")
        + b"--b--\r\n",
        None,
        "mask",
    ),
    "not UTF-8": (IMAGE + part("prompt", b"\xff\xfe") + b"--b--\r\n", None, None),
    "many fields": (
        IMAGE + b"".join(part(f"f{i}", b"a") for i in range(200)) + b"--b--\r\n",
        None,
        None,
    ),
    "many files": (IMAGE * 30 + part("prompt", b"a") + b"--b--\r\n", None, None),
    "11 images": (IMAGE * 11 + part("prompt", b"tiger") + b"--b--\r\n", None, None),
    "large field": (IMAGE + part("prompt", b"a" * 2**21) + b"--b--\r\n", None, None),
    "file as prompt": (
        IMAGE + part("prompt", b"a", b'; filename="p"') + b"--b--\r\n",
        None,
        "prompt",
    ),
    "text as image": (part("image", b"x") + part("prompt", b"a") + b"--b--\r\n", None, "image"),
    "no name": (IMAGE + b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", None, None),
    "no disposition": (IMAGE + b"--b\r\nX: y\r\n\r\nx\r\n--b--\r\n", None, None),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_malformed_form_is_refused(server, name):
    content, kind, param = FORMS[name]
    headers = {"Content-Type": kind or "multipart/form-data; boundary=b"}
    answer = server.client.post(EDITS, content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if param:
        assert error["param"] == param


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    head = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    pixels = zlib.compress(bytes(10**6))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


IMAGES = {
    "empty": b"",
    "text": b"hello",
    "cut": png(photo((64, 64)))[:-40],
    "bomb": bomb(),
    "gif": png(photo(), "GIF"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_damaged_image_is_refused(server, name):
    files = [("image", ("a.png", IMAGES[name], "image/png"))]
    refused(server.form(files), 400, "invalid_value", "image")
    url = "data:image/png;base64," + base64.b64encode(IMAGES[name]).decode()
    refused(server.edit(images=[{"image_url": url}]), 400, "invalid_value", "image")


def test_images_that_are_large_together_are_refused(server):
    data = png(Image.new("L", (4000, 4000)))
    files = [("image", ("a.png", data, "image/png"))] * 3
    assert "in all" in refused(server.form(files), 400, "invalid_value", "image")
    assert "in all" in refused(server.form(files[:1], n=5), 400, "invalid_value", "size")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "file:///etc/passwd",
        "data:text/plain;base64,aGk=",
        "",
        "data:image/png;base64,@@@",
        "data:image/png,abc",
    ],
)
def test_nothing_is_fetched(server, url):
    refused(server.edit(images=[{"image_url": url}]), 400, "invalid_value", "images")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"host": "["},
    ],
)
def test_other_sites_are_refused_where_there_is_no_key(server, headers):
    answer = httpx.get(f"{server.url}/v1/models", headers=headers)
    assert answer.status_code in (400, 403), answer.text
    assert httpx.get(f"{server.url}/v1/models", headers={"origin": server.url}).status_code == 200


EDITS_REFUSED = [
    ({"mask": {"image_url": data_url(hole((8, 8)))}}, "mask", "size of the image"),
    ({"mask": {"image_url": data_url(photo())}}, "mask", "transparency"),
    ({"mask": {"image_url": data_url(photo(mode="RGBA"))}}, "mask", "empty"),
    ({"box": [-1, 0, 5, 5]}, "box", "within the image"),
    ({"box": [0, 0, 500, 5]}, "box", "within the image"),
    ({"box": [5, 5, 5, 9]}, "box", "within the image"),
    ({"box": [1, 2, 3]}, "box", "4"),
    ({"box": [1, 2, 3, 4], "click": [1, 2]}, "mask", "pass one"),
    ({"click": [20, 2]}, "click", "within the image"),
    ({"click": [2]}, "click", "2"),
    ({"click": [2, 2], "task": "inpaint"}, "click", "remove"),
    ({"box": [0, 0, 10**30, 5]}, "box", ""),
    ({"strength": 2}, "strength", "1"),
    ({"strength": 0.5, "source_prompt": "red apple"}, "strength", "img2img"),
    ({"source_prompt": "red apple", "plan": "AB2:4", "num_inference_steps": 4}, "plan", "pass one"),
    ({"task": "edit"}, "source_prompt", "what the image shows"),
    ({"task": "inpaint"}, "task", "mask"),
    ({"source_prompt": "red apple", "n": 2}, "n", "inversion"),
    ({"source_prompt": "red apple", "plan": "secret.json"}, "plan", "notation"),
    ({"source_prompt": "red apple", "plan": "secret.json", "method": "sdedit"}, "plan", "notation"),
    ({"images": []}, "images", "1"),
    ({"feather": 9, "mask": {"image_url": data_url(hole())}}, "feather", "half"),
]


@pytest.mark.parametrize(("fields", "param", "part"), EDITS_REFUSED)
def test_a_wrong_edit_is_refused(server, fields, param, part):
    answer = server.edit(**fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].split(".")[0] == param
    assert part in error["message"]


def test_a_box_in_a_form_is_checked(server):
    for box in ("-1,0,5,5", "a,b,c,d", "1,2,3", ""):
        assert refused(
            server.form(box=box),
            400,
            "invalid_value",
            server.form(box=box).json()["error"]["param"],
        )


def test_no_path_and_no_method(server):
    refused(server.client.get("/v2/images"), 404, None)
    answer = server.client.get(GENERATIONS)
    refused(answer, 405, None)
    assert answer.headers["allow"] == "POST"
    refused(server.client.post("/v1/models"), 405, None)


@pytest.mark.parametrize("path", [GENERATIONS, EDITS])
def test_a_body_over_the_limit_is_refused_declared_or_not(words, path):
    with serving(words, largest_body=1000) as server:
        for kind in ("application/json", "multipart/form-data; boundary=b"):
            if path == GENERATIONS and kind != "application/json":
                continue
            headers = {"Content-Type": kind}
            body = IMAGE + part("prompt", b"a" * 2000) + b"--b--\r\n"
            if kind == "application/json":
                body = json.dumps({"prompt": "a" * 2000}).encode()
            answer = server.client.post(path, content=body, headers=headers)
            assert "1000" in refused(answer, 413, "body_too_large")
            pieces = (body[i : i + 300] for i in range(0, len(body), 300))
            answer = server.client.post(path, content=pieces, headers=headers)
            assert "1000" in refused(answer, 413, "body_too_large")
        assert server.figure('flowturbo_refused_total{code="body_too_large"}') >= 2
        images(server.draw())


# -- load ---------------------------------------------------------------------------------------

LONG = {"num_inference_steps": 200}  # ten seconds of `slow`


def test_a_full_queue_is_refused_with_the_seconds_to_wait(slow):
    with serving(slow, engine={"queue": 2}, grace=0.1) as server:
        first = threading.Thread(target=server.draw, kwargs={"n": 2, **LONG, "timeout": 1})
        first.start()
        soon(lambda: server.engine.images == 2)
        answer = server.draw()
        assert "2 images wait or run" in refused(answer, 429, "queue_full")
        assert 1 <= int(answer.headers["retry-after"]) <= 600
        first.join()
        images(server.draw(num_inference_steps=1))
        assert server.figure('flowturbo_refused_total{code="queue_full"}') == 1


def test_an_image_is_not_decoded_before_there_is_a_place_for_it(slow):
    cut = [("image", ("a.png", IMAGES["cut"], "image/png"))]
    with serving(slow, engine={"queue": 1}, grace=0.1) as server:
        first = threading.Thread(target=server.draw, kwargs={**LONG, "timeout": 1})
        first.start()
        soon(lambda: server.engine.images == 1)
        refused(server.form(cut), 429, "queue_full")
        first.join()
        refused(server.form(cut), 400, "invalid_value", "image")


def test_a_timeout_ends_what_runs_and_what_waits(slow):
    with serving(slow, engine={"running": 1}, timeout=0.6) as server:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.draw(timeout=30, **LONG)))
            for _ in range(3)
        ]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun < 3
        assert len(answers) == 3
        for answer in answers:
            assert "0.6 seconds" in refused(answer, 504, "timeout")
        soon(lambda: server.engine.images == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(slow, stream):
    with serving(slow) as server:
        host, port = server.url.removeprefix("http://").split(":")
        client = http.client.HTTPConnection(host, int(port))
        body = {"prompt": "tiger", "stream": stream, "partial_images": 3, **LONG}
        client.request("POST", GENERATIONS, json.dumps(body), {"Content-Type": "application/json"})
        soon(lambda: server.engine.running == 1)
        time.sleep(0.1)
        client.close()
        soon(lambda: server.engine.running == 0, 2)


def test_a_client_that_leaves_a_stream_that_has_begun_frees_its_place(slow):
    with serving(slow) as server:
        body = {"prompt": "tiger", "stream": True, "partial_images": 3, "num_inference_steps": 80}
        with server.client.stream("POST", GENERATIONS, json=body) as answer:
            first = next(answer.iter_lines())
            assert first == "event: image_generation.partial_image"
        soon(lambda: server.engine.running == 0, 1)


def test_a_client_that_leaves_within_its_body_is_no_failure(server, caplog):
    for path in (GENERATIONS, EDITS):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                'Content-Length: 1000\r\n\r\n{"prompt'.encode()
            )
            time.sleep(0.1)
    with caplog.at_level("INFO", "flowturbo.serve"):
        images(server.draw())
        time.sleep(0.2)
    assert "failed" not in caplog.text


def test_an_error_in_a_stream_is_an_event(slow):
    with serving(slow, timeout=1.0) as server:
        events = server.stream(
            GENERATIONS, prompt="tiger", partial_images=3, num_inference_steps=40
        )
        assert events[0][0] == "image_generation.partial_image"
        assert events[-1][0] == "error"
        assert events[-1][1]["error"]["code"] == "timeout"
        # before the first event it has its status
        answer = server.draw(stream=True, **LONG)
        refused(answer, 504, "timeout")


@pytest.mark.parametrize("kind", [ZeroDivisionError, ValueError, ImportError])
def test_a_fault_of_the_server_says_no_more_than_that(words, caplog, kind):
    def fail(*_):
        raise kind("n=1: a secret")

    hook = words.network.register_forward_pre_hook(fail)
    try:
        with serving(words) as server:
            for stream in (False, True):
                answer = server.draw(stream=stream)
                assert "secret" not in refused(answer, 500, "internal_error")
                assert f"request {answer.headers['x-request-id']} failed" in caplog.text
            assert f"{kind.__name__}: n=1: a secret" in caplog.text
    finally:
        hook.remove()


def test_a_fault_after_the_last_evaluation_is_the_servers(words, caplog, monkeypatch):
    def fail(*_):
        raise ValueError("n=1: a secret")

    monkeypatch.setattr(ft.Model, "decode", fail)
    with serving(words) as server:
        assert "secret" not in refused(server.draw(), 500, "internal_error")
        fields = {"prompt": "tiger", "plan": "AB2:6", "partial_images": 1}
        ((name, data),) = server.stream(GENERATIONS, **fields)
        assert (name, data["error"]["code"]) == ("error", "internal_error")
        assert "secret" not in data["error"]["message"]
        assert len(set(re.findall(r"request (req_\w+) failed", caplog.text))) == 2


def test_images_that_are_not_finite_are_refused_with_what_to_change(words):
    hook = words.network.register_forward_hook(lambda module, given, made: made * float("inf"))
    try:
        with serving(words) as server:
            message = refused(server.draw(), 400, "invalid_value")
            assert "lower the guidance, or take another plan" in message
    finally:
        hook.remove()


def test_an_extra_that_the_server_lacks_is_named(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    answer = server.edit(click=[2, 2])
    assert "pip install 'flowturbo[edit]'" in refused(answer, 501, "not_installed")
    error = of_exception(ImportError("cannot import name 'a' from 'b'"))
    assert (error.status, error.code) == (500, "internal_error")


# -- around requests ----------------------------------------------------------------------------


def test_requests_have_ids_and_lines_in_the_log(server, caplog):
    with caplog.at_level("INFO", "flowturbo.serve"):
        answer = server.client.post(
            GENERATIONS, json={"prompt": "red apple"}, headers={"X-Request-ID": "mine-1.2"}
        )
        other = server.client.get("/healthz", headers={"X-Request-ID": "two words"})
        soon(lambda: len(caplog.records) >= 2)
    assert answer.headers["x-request-id"] == "mine-1.2"
    assert other.headers["x-request-id"].startswith("req_")
    lines = [json.loads(r.message) for r in caplog.records if r.name == "flowturbo.serve"]
    line = next(line for line in lines if line["request_id"] == "mine-1.2")
    assert (line["path"], line["status"], line["images"]) == (GENERATIONS, 200, 1)
    assert line["evaluations"] == 2
    assert "red apple" not in caplog.text  # prompts are not kept


def test_metrics_count(words):
    with serving(words) as server:
        images(server.draw(n=3))
        server.draw(n=0)
        text = server.client.get("/metrics").text
        assert 'flowturbo_requests_total{route="/v1/images/generations",status="200"} 1.0' in text
        assert server.figure("flowturbo_images_total") == 3
        assert server.figure('flowturbo_refused_total{code="invalid_value"}') == 1
        assert server.figure("flowturbo_tick_rows_sum") == 12  # two evaluations, guided
        assert server.figure("flowturbo_first_image_seconds_count") == 1
        assert server.figure("flowturbo_request_seconds_count") == 1
        assert server.figure("flowturbo_requests_running") == 0


def test_a_named_quality_takes_a_plan(server):
    counts = {
        q: server.draw(quality=q).json()["flowturbo"]["evaluations"]
        for q in ("low", "medium", "high")
    }
    assert counts == {"low": 6, "medium": 8, "high": 16}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_an_image_says_where_it_is_from(server, kind):
    made = server.draw(output_format=kind, seed=4)
    (image,) = images(made)
    text = image.text if kind == "png" else json.loads(image.getexif()[270])
    assert text["prompt"] == "tiger"
    assert text["seed"] == "4"
    assert text["Software"].startswith("flowturbo ")
    assert text["model"].startswith("words ")
    xmp = image.info["xmp"] if kind != "png" else text["XML:com.adobe.xmp"].encode()
    assert b"digitalsourcetype/trainedAlgorithmicMedia" in xmp
    (edited,) = images(server.edit(output_format=kind))
    xmp = edited.info["xmp"] if kind != "png" else edited.text["XML:com.adobe.xmp"].encode()
    assert b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia" in xmp


# -- the process --------------------------------------------------------------------------------


def test_an_address_that_others_reach_needs_a_key():
    with pytest.raises(ValueError, match="needs an API key"):
        bind("0.0.0.0", 0, ())
    bind("0.0.0.0", 0, [KEY]).close()
    bind("127.0.0.1", 0, ()).close()
    bind("localhost", 0, ()).close()
    with pytest.raises(ValueError, match="not an address"):
        bind("no.such.host.invalid", 0, ())


def test_sigterm_lets_what_runs_finish(text_model):
    code = (
        "import sys, time, flowturbo.models.sit as sit\n"
        "plain = sit.SiT.forward\n"
        "def forward(*args, **kw):\n"
        "    time.sleep(0.05)\n"
        "    return plain(*args, **kw)\n"
        "sit.SiT.forward = forward\n"
        "from flowturbo.cli import main\n"
        f"sys.exit(main(['serve', '--model', {str(text_model)!r}, '--port', '0']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            line = ""
            while "http://" not in line:
                line = process.stdout.readline()
                assert line, "it did not start"
            url = re.search(r"http://[\d.:]+", line)[0]
            answers = []
            body = {"prompt": "tiger", "num_inference_steps": 20}
            thread = threading.Thread(
                target=lambda: answers.append(httpx.post(url + GENERATIONS, json=body, timeout=30))
            )
            thread.start()
            soon(lambda: "flowturbo_requests_running 1.0" in httpx.get(url + "/metrics").text)
            process.send_signal(signal.SIGTERM)
            thread.join()
            images(answers[0])
            assert process.wait(10) == -signal.SIGTERM  # as who sent it expects
        finally:
            process.kill()
