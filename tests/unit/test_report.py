"""The HTML report: complete, self-contained, safe with odd text, and within its size."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_example import AUDITOR, FRAMES, HELD_OUT, LEVELS, PROMPTS, bench, grey, run, svgs
from rich.console import Console

from vidalign.errors import UserError
from vidalign.report import (
    Chart,
    EvaluationRow,
    Metric,
    Pair,
    Pane,
    Report,
    Row,
    Score,
    ShownPrompt,
    Table,
    Trace,
    render,
    sprites,
    write_report,
)
from vidalign.report.page import format_number
from vidalign.report.table import evaluation_table


class Page(HTMLParser):
    """Visible text, and everything that a browser would fetch."""

    FETCHING = {"src", "srcset", "href", "data", "poster", "action", "background"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.fetched, self.scripts, self.styles, self.tag = "", [], [], "", ""
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tag = tag
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in self.FETCHING]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""

    def handle_data(self, data: str) -> None:
        if self.tag == "script":
            self.scripts[-1] += data
        elif self.tag == "style":
            self.styles += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(run()))


@pytest.fixture(scope="module")
def board() -> Page:
    return Page(render(bench()))


def table(html: str, start: str) -> list[list[str]]:
    """Texts of the cells of the first table after `start`."""
    part = html[html.index(start) :]
    part = part[: part.index("</table>")]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", part, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


def test_the_page_of_one_run_holds_every_prompt_number_and_text(page: Page) -> None:
    text = " ".join(page.text.split())
    for part in [
        *PROMPTS,
        "Astrolabe & co",
        "A summary.",
        "abc123",
        "composite",
        "+0.200",
        "+0.100 .. +0.300",
        "0.998",
        "zero_gradient",
        "look at the advantages",
        "name: astrolabe",
        "2.13.0",
        "lower is better",
        "vidalign train world/astrolabe",
    ]:
        assert part in text, part


def test_the_leaderboard_is_sorted_and_says_what_beats_the_base() -> None:
    head, *rows = table(render(bench()), '<table id="board"')
    assert head[:2] == ["Row", f"composite {AUDITOR}"] and head[-1] == "seconds cost lower is better"
    assert [row[0].split()[0] for row in rows] == ["ground", "astrolabe", "sft", "base", "adversary"]
    told = {row[0].split()[0]: row[1] for row in rows}
    assert told["astrolabe"] == "▲ better 0.710 0.680 .. 0.740"
    assert told["sft"] == "• unclear 0.620 0.590 .. 0.650"  # 0.07 with an interval of 0.08 on both sides
    assert told["adversary"] == "▼ worse 0.400 0.370 .. 0.430"
    assert told["base"] == "0.550 0.520 .. 0.580"
    assert {row[0].split()[0]: row[-1] for row in rows}["base"] == "-"  # was not trained


def test_the_first_pair_has_its_table_and_the_others_their_numbers() -> None:
    html = render(bench())
    head, judge, row, *_ = table(html, '<section id="pairs"')
    assert head[1:4] == ["base", "sft", "Difference 95 % interval"] and judge == [AUDITOR]
    assert row[:3] == ["composite", "0.550", "0.620"] and row[-1] == "• unclear"
    assert row[3] == "+0.070 -0.010 .. +0.150 detectable 0.100"
    found = re.search(r'id="pair-data">(.*?)</script>', html)
    assert found
    data = json.loads(found[1])
    assert [pair[:2] for pair in data["pairs"]] == [
        ["base", "sft"],
        ["base", "astrolabe"],
        ["base", "adversary"],
        ["sft", "astrolabe"],
    ]
    assert data["rows"]["adversary"] == ["0.400", "0.400", "0.900"]
    assert data["pairs"][2][3][0] == ["-0.150", "-0.230", "-0.070", "0.100", "worse", ""]
    assert data["pairs"][2][2] == pytest.approx(1.04 * 1.04 * 0.46 - 0.04 * 0.46, rel=0.1)  # the largest end and margin
    assert 'id="pair-data"' not in render(run())


def test_a_pair_without_a_metric_of_others_hides_its_line() -> None:
    short = Pair("base", "sft", [EvaluationRow("composite", 0.5, 0.6, 0.1, (0.05, 0.15), AUDITOR)])
    longer = Pair("sft", "astrolabe", [*short.metrics, EvaluationRow("law", 0.5, 0.6, 0.1, (0.05, 0.15), AUDITOR)])
    html = render(bench(pairs=[short, longer]))
    assert html.count('<tr class="metric">') == 1 and html.count('<tr class="metric" hidden>') == 1
    found = re.search(r'id="pair-data">(.*?)</script>', html)
    assert found and json.loads(found[1])["pairs"][0][3][1] == 0


def test_the_forest_of_gains_comes_first_and_says_where_rows_come_from() -> None:
    html = render(bench())
    assert (
        html.index('id="gains"') < html.index('id="h-hacking"') < html.index('id="videos"') < html.index('id="pairs"')
    )
    head, *rows = table(html, '<section id="gains"')
    assert head[0] == "Row" and head[3:] == [
        "Against its own baseline",
        "learns from",
        "paper, arXiv",
        "steps",
        "wall time",
    ]
    assert [row[0] for row in rows] == ["astrolabe", "sft", "adversary"]  # best first
    assert rows[0][2:] == [
        "▲ better +0.160 +0.080 .. +0.240",
        "sft ▲ better +0.090 +0.010 .. +0.170",
        "rewards",
        "2600.00003",
        "60",
        "3 min",
    ]
    assert rows[2][2] == "▼ worse -0.150 -0.230 .. -0.070" and rows[2][3] == ""
    assert 'id="gains"' not in render(run())
    assert 'id="gains"' not in render(bench(baseline="ground_truth"))


def test_rows_can_be_shown_by_group_or_alone() -> None:
    html = render(bench())
    assert re.findall(r'data-show="(\w+)"', html) == ["all", "none", "methods", "examples", "references"]
    groups = dict(re.findall(r'<input type="checkbox" checked value="(\w+)" data-group="(\w+)"', html))
    assert groups["adversary"] == "examples" and groups["base"] == "references" and groups["sft"] == "methods"
    only = re.search(r'<select id="only">(.*?)</select>', html)
    assert only and re.findall(r'value="(\w+)"', only[1]) == list(LEVELS)
    assert 'data-show="' not in render(run())


def test_what_was_not_measured_is_left_out_or_a_dash() -> None:
    nan = float("nan")
    rows = [
        Row("a", "objective", {HELD_OUT: Score(nan, (nan, nan), (nan,))}),
        Row("b", "objective", {HELD_OUT: Score(0.5)}),
    ]
    page = Page(html := render(bench(rows=rows, pairs=[], baseline="")))
    head, first, second = table(html, '<table id="board"')
    assert (first, second) == (["b", "0.500"], ["a", "-"])  # the unknown one last
    assert "Trained against held-out score" not in page.text  # no row has both scores
    assert table(render(bench()), "Spoiled true clips</h3>")[1] == ["blur 1 px", "0.400", "-"]


def test_health_names_cells_and_failures(board: Page) -> None:
    text = " ".join(board.text.split())
    assert "adversary, seed 1: held_out_falling the trained reward rose" in text
    assert "sft, seed 2 failed: no space left on device" in text


def test_nothing_is_fetched(page: Page, board: Page) -> None:
    for each in (page, board):
        assert all(value.startswith("data:") for value in each.fetched)
        assert not {"iframe", "object", "embed", "base"} & set(each.tags)
        assert not re.search(r"@import|url\(", each.styles)
        assert not any(re.search(r"https?://|//cdn", part) for part in [each.styles, *each.scripts, each.text])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', render(run()))
    assert policy and "default-src 'none'" in policy[1] and "http" not in policy[1]


def test_a_page_is_small() -> None:
    assert len(render(run())) < 100_000 and len(render(bench())) < 150_000
    bare = render(Report(title="empty"))
    assert len(bare) < 50_000 and "No health warnings." in bare and not svgs(bare)


def test_a_run_is_shown_once_and_in_order() -> None:
    html = render(run())
    order = [
        "+0.200 on the held-out auditor",
        "Same prompt",
        "All metrics",
        "Trained against",
        "Curves",
        "Health",
        "Recipe",
    ]
    places = [html.index(part) for part in order]
    assert places == sorted(places)
    assert 'id="board"' not in html and html.count("<td>0.500</td>") == 1
    head, judge, row, *_ = table(html, '<section id="pairs"')
    assert judge == [AUDITOR] and row[0] == "composite ground truth 0.998, gap closed 40 %" and row[-1] == "▲ better"


def test_without_script_tables_charts_and_clips_are_there() -> None:
    html = re.sub(r"<script>.*?</script>", "", render(run()), flags=re.DOTALL)
    page = Page(html)
    assert page.tags.count("img") == 4 and "canvas" not in page.tags
    for sheet in re.findall(r'<img class="sheet [^>]*>', html):
        assert 'src="data:image/png;base64,' in sheet and 'alt="' in sheet
    keyframes = re.search(r"@keyframes play-6-3 \{ (.*?) \}\n", html)
    assert keyframes and keyframes[1].count("translate(") == 6 and "translate(-33.3333%,-50.0%)" in keyframes[1]
    assert "+0.400" in page.text and "best" in page.text and len(svgs(html)) > 2


def test_texts_cannot_break_out_of_the_page() -> None:
    odd = '"></td><b>odd</b><script>alert(1)</script>{{ 7 * 7 }}'
    metric = Metric(odd, odd)
    rows = [Row(odd, "objective", {metric: Score(0.5)}, {odd: odd}, odd, {odd: odd}, odd)]
    shown = [ShownPrompt(odd, [Pane(odd, grey(0), {odd: 0.1})])]
    pairs = [Pair(odd, odd, [EvaluationRow(odd, 0.5, 0.6, 0.1, (0.05, 0.15), odd)])] * 2
    changes = {"title": odd, "rows": rows, "prompts": shown, "headline": metric, "baseline": odd, "texts": {odd: odd}}
    page = Page(render(bench(**changes, pairs=pairs)))
    data, script = page.scripts
    assert (
        json.loads(data)["pairs"][0][0] == odd
        and "<script>" not in data
        and "alert(1)" not in script
        and "49" not in page.text
    )
    assert {tag for tag in page.tags if tag in ("b", "script")} == {"b", "script"}  # <b> holds the scores of clips
    assert page.text.count(odd) > 10


def test_names_of_series_clips_and_runs_cannot_break_out_of_the_page() -> None:
    odd = '"></title></svg><script>alert(1)</script>{{ 7 * 7 }}'
    chart = Chart(odd, [Trace(odd, [0.1, 0.2], {"step": [1, 2]}), Trace(odd, [0.1, 0.2], {"step": [1, 2]})], odd, odd)
    shown = [ShownPrompt(odd, [Pane(odd, grey(0), {odd: 0.1})], odd, 0.5)]
    table = Table(odd, [odd], [(odd, [odd])], odd)
    html = render(run(result=odd, curves=[chart], constant={odd: 1.0}, prompts=shown, prompts_note=odd, cost=table))
    page = Page(html)
    assert len(page.scripts) == 1 and "49" not in page.text and "<script>alert" not in html
    assert page.text.count(odd) > 10 and len(svgs(html)) == 2
    for svg in svgs(html):
        assert not svg.findall(".//script")


def test_sprites_hold_the_exact_frames() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    ((first, second),) = sprites.fit([ShownPrompt("p", [Pane("a", grey(0)), Pane("b", noise)])])
    assert (first["frames"], second["frames"]) == (FRAMES, 12)
    assert (second["columns"], second["width"], second["height"]) == (4, 32, 32)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(second["src"].split(",")[1]))))
    assert (sheet[32:64, 32:64] == noise[5]).all()  # frame 5 = row 1, column 1


def noisy(side: int, frames: int = 24) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (frames, side, side, 3), np.uint8)


def test_large_clips_are_shrunk_until_the_page_fits(tmp_path: Path) -> None:
    shown = [ShownPrompt(f"prompt {i}", [Pane("before", noisy(300)), Pane("after", noisy(300))]) for i in range(2)]
    path = write_report(tmp_path / "sub" / "report.html", run(prompts=shown))
    assert path.stat().st_size < 10_000_000
    found = re.search(r'data-sheet="(\d+) (\d+) (\d+) (\d+)"', path.read_text())
    assert found
    frames, _, width, height = map(int, found.groups())
    assert 64 <= max(width, height) < 300 and frames == 24


def test_prompts_that_do_not_fit_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [ShownPrompt(f"prompt {i}", [Pane("before", noisy(32, 4))]) for i in range(3)]  # 12.3 kB each
    monkeypatch.setattr(sprites, "CLIP_BYTES", 30_000)
    html = render(run(prompts=shown, curves=[], hacking=None))
    assert "2 of 3 prompts fit" in html and "prompt 1" in html and "prompt 2" not in html
    monkeypatch.setattr(sprites, "CLIP_BYTES", 10_000)
    with pytest.raises(UserError, match="clips do not fit"):
        render(run(prompts=shown))


@pytest.mark.parametrize(
    ("interval", "higher", "verdict"),
    [
        ((0.1, 0.3), True, "better"),
        ((-0.3, -0.1), True, "worse"),
        ((-0.1, 0.1), True, "unclear"),
        ((0.0, 0.1), True, "unclear"),
        ((0.1, 0.3), False, "worse"),
        ((-0.3, -0.1), False, "better"),
        ((float("nan"), float("nan")), True, "unclear"),
    ],
)
def test_verdict_needs_an_interval_clear_of_zero(interval: tuple[float, float], higher: bool, verdict: str) -> None:
    assert EvaluationRow("m", 0, 0, 0, interval, higher_is_better=higher).verdict == verdict


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.5, False, "0.500"),
        (0.5, True, "+0.500"),
        (-0.05, False, "-0.050"),
        (1234.5, False, "1,234"),
        (0.00012, True, "+1.2e-04"),
        (0.0, True, "0"),
        (None, False, "-"),
        (float("nan"), False, "-"),
    ],
)
def test_format_number(value: float | None, sign: bool, text: str) -> None:
    assert format_number(value, sign) == text


def test_console_table_says_the_same_as_the_page() -> None:
    """In 80 columns, as a terminal and a file have them, nothing is cut."""
    console = Console(file=io.StringIO(), width=80)
    rows = run().pairs[0].metrics
    few = replace(rows[0], metric="text_alignment", prompts=7)
    console.print(evaluation_table([*rows, few], "held-out prompts"))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert re.search(r"composite +0\.500 +0\.700 +\+0\.200 +\+0\.100 \.\. \+0\.300 +0\.141 +better", text)
    assert "text_alignment" in text and re.search(r"too few\s+prompts", text) and "…" not in text


def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(tmp_path / "file" / "report.html", Report(title="x"))
