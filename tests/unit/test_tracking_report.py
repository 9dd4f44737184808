"""The HTML report: complete, self-contained, safe with odd text, and within its size."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vidalign.errors import UserError
from vidalign.tracking import EvaluationRow, Health, ReportClip, ReportData, write_report
from vidalign.tracking.report import format_number, render
from vidalign.tracking.table import evaluation_table

PROMPTS = ["a red circle falls", 'odd </script><b>"bold"</b> & {{ 7 * 7 }}']


def clip(seed: int, frames: int = 12, side: int = 32) -> torch.Tensor:
    return torch.rand(frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


def example(**changes: object) -> ReportData:
    fields: dict[str, object] = dict(
        title="Astrolabe & co",
        summary="A summary.",
        facts={"Commit": "abc123"},
        evaluation=[
            EvaluationRow("composite", 0.5, 0.7, 0.2, (0.1, 0.3), group="auditor", ground_truth=0.998),
            EvaluationRow("flicker", 0.1, 0.2, 0.1, (0.05, 0.15), higher_is_better=False),
        ],
        history={
            "reward/mean": [(1, 0.1), (2, float("nan")), (3, 0.3)],
            "reward/motion/mean": [(1, 0.2)],
            "objective/loss/mean": [(step, float(step)) for step in range(5000)],
            "health/held_out": [(1, 0.5)],
        },
        clips=[ReportClip(prompt, clip(1), clip(2), {"motion": 0.25}, {"motion": 0.5}) for prompt in PROMPTS],
        warnings=[Health("zero_gradient", "the gradient norm is 0", "look at the advantages")],
        recipe="objective:\n  name: astrolabe\n",
        environment={"torch": "2.13.0"},
        commands=["vidalign train world/astrolabe"],
    )
    return ReportData(**(fields | changes))  # type: ignore[arg-type]


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
    return Page(render(example()))


def payload(page: Page) -> dict:
    return json.loads(page.scripts[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_page_holds_every_prompt_number_and_text(page: Page) -> None:
    text = " ".join(page.text.split())
    for part in [
        *PROMPTS, "Astrolabe & co", "A summary.", "abc123", "composite", "+0.200", "+0.100 .. +0.300",
        "0.998", "zero_gradient", "look at the advantages", "name: astrolabe", "2.13.0",
        "vidalign train world/astrolabe",
    ]:  # fmt: skip
        assert part in text, part


def test_nothing_is_fetched(page: Page) -> None:
    assert all(value.startswith("data:") for value in page.fetched)
    assert not {"iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"@import|url\(", page.styles)
    ours = [page.styles, page.scripts[0], page.scripts[-1], page.text]  # scripts[1] is plotly.js
    assert not any(re.search(r"https?://|//cdn", part) for part in ours)
    html = render(example())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy and "default-src 'none'" in policy[1] and "http" not in policy[1]


def test_plotly_is_inlined_once_and_only_where_there_are_curves(page: Page) -> None:
    assert len(page.scripts) == 3 and len(page.scripts[1]) > 4_000_000
    bare = render(ReportData(title="empty"))
    assert len(bare) < 40_000 and "No health warnings." in bare


def test_prompts_cannot_break_out_of_the_page(page: Page) -> None:
    assert "b" not in page.tags and "49" not in page.text


def test_sprites_hold_the_exact_frames(page: Page) -> None:
    sprites = payload(page)["sprites"]
    assert len(sprites) == 2 * len(PROMPTS)
    sprite = sprites[1]
    assert (sprite["frames"], sprite["columns"], sprite["width"], sprite["height"]) == (12, 4, 32, 32)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite["src"].split(",")[1]))))
    expected = (clip(2)[5].permute(1, 2, 0).numpy() * 255).round()
    assert (sheet[32:64, 32:64] == expected).all()  # frame 5 = row 1, column 1


def test_curves_are_thinned_keep_the_last_point_and_have_no_nan(page: Page) -> None:
    charts = {(chart["group"], chart["title"]): chart["traces"] for chart in payload(page)["charts"]}
    assert [trace["label"] for trace in charts["reward", "mean reward"]] == ["total", "motion"]
    assert charts["reward", "mean reward"][0]["y"] == [0.1, None, 0.3]
    assert charts["reward", "held-out judge"][0]["y"] == [0.5]
    loss = charts["objective", "loss/mean"][0]
    assert 400 < len(loss["x"]) <= 600 and loss["x"][-1] == 4999


def test_large_clips_are_shrunk_until_the_page_fits(tmp_path: Path) -> None:
    pairs = [ReportClip(f"prompt {i}", clip(i, 24, 300), clip(i, 24, 300)) for i in range(2)]
    path = write_report(tmp_path / "sub" / "report.html", example(clips=pairs))
    assert path.stat().st_size < 8_000_000
    sprite = payload(Page(path.read_text()))["sprites"][0]
    assert 64 <= max(sprite["width"], sprite["height"]) < 300 and sprite["frames"] == 24


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
def test_verdict_needs_an_interval_clear_of_zero(
    interval: tuple[float, float], higher: bool, verdict: str
) -> None:
    assert EvaluationRow("m", 0, 0, 0, interval, higher_is_better=higher).verdict == verdict


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (0.5, False, "0.500"),
        (0.5, True, "+0.500"),
        (-0.05, False, "-0.050"),
        (1234.5, False, "1.23e+03"),
        (0.00012, True, "+0.00012"),
        (0.0, True, "+0.000"),
        (None, False, "-"),
        (float("nan"), False, "-"),
    ],
)
def test_format_number(value: float | None, sign: bool, text: str) -> None:
    assert format_number(value, sign) == text


def test_console_table_tells_the_same_as_the_page() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation_table(example().evaluation, "held-out prompts"))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if "composite" in line)
    assert [cell.strip() for cell in re.split("[│|]", row)[1:-1]] == [
        "composite", "0.500", "0.700", "+0.200", "+0.100 .. +0.300", "better",
    ]  # fmt: skip


def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(tmp_path / "file" / "report.html", ReportData(title="x"))
