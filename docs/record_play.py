"""Records the page of `vidalign play` as a moving picture, and says how fast it was.

    vidalign train world/astrolabe --run runs/demo
    python docs/record_play.py runs/demo docs/images/play.gif
    python docs/record_play.py world/student --metric world_auditor

It types the first proposed prompt, or the default below, streams six seconds, and changes the prompt in mid-stream.
Without a file it only measures. Needs Debian's chromium and the extra `serve`.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
from report_browser import Browser

PROMPT, THEN = "a large red circle falls", "a small blue square bounces"
WIDTH, HEIGHT, SHOWN, COLOURS = 760, 1200, 600, 128
"""Pixels of the browser's window and of the picture's width; colours of its palette."""
CHANGE = 3.0
"""Seconds after which the prompt changes."""


def start(browser: Browser, link: str) -> None:
    """Open the page, type and begin."""
    browser.open(link, WIDTH, reduced_motion=False)
    browser.call("Emulation.setScrollbarsHidden", hidden=True)
    browser.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
    while browser.js("document.getElementById('start').disabled"):
        time.sleep(0.1)
    browser.js(f"document.getElementById('prompt').value ||= {PROMPT!r}")


def streamed(browser: Browser) -> list[tuple[float, bytes]]:
    """Stream one clip: (second, PNG) of every picture that the browser painted."""
    browser.call("Page.startScreencast", format="png", everyNthFrame=1)
    browser.events.clear()
    browser.js("document.getElementById('start').click()")
    began, changed, pictures = time.monotonic(), False, []
    while browser.js("document.getElementById('play').textContent") != "Play again":
        if not changed and time.monotonic() - began > CHANGE:
            browser.js(f"document.getElementById('prompt').value = {THEN!r}; document.getElementById('switch').click()")
            changed = True
        for event in [one for one in browser.events if one.get("method") == "Page.screencastFrame"]:
            params: dict[str, Any] = event["params"]
            pictures.append((params["metadata"]["timestamp"], base64.b64decode(params["data"])))
            browser.call("Page.screencastFrameAck", sessionId=params["sessionId"])
        browser.events.clear()
        time.sleep(0.02)
    browser.call("Page.stopScreencast")
    return pictures


def measured(browser: Browser) -> list[str]:
    """Stream one clip without recording, and what the page says of its speed."""
    browser.js("document.getElementById('start').click()")
    while browser.js("document.getElementById('play').textContent") != "Play again":
        time.sleep(0.5)
    times = browser.js("[...document.querySelectorAll('figcaption')].map(e => e.innerText.replace(/\\s+/g, ' '))")
    return [browser.js("document.getElementById('speed').textContent"), *times]


def moving(pictures: list[tuple[float, bytes]], box: tuple[int, int, int, int]) -> bytes:
    """The pictures as a GIF at the pace at which they were painted."""
    images = [Image.open(io.BytesIO(data)).convert("RGB").crop(box) for _, data in pictures]
    size = (SHOWN, round(images[0].height * SHOWN / images[0].width))
    images = [image.resize(size, Image.Resampling.LANCZOS) for image in images]
    strip = Image.new("RGB", (size[0], size[1] * 6))
    for n in range(6):
        strip.paste(images[(len(images) - 1) * n // 5], (0, size[1] * n))
    palette = strip.quantize(COLOURS, method=Image.Quantize.FASTOCTREE)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    ends = [*[second for second, _ in pictures][1:], pictures[-1][0] + 2]
    pauses = [max(20, round(1000 * (end - second))) for end, (second, _) in zip(ends, pictures, strict=True)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], loop=0, duration=pauses)
    return buffer.getvalue()


def main() -> None:
    """Serve, stream, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--metric", action="append", default=[])
    given = parser.parse_args()
    words = [word for name in given.metric for word in ("--metric", name)]
    command = [sys.executable, "-m", "vidalign.cli", "play", given.student, *words, "--port", "0"]
    process = subprocess.Popen([*command, "--token", "recording"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found, "the page could not be served"
            start(browser, found[0])
            print(*measured(browser), f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", sep="\n")
            if given.out is not None:
                start(browser, found[0])
                pictures = streamed(browser)
                bottom = browser.js("document.getElementById('judged').offsetTop")
                content = moving(pictures, (0, 0, WIDTH, min(HEIGHT, bottom)))
                given.out.write_bytes(content)
                print(f"{given.out}: {len(content) / 1e3:.0f} kB, {len(pictures)} pictures")
        finally:
            browser.close()
            process.terminate()
            process.wait(20)


if __name__ == "__main__":
    main()
