"""The page: what is served, and what it does in Chromium (skipped where there is none)."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
import httpx
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

import flowturbo as ft
from flowturbo.cli import serve as command
from flowturbo.serve import server
from flowturbo.serve.api import create_app
from flowturbo.serve.engine import Engine
from flowturbo.serve.ui import FOLDER

ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in FOLDER.iterdir())
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
KEY = "a key of the test"
MOST = 10_000  # milliseconds until a test gives up
SLOW = "E190"  # a plan that is not over while a test looks


# -- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(digits: ft.Model) -> Iterator[TestClient]:
    with TestClient(create_app(Engine(digits), keys=[KEY], ui=True)) as made:
        yield made


def test_the_page_is_there():
    assert {"index.html", "page.css", "page.js"} <= set(FILES)


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_files_are_served_without_a_key_and_under_a_strict_policy(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert (
        answer.content
        == (FOLDER / (path.removeprefix("/page/").strip("/") or "index.html")).read_bytes()
    )
    kinds = {".html": "text/html", ".css": "text/css", ".js": "javascript", ".svg": "image/svg"}
    assert kinds[Path(path).suffix or ".html"] in answer.headers["content-type"]
    rules = dict(
        rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; ")
    )
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in str(rules)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_needs_nothing_from_elsewhere_and_has_nothing_inline():
    text = "".join((FOLDER / name).read_text("utf-8") for name in FILES)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    html = (FOLDER / "index.html").read_text("utf-8")
    assert re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", html) == []


def test_the_page_asks_the_public_api_alone():
    text = "".join((FOLDER / name).read_text("utf-8") for name in FILES if name.endswith(".js"))
    asked = set(re.findall(r'"(v1/[^"]+)"', text))
    assert asked == {"v1/models", "v1/images/generations", "v1/images/edits"}
    assert text.count("fetch(") == 1


def test_the_api_asks_for_a_key_and_knows_no_other_path(client):
    assert client.get("/v1/models").status_code == 401
    for path in ("/page/none.js", "/page/../api.py", "/page/%2e%2e/api.py", "/none"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert set(answer.json()) == {"error"}
    assert client.post("/v1/none").status_code == 404


def test_a_page_that_has_not_changed_is_not_sent_again(client):
    again = client.get("/", headers={"If-None-Match": client.get("/").headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("ui", [False, True])
def test_the_page_is_served_on_demand(monkeypatch, digits, ui):
    found = []

    def looked_at(app: Any, *_: Any, **__: Any) -> None:
        with TestClient(app) as asked:
            found.append(asked.get("/").status_code)

    monkeypatch.setattr(server, "serve", looked_at)
    monkeypatch.setattr(command, "load", lambda *_, **__: digits)
    command.run(model="digits", port=0, ui=ui, device="cpu")
    assert found == [200 if ui else 404]


def test_a_wheel_has_the_page():
    wheel = pytest.importorskip("hatchling.builders.wheel")
    builder = wheel.WheelBuilder(str(ROOT))
    files = {file.distribution_path for file in builder.recurse_included_files()}
    assert {f"flowturbo/serve/page/{name}" for name in FILES} <= files


def test_the_documentation_has_the_latency_that_was_measured():
    record = json.loads((ROOT / "benchmarks/records/page-latency.json").read_text("utf-8"))
    text = (ROOT / "docs/serving.md").read_text("utf-8")
    first, image = record["first recognisable preview"], record["image"]
    assert len(first["ms"]) == len(image["ms"]) == 20
    low, high = zip(first["median_ms_95"], image["median_ms_95"], strict=True)
    assert f"{first['median_ms']:.0f} ms after the key press" in text
    assert f"the image {image['median_ms']:.0f} ms after it" in text
    assert f"{low[0]:.0f} to {high[0]:.0f} and {low[1]:.0f} to {high[1]:.0f} ms" in text
    assert f"at a load of {record['conditions']['load_before']:.0f}" in text
    assert record["recognisable"] == 1


# -- in Chromium --------------------------------------------------------------------------------


@contextmanager
def serving(model: ft.Model, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Engine]]:
    """The address of a server on a thread, and its engine."""
    engine = Engine(model)
    app = create_app(engine, keys=keys, ui=True, grace=0.0)
    listening = server.bind("127.0.0.1", 0, keys)
    running = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", engine
    finally:
        running.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="module")
def served(digits: ft.Model) -> Iterator[tuple[str, Engine]]:
    with serving(digits) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield made
        made.close()


SEEN = """
window.seen = []; window.refused = [];
addEventListener("securitypolicyviolation", (e) => refused.push(e.violatedDirective));
const { get, set } = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, "src");
const note = function (url) { seen.push(url); set.call(this, url); };
Object.defineProperty(HTMLImageElement.prototype, "src", { get, set: note });
"""


@pytest.fixture
def opened(browser, served) -> Iterator[Any]:
    """The page, which must end without an error of its scripts or its policy."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    context.set_default_timeout(MOST)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.add_init_script(SEEN)
    page.goto(served[0])
    page.wait_for_selector("#ideas button")
    yield page
    assert (errors, page.evaluate("refused")) == ([], [])
    context.close()


def downloaded(page: Any) -> tuple[str, Image.Image]:
    """The image that is selected, and the name that it is saved by, when the request is over."""
    page.wait_for_selector("#actions:not([hidden])")
    page.wait_for_selector("#result-frame[aria-busy=false]")
    with page.expect_download() as started:
        page.click("#download")
    image = Image.open(started.value.path())
    image.load()
    return started.value.suggested_filename, image


def until(page: Any, true: Callable[[], object]) -> None:
    """Wait; the policy of the page forbids what Playwright waits for functions by."""
    end = time.monotonic() + MOST / 1e3
    while not true():
        assert time.monotonic() < end, "waited in vain"
        page.wait_for_timeout(10)


def requests(page: Any) -> list[str]:
    """The prompts, or tasks without one, of the requests that are over, newest first."""
    return page.locator("#rows td:first-child").all_text_contents()


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one place on the source image to another, in parts of its sides."""
    seen = page.locator("#overlay").bounding_box()
    for i, (x, y) in enumerate((start, end)):
        at = seen["x"] + x * seen["width"], seen["y"] + y * seen["height"]
        page.mouse.move(*at, steps=6)
        page.mouse.down() if i == 0 else page.mouse.up()


def swipe(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """`drag` by a finger."""
    seen = page.locator("#overlay").bounding_box()
    touch = page.context.new_cdp_session(page)
    for kind, places in (("Start", [start]), ("Move", [end]), ("End", [])):
        points = [
            {"x": seen["x"] + x * seen["width"], "y": seen["y"] + y * seen["height"]}
            for x, y in places
        ]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})


def generated(page: Any, prompt: str = "7") -> Image.Image:
    page.fill("#prompt", prompt)
    return downloaded(page)[1]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))


def test_a_key_press_brings_previews_and_the_image_that_the_api_draws(opened, served):
    opened.fill("#seed", "11")
    opened.focus("#prompt")
    opened.keyboard.press("7")
    name, image = downloaded(opened)
    assert name == "7-seed11.png"
    assert len({url for url in opened.evaluate("seen") if url.startswith("blob:")}) == 4
    asked = {"prompt": "7", "seed": 11, "plan": "fast", "guidance_scale": 2}
    answer = httpx.post(f"{served[0]}/v1/images/generations", json=asked, timeout=60).json()
    drawn = base64.b64decode(answer["data"][0]["b64_json"])
    assert np.array_equal(pixels(image), pixels(Image.open(io.BytesIO(drawn))))
    assert "32 \u00d7 32 pixels \u00b7 shown 16 times as large" in opened.inner_text("#caption")
    style = "e => [getComputedStyle(e).imageRendering, e.clientWidth]"
    assert opened.eval_on_selector("#result img", style) == ["pixelated", 512]


def test_the_cost_of_requests_is_drawn_and_tabulated(opened):
    generated(opened, "3")
    opened.select_option("#plan", "*")
    opened.fill("#notation", "E2")
    opened.wait_for_selector("#rows tr:nth-child(2)", state="attached")
    assert opened.locator("#charts rect").count() == 6  # of two requests, for three measures
    cells = opened.locator("#rows tr").first.locator("td").all_text_contents()
    assert cells[:4] == ["3", "1", "2", "4"]
    assert float(cells[4]) > 0
    assert cells[5] == "E2"


def test_a_change_cancels_the_request_before(opened, served):
    engine = served[1]
    opened.fill("#count", "10")
    opened.select_option("#plan", "*")
    opened.fill("#notation", SLOW)
    opened.fill("#prompt", "7")
    until(opened, lambda: engine.running == 1)
    opened.fill("#prompt", "")
    begun = time.monotonic()
    until(opened, lambda: engine.running == 0)
    assert time.monotonic() - begun < 2
    assert opened.evaluate("seen") == []


def test_several_images_are_chosen_from(opened):
    opened.fill("#count", "3")
    opened.fill("#prompt", "5")
    _, first = downloaded(opened)
    opened.locator("#result button").nth(2).click()
    name, third = downloaded(opened)
    assert name == "5-seed2.png"
    assert not np.array_equal(pixels(first), pixels(third))


def test_an_image_is_changed_by_image_to_image(opened):
    before = generated(opened)
    opened.click("#use")
    assert opened.get_attribute("#tab-img2img", "aria-selected") == "true"
    opened.fill("#strength", "0")
    opened.fill("#prompt", "3")
    until(opened, lambda: requests(opened)[0] == "3")  # the strength may have asked before
    assert np.array_equal(pixels(downloaded(opened)[1]), pixels(before))
    asked = len(requests(opened))
    opened.fill("#strength", "0.9")
    until(opened, lambda: len(requests(opened)) > asked)
    assert not np.array_equal(pixels(downloaded(opened)[1]), pixels(before))


@pytest.mark.parametrize("way", ["mouse", "touch", "keyboard"])
def test_what_is_painted_over_is_painted_anew_and_nothing_else(opened, way):
    before = pixels(generated(opened))
    opened.click("#use")
    opened.click("#tab-inpaint")
    opened.fill("#prompt", "0")
    opened.fill("#brush", "8")
    if way == "mouse":
        drag(opened, (0.3, 0.5), (0.7, 0.5))
    elif way == "touch":
        swipe(opened, (0.3, 0.5), (0.7, 0.5))
    else:
        opened.focus("#overlay")
        opened.keyboard.press("ArrowRight")
        opened.keyboard.press(" ")
    until(opened, lambda: requests(opened)[0] == "0")
    after = pixels(downloaded(opened)[1])
    changed = np.argwhere(before != after)
    assert len(changed) > (4 if way == "keyboard" else 40)
    assert changed[:, 0].min() >= 11
    assert changed[:, 0].max() <= 20
    opened.click("#clear")
    opened.click("#draw")
    assert opened.inner_text("#error") == "Paint over what should change."


def test_a_box_is_dragged_or_typed_and_emptied(opened):
    before = pixels(generated(opened))
    opened.click("#use")
    opened.click("#tab-remove")
    opened.fill("#prompt", "")
    drag(opened, (0.26, 0.26), (0.74, 0.74))
    box = [opened.input_value(f"#box-{i}") for i in range(4)]
    assert box == ["8", "8", "24", "24"]
    until(opened, lambda: requests(opened)[0] == "remove")
    after = pixels(downloaded(opened)[1])
    outside = np.ones_like(before, dtype=bool)
    outside[8:24, 8:24] = False
    assert np.array_equal(before[outside], after[outside])
    assert (before != after).any()
    opened.fill("#box-0", "20")
    until(opened, lambda: requests(opened)[:2] == ["remove"] * 2)
    assert np.array_equal(pixels(downloaded(opened)[1])[:, :20], before[:, :20])


def test_a_click_finds_the_object(opened):
    pytest.importorskip("cv2")
    before = pixels(generated(opened))
    y, x = np.unravel_index(before.argmax(), before.shape)
    opened.click("#use")
    opened.click("#tab-remove")
    opened.fill("#prompt", "")
    drag(opened, *[((x + 0.5) / 32, (y + 0.5) / 32)] * 2)
    assert [opened.input_value(f"#box-{i}") for i in range(4)] == [""] * 4
    until(opened, lambda: requests(opened)[0] == "remove")
    after = pixels(downloaded(opened)[1])
    assert after[y, x] < before[y, x]
    drag(opened, (0.26, 0.26), (0.74, 0.74))
    until(opened, lambda: requests(opened)[:2] == ["remove"] * 2)
    assert opened.input_value("#box-0") == "8"


def test_an_edit_takes_both_prompts(opened, served):
    before = generated(opened)
    opened.click("#use")
    opened.click("#tab-edit")
    opened.fill("#source-prompt", "7")
    opened.fill("#prompt", "1")
    opened.fill("#keep", "0.2")
    until(opened, lambda: requests(opened)[0] == "1")
    asked = {"prompt": "1", "source_prompt": "7", "keep": 0.2, "seed": 0, "guidance_scale": 2}
    file = io.BytesIO()
    before.save(file, "PNG")
    path = f"{served[0]}/v1/images/edits"
    answer = httpx.post(path, data=asked, files={"image": file.getvalue()}, timeout=60).json()
    drawn = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert np.array_equal(pixels(downloaded(opened)[1]), pixels(drawn))


def test_a_file_is_taken_and_one_that_is_no_image_is_refused(opened, tmp_path):
    opened.click("#tab-img2img")
    opened.click("#draw")
    assert opened.inner_text("#error") == "Choose an image first."
    Image.new("RGB", (100, 60), "navy").save(tmp_path / "navy.png")
    (tmp_path / "text.png").write_text("no image")
    opened.set_input_files("#file", tmp_path / "text.png")
    until(opened, lambda: "no image" in opened.inner_text("#error"))
    opened.set_input_files("#file", tmp_path / "navy.png")
    opened.wait_for_selector("#layers:not([hidden])")
    opened.fill("#prompt", "7")
    assert downloaded(opened)[1].size == (100, 60)
    assert "100 \u00d7 60 pixels" in opened.inner_text("#source-caption")


def test_an_image_is_dropped_anywhere(opened):
    opened.evaluate("""async () => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 48, height: 48 });
        const blob = await new Promise((resolve) => canvas.toBlob(resolve));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([blob], "black.png", { type: "image/png" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    }""")
    opened.wait_for_selector("#layers:not([hidden])")
    assert opened.get_attribute("#tab-img2img", "aria-selected") == "true"
    assert "48 \u00d7 48 pixels" in opened.inner_text("#source-caption")


def test_an_error_of_the_api_is_one_line(opened):
    opened.fill("#prompt", "seven")
    until(opened, lambda: opened.inner_text("#error"))
    text = opened.inner_text("#error")
    assert "seven" in text
    assert "\n" not in text
    opened.fill("#prompt", "7")
    downloaded(opened)
    assert opened.inner_text("#error") == ""


def test_a_key_is_asked_for_and_kept_for_the_session_alone(browser, digits):
    with serving(digits, (KEY,)) as (address, _):
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", "another key")
        page.keyboard.press("Enter")
        until(page, lambda: page.inner_text("#error"))
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#ideas button")
        assert page.locator("#key-form").is_hidden()
        generated(page)
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert page.evaluate("localStorage.length") == 0
        page.close()


def test_tabs_are_reached_by_arrows_and_every_control_has_a_name(opened):
    opened.focus("#tab-generate")
    modes = []
    for _ in range(5):
        opened.keyboard.press("ArrowRight")
        modes.append(opened.evaluate("document.activeElement.dataset.mode"))
        unnamed = opened.evaluate(
            "[...document.querySelectorAll('input, select, button, canvas')]"
            ".filter((e) => e.checkVisibility() && !e.labels?.length"
            " && !e.textContent.trim() && !e.ariaLabel).map((e) => e.id)"
        )
        assert unnamed == []
    assert modes == ["img2img", "inpaint", "remove", "edit", "generate"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_its_window_in_every_mode(opened, width, scheme):
    opened.set_viewport_size({"width": width, "height": 844})
    opened.emulate_media(color_scheme=scheme)
    generated(opened)
    opened.click("#use")
    opened.click("#figures summary")
    tabs = opened.locator("[role=tab]")
    assert tabs.count() == 5
    for i in range(5):
        tabs.nth(i).click()
        assert opened.evaluate("document.documentElement.scrollWidth") == width
        for card in opened.locator(".card:visible").all():
            box = card.bounding_box()
            assert 0 <= box["x"] < box["x"] + box["width"] <= width - 16
        assert tabs.nth(4).bounding_box()["x"] + tabs.nth(4).bounding_box()["width"] <= width
    dark = opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 17, 20)"
    assert dark == (scheme == "dark")
