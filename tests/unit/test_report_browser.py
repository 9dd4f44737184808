"""The page in a real browser: no console errors, no requests, sorting, filters, playback in step, keyboard and mouse.

Needs Debian's chromium; driven over its debugging pipe, so no driver package. Run: pytest -m slow <this file>
"""

from __future__ import annotations

import base64
import io
import json
import time

import numpy as np
import pytest
from PIL import Image
from report_browser import CHROMIUM, Browser
from report_example import LEVELS, bench, run

from vidalign.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)"),
]
CANVASES = 2 * len(LEVELS)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A benchmark: five rows, two prompts."""
    return write_report(tmp_path_factory.mktemp("report") / "bench.html", bench()).as_uri()


@pytest.fixture(scope="module")
def run_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(tmp_path_factory.mktemp("report") / "run.html", run()).as_uri()


def shown(browser: Browser) -> list[int]:
    """The frame that each canvas shows, read from its pixels: frame f of row r is the grey 40 f + 8 r."""
    pixel = "c => c.getContext('2d').getImageData(5, 5, 1, 1).data[0]"
    values = browser.js(f"[...document.querySelectorAll('canvas')].map({pixel})")
    base = [8 * (i % len(LEVELS)) for i in range(len(values))]
    frames = [round((value - low) / 40) for value, low in zip(values, base, strict=True)]
    assert all(abs(v - low - 40 * f) <= 2 for v, low, f in zip(values, base, frames, strict=True)), values
    return frames


def wait_for(browser: Browser, condition: str) -> None:
    for _ in range(50):
        if browser.js(condition):
            return
        time.sleep(0.1)
    pytest.fail(f"never true: {condition}")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("page", ["url", "run_url"])
def test_page_opens_without_errors_requests_or_sideways_scrolling(
    browser: Browser, request: pytest.FixtureRequest, page: str, width: int, dark: bool
) -> None:
    url = request.getfixturevalue(page)
    browser.open(url, width, dark)
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.js("document.querySelectorAll('svg.plot:not([hidden])').length") >= 2
    browser.js("scrollTo(0, document.body.scrollHeight)")
    assert browser.seen("Runtime.exceptionThrown") == []
    assert browser.seen("Log.entryAdded") == []
    assert browser.seen("Runtime.consoleAPICalled") == []
    requests = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert [request for request in requests if not request.startswith("data:")] == [url]
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    picture = base64.b64decode(browser.call("Page.captureScreenshot")["data"])
    light = float(np.asarray(Image.open(io.BytesIO(picture)).convert("L"))[-5:, :50].mean())
    assert light < 60 if dark else light > 200


@pytest.mark.parametrize("width", [400, 1400])
def test_result_and_first_clip_are_in_the_first_screen(browser: Browser, run_url: str, width: int) -> None:
    browser.open(run_url, width)
    for place in ("'.result'", "'canvas'"):
        box = browser.js(f"(r => [r.top, r.bottom])(document.querySelector({place}).getBoundingClientRect())")
        assert 0 <= box[0] < box[1] <= 900


@pytest.mark.parametrize("page", ["url", "run_url"])
def test_without_script_clips_charts_and_tables_are_seen(
    browser: Browser, request: pytest.FixtureRequest, page: str
) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(request.getfixturevalue(page), 400)
        seen = "[...document.querySelectorAll({})].filter(e => e.getBoundingClientRect().height > 5).length"
        assert browser.js(seen.format("'.clip img'")) == browser.js("document.images.length") > 2
        assert browser.js(seen.format("'svg.plot'")) >= 3 and browser.js(seen.format("'table'")) >= 1
        assert browser.js(seen.format("'.transport, .filters, .presets, .chips input, #theme'")) == 0
        moved = "new DOMMatrix(getComputedStyle(document.images[0]).transform).isIdentity"
        browser.call("Emulation.setEmulatedMedia", features=[])
        time.sleep(0.2)
        states = {browser.js(moved) for _ in range(40) if time.sleep(0.03) is None}
        assert states == {True, False}  # the frames change
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("page", ["url", "run_url"])
@pytest.mark.parametrize("dark", [False, True])
def test_charts_are_printed_without_scrolling(
    browser: Browser, request: pytest.FixtureRequest, page: str, dark: bool
) -> None:
    browser.open(request.getfixturevalue(page), dark=dark)
    browser.js("dispatchEvent(new Event('beforeprint'))")
    browser.call("Emulation.setEmulatedMedia", media="print")
    heights = "[...document.querySelectorAll('svg.plot:not([hidden])')].map(e => e.getBoundingClientRect().height)"
    assert min(browser.js(heights)) > 100
    assert browser.js("getComputedStyle(document.body).color") == "rgb(29, 31, 35)"  # ink on paper, in the dark too
    pdf = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 2
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.js("dispatchEvent(new Event('afterprint'))")
    assert browser.js("document.querySelectorAll('details:not([open])').length") > 0


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable(browser: Browser, run_url: str, dark: bool) -> None:
    """Contrast of at least 4.5 (WCAG 2.2, 1.4.3) of every text colour on the page's and the cards' background."""
    browser.open(run_url, dark=dark)
    resolved = "(name => {e = document.createElement('i'); e.style.color = `var(${name})`; document.body.append(e);"
    resolved += " c = getComputedStyle(e).color.match(/[0-9.]+/g).map(Number); e.remove(); return c})"

    def luminance(name: str) -> float:
        parts = [value / 255 for value in browser.js(f"{resolved}('{name}')")[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in ("--page", "--card"):
        for ink in ("--ink", "--soft", "--better", "--worse"):
            low, high = sorted((luminance(ground), luminance(ink)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, ink)


def test_keyboard_steps_all_clips_together(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.js("document.getElementById('videos').scrollIntoView()")
    wait_for(browser, "document.getElementById('play').textContent === 'Play'")
    wait_for(browser, "document.querySelectorAll('canvas')[9].getContext('2d').getImageData(5,5,1,1).data[3]")
    seen = [shown(browser)]
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "ArrowLeft", "Home"):
        browser.key(key)
        seen.append(shown(browser))
    assert seen == [[frame] * CANVASES for frame in (0, 1, 2, 1, 5, 0, 5, 0)]
    assert browser.js("document.getElementById('frame').value") == "1 / 6"


def test_space_and_click_play_and_pause_in_step(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.js("document.getElementById('videos').scrollIntoView()")
    browser.key(" ")
    assert browser.js("document.getElementById('play').textContent") == "Pause"
    wait_for(browser, "document.getElementById('scrub').value === '2'")
    assert len(set(shown(browser))) == 1
    box = browser.js("(r => [r.left + 20, r.top + 20])(document.querySelector('canvas').getBoundingClientRect())")
    browser.mouse("mousePressed", *box)
    browser.mouse("mouseReleased", *box)
    assert browser.js("document.getElementById('play').textContent") == "Play"
    still = shown(browser)
    time.sleep(0.4)
    assert shown(browser) == still and len(set(still)) == 1


def test_slider_and_drag_scrub_all_clips(browser: Browser, url: str) -> None:
    browser.open(url)
    browser.js("document.getElementById('videos').scrollIntoView()")
    browser.js("s = document.getElementById('scrub'); s.value = 4; s.dispatchEvent(new Event('input'))")
    wait_for(browser, "document.getElementById('frame').value === '5 / 6'")
    assert shown(browser) == [4] * CANVASES
    left, top, width = browser.js(
        "(r => [r.left, r.top, r.width])(document.querySelector('canvas').getBoundingClientRect())"
    )
    browser.mouse("mousePressed", left + 0.9 * width, top + 20)
    browser.mouse("mouseMoved", left + 0.9 * width - width / 2, top + 20)  # half a width = half the clip
    browser.mouse("mouseReleased", left + 0.4 * width, top + 20)
    assert shown(browser) == [1] * CANVASES
    assert browser.js("document.getElementById('play').textContent") == "Play"


def test_plays_by_itself_unless_motion_is_unwanted(browser: Browser, url: str) -> None:
    browser.open(url, reduced_motion=False)
    assert browser.js("document.getElementById('play').textContent") == "Pause"
    browser.open(url, reduced_motion=True)
    assert browser.js("document.getElementById('play').textContent") == "Play"


def test_theme_button_turns_the_page_and_its_curves(browser: Browser, url: str) -> None:
    browser.open(url)
    line = "getComputedStyle(document.querySelector('.plot .line')).stroke"
    page = "getComputedStyle(document.body).backgroundColor"
    before = [browser.js(line), browser.js(page)]
    browser.js("document.getElementById('theme').click()")
    after = [browser.js(line), browser.js(page)]
    assert before[0] != after[0] and before[1] != after[1]


def leaderboard(browser: Browser) -> list[list[str]]:
    """What every visible cell says, row by row."""
    text = "c => c.innerText.replace(/\\s+/g, ' ').replace(' details', '').trim()"
    cells = f"[...row.cells].filter(c => c.offsetParent).map({text})"
    return browser.js(f"[...document.getElementById('board').rows].filter(r => !r.hidden).map(row => {cells})")


def choose(browser: Browser, select: str, value: str) -> None:
    found = f"s = document.getElementById('{select}'); s.value = {json.dumps(value)}"
    assert browser.js(f"{found}; s.value") == value
    browser.js("s.dispatchEvent(new Event('change'))")


def names(browser: Browser) -> list[str]:
    return [row[0] for row in leaderboard(browser)[1:]]


def test_headings_sort_and_unmeasured_rows_stay_last(browser: Browser, url: str) -> None:
    browser.open(url)
    assert names(browser) == ["ground truth", "astrolabe", "sft", "base", "adversary"]
    press = 'document.querySelector(\'[data-metric="{}"][data-judge="{}"] button\').click()'
    browser.js(press.format("composite", "held-out auditor"))
    assert names(browser) == ["adversary", "base", "sft", "astrolabe", "ground truth"]
    browser.js(press.format("composite", "trained rewards"))
    assert names(browser) == ["ground truth", "adversary", "astrolabe", "sft", "base"]
    browser.js(press.format("seconds", "cost"))  # lower is better; references cost nothing
    assert names(browser)[:3] == ["sft", "astrolabe", "adversary"]
    browser.js(press.format("seconds", "cost"))
    assert names(browser)[:3] == ["adversary", "astrolabe", "sft"]
    sorted_by = "[...document.querySelectorAll('#board [aria-sort]')].map(h => [h.dataset.metric, h.ariaSort])"
    assert browser.js(sorted_by) == [["seconds", "descending"]]


def test_judge_and_metric_filter_columns(browser: Browser, url: str) -> None:
    browser.open(url)
    assert [heading.split()[0] for heading in leaderboard(browser)[0]] == [
        "Row",
        "composite",
        "pass",
        "law",
        "colour",
        "shape",
    ]
    choose(browser, "judge", "trained rewards")
    assert len(leaderboard(browser)[0]) == 3
    choose(browser, "metric", "composite")
    (adversary,) = [row for row in leaderboard(browser) if row[0] == "adversary"]
    assert adversary[1].startswith("▲") and "0.900" in adversary[1]
    choose(browser, "judge", "")
    assert len(leaderboard(browser)[0]) == 3  # composite of both judges
    choose(browser, "judge", "cost")  # which has no composite
    assert browser.js("document.getElementById('metric').value") == "" and len(leaderboard(browser)[0]) == 2


def compared(browser: Browser) -> list[list[str]]:
    """Heading and visible rows of the paired differences."""
    cells = "[...row.cells].map(c => c.innerText.replace(/\\s+/g, ' ').trim())"
    return browser.js(f"[...document.querySelector('.compared').rows].filter(r => r.offsetParent).map(row => {cells})")


def test_any_pair_is_chosen_in_either_direction(browser: Browser, url: str) -> None:
    browser.open(url)
    head, _, first, *_ = compared(browser)
    assert head[1:3] == ["base", "sft"] and first[1:4] == ["0.550", "0.620", "+0.070 -0.010 .. +0.150 detectable 0.100"]
    choose(browser, "pair-after", "adversary")
    head, _, first, *_ = compared(browser)
    assert head[1:3] == ["base", "adversary"] and first[-1] == "▼ worse"
    assert first[:4] == ["composite", "0.550", "0.400", "-0.150 -0.230 .. -0.070 detectable 0.100"]
    line = "(l => [l.x1.baseVal.value, l.x2.baseVal.value])(document.querySelector('.compared .span'))"
    assert browser.js(line)[0] < browser.js(line)[1] < 50
    choose(browser, "pair-after", "sft")
    choose(browser, "pair-before", "astrolabe")  # the page has it the other way round
    head, _, first, *_ = compared(browser)
    assert head[1:3] == ["astrolabe", "sft"] and first[-1] == "▼ worse"
    assert first[1:4] == ["0.710", "0.620", "-0.090 -0.170 .. -0.010 detectable 0.100"]
    offered = "[...document.getElementById('pair-before').options].filter(o => !o.disabled).map(o => o.value)"
    assert browser.js(offered) == ["base", "astrolabe"]
    assert browser.js("document.querySelector('.pair').ariaLabel") == "sft against astrolabe"


def test_rows_are_shown_by_group_and_alone(browser: Browser, url: str) -> None:
    browser.open(url)
    lines = "[...document.querySelectorAll('#gains tbody tr')].filter(r => r.offsetParent).map(r => r.dataset.row)"
    assert browser.js(lines) == ["astrolabe", "sft", "adversary"]
    for group, rows in (
        ("methods", ["astrolabe", "sft"]),
        ("examples", ["adversary"]),
        ("none", []),
        ("references", []),
        ("all", ["astrolabe", "sft", "adversary"]),
    ):
        browser.js(f"document.querySelector('[data-show={group}]').click()")
        assert browser.js(lines) == rows
    choose(browser, "only", "sft")
    assert browser.js(lines) == ["sft"] and names(browser) == ["sft"]
    choose(browser, "only", "")
    assert len(names(browser)) == 5


def test_a_hidden_row_leaves_tables_charts_and_videos(browser: Browser, url: str) -> None:
    browser.open(url)
    labels = (
        "[...document.querySelectorAll('.plot .name')].filter(t => t.getClientRects().length).map(t => t.textContent)"
    )
    assert "adversary" in browser.js(labels)
    browser.js("document.querySelector('#rows input[value=adversary]').click()")
    assert names(browser) == ["ground truth", "astrolabe", "sft", "base"]
    wait_for(browser, f"!({labels}).includes('adversary')")
    assert "astrolabe" in browser.js(labels)
    assert browser.js("[...document.querySelectorAll('canvas')].filter(c => c.offsetParent).length") == CANVASES - 2
    browser.js("document.querySelector('#rows input[value=adversary]').click()")
    wait_for(browser, f"({labels}).includes('adversary')")
    assert len(names(browser)) == 5


def test_curves_are_drawn_against_the_chosen_budget(browser: Browser, url: str) -> None:
    browser.open(url)
    plots = "[...document.querySelectorAll('#curves .plot')]"
    shown = f"{plots}.filter(p => p.getClientRects().length).map(p => p.dataset.axis)"
    assert browser.js(shown) == ["step", "step"]
    for axis in ("forwards", "seconds", "step"):
        choose(browser, "axis", axis)
        assert browser.js(shown) == [axis, axis]


def test_everything_is_reached_by_the_keyboard(browser: Browser, url: str) -> None:
    browser.open(url)
    seen = []
    for _ in range(60):
        browser.key("Tab")
        place = "document.activeElement"
        seen.append(
            browser.js(f"{place}.id || {place}.value || {place}.parentElement.dataset.metric || {place}.tagName")
        )
        if seen[-1] == "law":
            break
    assert seen[:11] == ["theme", *["BUTTON"] * 5, "only", *list(LEVELS)[:4]]
    assert [name for name in seen if name in ("judge", "metric", "composite", "law")] == [
        "judge",
        "metric",
        "composite",
        "law",
    ]
    browser.key("Enter")
    assert browser.js("document.querySelector('#board [aria-sort]').dataset.metric") == "law"
    outline = browser.js("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
