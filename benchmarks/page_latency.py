"""Milliseconds from a key press to the image on the page of `flowturbo serve --ui`, in Chromium.

    python benchmarks/page_latency.py --out benchmarks/records/page-latency.json

For each of 20 names all letters but the last are in the prompt, and the last is pressed. The time
is measured from the key's event to the second animation frame after an image was loaded, when it is
on the screen. It includes the pause in which the page waits for another key, the request, the
sampling, the encoding and the drawing. A preview counts as recognisable if, among the final images
of all names, the one nearest to it in pixels is its own; the seed is the same for all. Server and
browser run on one machine. Needs Playwright and an installed Chromium.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from playwright.sync_api import Browser, sync_playwright
from trial import versions

from flowturbo.files import write_json
from flowturbo.stats import interval

NAMES = (
    "balloon", "bus", "cactus", "cat face", "clown face", "eggplant", "guitar", "hamburger", "key",
    "owl", "pizza", "red apple", "rocket", "snowman", "strawberry", "sun", "tiger", "tree",
    "umbrella", "violin",
)  # fmt: skip
WATCH = """
window.pressed = 0; window.seen = [];
document.addEventListener("keydown", (e) => { pressed = e.timeStamp; seen = []; }, true);
document.addEventListener("load", ({ target }) => {
  if (!target.closest?.("#result")) return;
  const { naturalWidth: width, naturalHeight: height } = target;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(target, 0, 0);
  const [mine, since] = [seen, pressed];
  requestAnimationFrame(() => requestAnimationFrame(() => mine.push({
    ms: performance.now() - since, pixels: [...context.getImageData(0, 0, width, height).data],
  })));
}, true);
"""


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server with the page."""
    command = [sys.executable, "-m", "flowturbo", "serve", "--ui", "--port", "0", "--model", model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield re.findall(r"http://\S+", line)[-1]
        finally:
            process.terminate()


def measured(browser: Browser, address: str, plan: str) -> list[list[dict[str, Any]]]:
    """For each name, what was seen: milliseconds since the key press, and pixels."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.add_init_script(WATCH)
    page.goto(address)
    page.wait_for_selector("#ideas button")
    page.select_option("#plan", plan)
    found = []
    for name in (NAMES[0], *NAMES):  # the first twice, to warm up
        page.fill("#prompt", name[:-1])
        page.wait_for_timeout(1000)
        page.press("#prompt", name[-1])
        page.wait_for_selector("#result-frame[aria-busy=true]")
        page.wait_for_selector("#result-frame[aria-busy=false]")
        page.wait_for_timeout(200)  # two frames
        found.append(page.evaluate("seen"))
    return found[1:]


def recognised(seen: list[list[dict[str, Any]]]) -> list[list[bool]]:
    """Whether the final image that is nearest to each that was seen is that of the same name."""
    final = np.array([images[-1]["pixels"] for images in seen], np.float64)
    nearest = lambda pixels: int(((final - pixels) ** 2).sum(-1).argmin())
    return [[nearest(image["pixels"]) == i for image in images] for i, images in enumerate(seen)]


def main() -> None:
    """Measure, print, and keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji", help="a bundled name or a folder")
    parser.add_argument("--plan", default="fast", help="one of the model's")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--out", "-o", help="the record")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with served(options.model) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=options.chromium, args=[] if os.geteuid() else ["--no-sandbox"]
        )
        seen = measured(browser, address, options.plan)
        chromium = browser.version
        browser.close()
    known = recognised(seen)
    ms = [[image["ms"] for image in images] for images in seen]
    shown = {
        "first preview": [each[0] for each in ms],
        "first recognisable preview": [e[k.index(True)] for e, k in zip(ms, known, strict=True)],
        "image": [each[-1] for each in ms],
    }
    made: dict[str, Any] = {
        name: {
            "median_ms": round(float(np.median(each)), 1),
            "median_ms_95": [round(n, 1) for n in interval(lambda x: np.median(x, -1), each)],
            "ms": [round(float(n), 1) for n in each],
        }
        for name, each in shown.items()
    }
    for name, figures in made.items():
        print(f"{name}: median {figures['median_ms']} ms, 95 % {figures['median_ms_95']}")
    share = float(np.mean([each[0] for each in known]))
    print(f"first previews that are recognisable: {share:.0%} of {len(NAMES)}")
    if options.out:
        conditions = {
            "model": options.model, "plan": options.plan, "names": NAMES, "seed": 0,
            "window": "1440 x 900", "cores": os.cpu_count(), "load_before": round(load, 1),
            "threads": os.environ.get("OMP_NUM_THREADS"), "chromium": chromium,
            "versions": versions(),
        }  # fmt: skip
        record = {"kind": "page-latency", "conditions": conditions, **made, "recognisable": share}
        write_json(options.out, record)


if __name__ == "__main__":
    main()
