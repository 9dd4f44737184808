"""The page of a benchmark with many rows, and that of a language run, in a real browser: first screen, names, paper.

Run: pytest -m slow <this file>
"""

from __future__ import annotations

import pytest
from report_browser import CHROMIUM, Browser
from report_example import bench, many, run

from vidalign.report import Answer, ShownAnswers, write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A benchmark: five rows, two prompts."""
    return write_report(tmp_path_factory.mktemp("report") / "bench.html", bench()).as_uri()


@pytest.fixture(scope="module")
def many_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A benchmark of twenty rows, two of which collapsed."""
    return write_report(tmp_path_factory.mktemp("report") / "many.html", many()).as_uri()


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("page", ["url", "many_url"])
def test_the_forest_of_a_benchmark_is_in_the_first_screen(
    browser: Browser, request: pytest.FixtureRequest, page: str, width: int
) -> None:
    browser.open(request.getfixturevalue(page), width)
    for place in ("'.presets'", "'#gains .forest'"):
        box = browser.js(f"(r => [r.top, r.bottom])(document.querySelector({place}).getBoundingClientRect())")
        assert 0 <= box[0] < box[1] <= 900


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_names_in_charts_do_not_overlap(browser: Browser, many_url: str, width: int, dark: bool) -> None:
    browser.open(many_url, width, dark)
    boxes = (
        "[...plot.querySelectorAll('.name')].map(t => t.getBoundingClientRect())"
        ".map(r => [r.left, r.top + r.height / 5, r.right, r.bottom - r.height / 5])"  # what letters fill of a line
    )
    for found in browser.js(f"[...document.querySelectorAll('svg.plot:not([hidden])')].map(plot => {boxes})"):
        assert len(found) >= 20
        for n, a in enumerate(found):
            assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in found[:n])


@pytest.mark.parametrize("page", ["url", "many_url"])
def test_a_benchmark_fits_on_paper(browser: Browser, request: pytest.FixtureRequest, page: str) -> None:
    browser.open(request.getfixturevalue(page), 1047)  # pixels across A4 on its side, with margins
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        wide = "[...document.querySelectorAll('table, svg')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        assert browser.js(f"{wide}.map(e => e.className)") == []
        assert browser.js("document.querySelectorAll('#gains .forest').length") > 2
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("width", [400, 1400])
def test_result_and_first_answer_are_in_the_first_screen(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, width: int
) -> None:
    said = [Answer("before", "= 2 " * 200, 0.0), Answer("after", "= 3", 1.0)]
    page = run(prompts=[], answers=[ShownAnswers("1 + 2 " * 100, said, 1.0)] * 3)
    browser.open(write_report(tmp_path_factory.mktemp("report") / "run.html", page).as_uri(), width)
    for place in ("'.result'", "'.said figcaption'"):
        box = browser.js(f"(r => [r.top, r.bottom])(document.querySelector({place}).getBoundingClientRect())")
        assert 0 <= box[0] < box[1] <= 900
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_many_rows_open_without_errors_or_sideways_scrolling(
    browser: Browser, many_url: str, width: int, dark: bool
) -> None:
    browser.open(many_url, width, dark)
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.seen("Runtime.exceptionThrown") == [] and browser.seen("Log.entryAdded") == []
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
