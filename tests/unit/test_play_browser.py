"""The page of `vidalign play` in a real browser: it streams, changes, waits, saves, and shows what was typed as text.

Needs Debian's chromium, as the report's tests. Run: pytest -m slow <this file>
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from play_helpers import PROMPTS, stage, student
from report_browser import CHROMIUM, Browser
from test_play_session import Seen

from vidalign.play.device import Device
from vidalign.play.panes import Stage
from vidalign.play.run import Options, Server
from vidalign.play.session import Session, Start
from vidalign.serving.run import bound
from vidalign.tracking.clips import to_frames

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)"),
]
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script> a small blue square"


@contextmanager
def served(stage: Stage, places: int = 2) -> Iterator[tuple[str, Server, Device]]:
    """A server in a thread: its link, which may be used several times."""
    device, options = Device(places, 1), Options(token="ours", places=places)
    with bound("127.0.0.1", 0) as listening:
        server = Server(stage, options, listening, device)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield server.link, server, device
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextmanager
def opened() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened() as browser:
        yield browser


@pytest.fixture
def link() -> Iterator[str]:
    """Two students, the second with a scale, and a metric."""
    with served(stage(student(), student(seed=1), metrics=[Seen()])) as (link, _, _):
        yield link


def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.05)


def text(browser: Browser, selector: str) -> str:
    return str(browser.js(f"document.querySelector({json.dumps(selector)}).textContent"))


def fill(browser: Browser, name: str, value: str) -> None:
    browser.js(f"document.getElementById({name!r}).value = {json.dumps(value)}")


def click(browser: Browser, name: str) -> None:
    browser.js(f"document.getElementById({name!r}).click()")


def ready(browser: Browser, link: str, *size: Any) -> None:
    browser.open(link, *size)
    until(lambda: not browser.js("document.getElementById('start').disabled"))


def made(browser: Browser) -> int:
    """Frames that are made, by what the page says."""
    words = text(browser, "#speed").rpartition(";")[2].split()
    return int(words[0]) if words[1:2] == ["of"] else -1


def shown(browser: Browser) -> int:
    """The number of the frame that is shown."""
    return int(text(browser, "#frame").split()[0])


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_streams_without_errors_strangers_or_sideways_scrolling(
    browser: Browser, link: str, width: int, dark: bool
) -> None:
    ready(browser, link, width, dark)
    box = browser.js("(r => [r.top, r.bottom])(document.querySelector('canvas').getBoundingClientRect())")
    assert 0 <= box[0] < box[1] <= 900, "the first picture is in the first screen"
    fill(browser, "seconds", "1.5")
    click(browser, "start")
    until(lambda: shown(browser) >= 2)
    fill(browser, "prompt", HOSTILE)
    click(browser, "switch")
    until(lambda: text(browser, "#play") == "Play again")
    assert shown(browser) == 12 and "12 of 12 frames are made" in text(browser, "#speed")
    assert browser.js("[...document.querySelectorAll('#changes span')].map(e => e.textContent)") == [
        PROMPTS[0],
        HOSTILE,
    ]
    assert HOSTILE.split("'")[0] in text(browser, "#commands code") and "script" in text(browser, "#message")
    assert browser.js("document.querySelectorAll('#changes img, #changes script, pre img, #message img').length") == 0
    assert browser.js("document.title") == "vidalign play"
    assert browser.js("document.querySelectorAll('#scores tbody tr').length") == 2
    assert "ms a chunk, mean" in text(browser, "#panes .ms")
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    for method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
        assert browser.seen(method) == []
    origin = link.partition("?")[0]
    asked = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert len(asked) > 5 and all(url.startswith((origin, "data:", "blob:")) for url in asked)
    assert "token" not in browser.js("location.href")
    picture = base64.b64decode(browser.call("Page.captureScreenshot")["data"])
    assert picture.startswith(b"\x89PNG")


def test_the_pictures_are_those_of_sample(browser: Browser, link: str) -> None:
    ready(browser, link)
    fill(browser, "seconds", "1.5")
    fill(browser, "seed", "4")
    browser.js("document.getElementById('prompt').focus()")
    browser.key("Enter")
    until(lambda: text(browser, "#play") == "Play again")
    browser.js("s = document.getElementById('scrub'); s.value = 7; s.dispatchEvent(new Event('input'))")
    time.sleep(0.3)
    for pane, one in enumerate((student(), student(seed=1))):
        pixels = browser.js(
            f"[...document.querySelectorAll('canvas')[{pane}].getContext('2d').getImageData(0, 0, 32, 32).data]"
        )
        found = np.array(pixels, np.uint8).reshape(32, 32, 4)[..., :3]
        assert np.array_equal(found, to_frames(one.sample([PROMPTS[0]], frames=12, seed=4)[0])[7])


def test_a_pause_asks_for_nothing_and_play_goes_on(browser: Browser, link: str) -> None:
    ready(browser, link)
    click(browser, "start")
    until(lambda: shown(browser) >= 2)
    click(browser, "play")
    time.sleep(0.5)
    held = shown(browser), made(browser)
    assert held[1] < 48, "chunks are made a little ahead of what is shown"
    time.sleep(1)
    assert (shown(browser), made(browser)) == held
    click(browser, "play")
    until(lambda: shown(browser) > held[0] + 3)


def test_the_page_waits_for_a_slow_student(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Session._next

    def slow(self: Session) -> Any:
        time.sleep(1)
        return plain(self)

    monkeypatch.setattr(Session, "_next", slow)
    with served(stage(student())) as (link, _, _):
        ready(browser, link)
        fill(browser, "seconds", "0.75")
        click(browser, "start")
        until(lambda: text(browser, "#speed") == "Waiting for a chunk.")
        until(lambda: text(browser, "#play") == "Play again")
        waited = float(text(browser, "#speed").partition("waited ")[2].split()[0])
        assert 0.3 < waited < 5 and shown(browser) == 6


def test_the_scale_begins_the_clip_anew(browser: Browser, link: str) -> None:
    ready(browser, link)
    assert text(browser, "#scaling span") == "Adapter scale"
    click(browser, "start")
    until(lambda: shown(browser) >= 4)
    browser.js("s = document.getElementById('scale'); s.value = 0.4; s.dispatchEvent(new Event('input'))")
    browser.js("document.getElementById('scale').dispatchEvent(new Event('change'))")
    until(lambda: "--scale 0.4" in text(browser, ".command:last-child code"))
    assert text(browser, "#value") == "0.40" and made(browser) <= 9
    assert "--scale" not in text(browser, "#commands code")


def test_the_button_saves_the_clip(browser: Browser, link: str, tmp_path: Path) -> None:
    ready(browser, link)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    fill(browser, "seconds", "0.75")
    click(browser, "start")
    until(lambda: text(browser, "#play") == "Play again")
    browser.js("document.querySelectorAll('#panes button')[1].click()")
    until((tmp_path / "clip.mp4").is_file)
    session = Session(stage(student(), student(seed=1)))
    session.start(Start(PROMPTS[0], seconds=0.75))
    while session.next() is not None:
        pass
    assert (tmp_path / "clip.mp4").read_bytes() == session.film(1)[1]


def test_a_mistake_is_shown_and_the_page_goes_on(browser: Browser, link: str) -> None:
    ready(browser, link)
    fill(browser, "seed", "9007199254740993")
    click(browser, "start")
    assert browser.js("!document.getElementById('seed').validity.valid"), "the form refuses it"
    browser.js("document.getElementById('scale').max = 9; document.getElementById('scale').value = 9")
    fill(browser, "seed", "0")
    click(browser, "start")
    until(lambda: "the scale is 9.0" in text(browser, "#message"))
    fill(browser, "scale", "1")
    click(browser, "start")
    until(lambda: shown(browser) >= 1)
    assert browser.js("document.getElementById('message').hidden")


def test_three_pages_for_two_places(browser: Browser) -> None:
    """Two stream at once, the third one waits politely and begins when one leaves in mid-stream."""
    with served(stage(student())) as (link, _, device), opened() as second, opened() as third:
        for one in (browser, second):
            ready(one, link)
            fill(one, "seconds", "30")
            click(one, "start")
        until(lambda: shown(browser) >= 3 and shown(second) >= 3)
        third.open(link)
        until(lambda: text(third, "#message").startswith("2 pages are open"))
        assert third.js("document.getElementById('start').disabled") and device.taken == 2
        browser.call("Page.navigate", url="about:blank")
        until(lambda: not third.js("document.getElementById('start').disabled"))
        assert third.js("document.getElementById('message').hidden")
        click(third, "start")
        until(lambda: shown(third) >= 3)
        before = shown(second)
        until(lambda: shown(second) > before)
        for one in (second, third):
            assert one.seen("Runtime.exceptionThrown") == []
            one.call("Page.navigate", url="about:blank")
        until(lambda: device.taken == 0)


def test_the_end_of_the_server_is_shown(browser: Browser) -> None:
    with served(stage(student())) as (link, server, _):
        ready(browser, link)
        click(browser, "start")
        until(lambda: shown(browser) >= 2)
        server.handle_exit(2, None)
        until(lambda: "The connection is closed" in text(browser, "#state"))
        assert browser.js("document.getElementById('start').disabled")
    browser.open("about:blank")
