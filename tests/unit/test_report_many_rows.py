"""A page of twenty rows: names do not overlap, collapsed rows do not flatten the axes, colours stay apart."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from report_example import many, svgs

from vidalign.report import render, svg
from vidalign.report.svg import line_style, scale, without_outliers

CSS = (Path(svg.__file__).parent / "templates" / "report.css").read_text()
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
SEEN_BY = {
    "all": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""Linear RGB as people with that sight have it (Machado, Oliveira and Fernandes 2009, table 1, severity 1)."""


def boxes(texts: list[tuple[float, float, str, str]], letter: float, height: float) -> list[tuple[float, ...]]:
    """Left, top, right, bottom of texts given by place, anchor and content."""
    found = []
    for x, y, anchor, text in texts:
        width = letter * len(text)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        found.append((left, y - height, left + width, y))
    return found


def overlapping(found: list[tuple[float, ...]]) -> int:
    return sum(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] - 0.1 and b[1] < a[3] - 0.1
        for a, b in itertools.combinations(found, 2)
    )


def test_no_name_stands_on_another() -> None:
    hacking, chart = svgs(render(many()))
    for picture, letter, height in ((hacking, 5.0, 10.0), (chart, 5.0, 10.0)):
        names = [text for text in picture.iter("text") if text.get("class") == "name"]
        assert len(names) == 20 + (picture is hacking)
        texts = [
            (float(t.get("x", 0)), float(t.get("y", 0)), t.get("text-anchor", "start"), t.text or "") for t in names
        ]
        _, _, right, bottom = map(float, picture.get("viewBox", "").split())
        found = boxes(texts, letter, height)
        assert overlapping(found) == 0
        assert all(box[0] >= 0 and box[1] >= -5 and box[2] <= right and box[3] <= bottom for box in found)


def test_collapsed_rows_do_not_flatten_the_axes_and_are_marked() -> None:
    html = render(many())
    hacking, chart = svgs(html)
    for picture in (hacking, chart):
        named = {g.get("data-row"): g for g in picture.findall("g") if g.find("text") is not None}
        texts = {row: g.find("text").text for row, g in named.items()}  # type: ignore[union-attr]
        assert {row for row, text in texts.items() if text and ("(" in text or "↓" in text)} == {"row_7", "row_18"}
    assert "row 7 ↓ 0.02" in html and "row 7 (0.03, 0.02)" in html
    ticks = [float(t.text or 0) for t in chart.findall("text[@text-anchor='end']")]
    assert min(ticks) > 0.5
    forest = {row: line for row, line in re.findall(r'<tr data-row="(row_\d+)">(.*?)</tr>', html, re.DOTALL)}
    first = {row: re.search(r"<svg.*?</svg>", line, re.DOTALL)[0] for row, line in forest.items()}  # type: ignore[index]
    assert {row for row, drawing in first.items() if "beyond" in drawing} >= {"row_7", "row_18"}


def test_outliers_are_those_beyond_tukeys_outer_fence() -> None:
    groups = [[0.1 * n, 5.0] for n in range(1, 8)]  # quartiles .25 and .55: the fences are -.65 and 1.45
    assert len(without_outliers([*groups, [1.5, 9.0]])) == 16, "the fences move with it: .275, .625"
    assert 9.0 in without_outliers([*groups, [1.6, 9.0]])
    assert 9.0 not in without_outliers([*groups, [1.7, 9.0]])  # .275 .. .625, so up to 1.675
    assert 9.0 in without_outliers([[0.1], [0.1], [0.2], [50.0, 9.0]]), "of four rows none is an outlier"
    assert 9.0 in without_outliers([[0.1]] * 6 + [[50.0, 9.0]]), "without spread there is no measure"
    assert without_outliers([[float("nan"), 1.0], [0.5]]) == [0.5]


def test_values_beyond_an_axis_stand_at_its_end() -> None:
    axis = scale([0.0, 1.0], 10, 20, margin=0)
    assert [axis.place(v) for v in (-5, 0, 0.5, 1, 7)] == [10, 10, 15, 20, 20]
    assert [axis.beyond(v) for v in (-5, 0, 0.5, 1, 7)] == [-1, 0, 0, 0, 1]


def test_rows_of_the_same_colour_differ_in_their_lines() -> None:
    order = [f"row_{n}" for n in range(20)]
    assert [line_style(row, order, frozenset()) for row in order] == [""] * 8 + ["dash"] * 8 + ["dot"] * 4
    assert line_style("base", ["base", *order], frozenset({"base"})) == "reference"
    assert line_style("row_8", ["base", *order], frozenset({"base"})) == "dash"


def lab(colour: str, sight: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of #rrggbb as seen."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(XYZ @ np.clip(sight @ linear, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("sight", SEEN_BY)
def test_colours_of_rows_stay_apart(sight: str, theme: int) -> None:
    """A distance of 20 in CIE L*a*b* is seen at a glance."""
    pairs = re.findall(r"--s\d: light-dark\((#\w{6}), (#\w{6})\)", CSS)
    assert len(pairs) == 8
    seen = [lab(pair[theme], SEEN_BY[sight]) for pair in pairs]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 20


@pytest.mark.parametrize(("theme", "ground"), [(0, "#ffffff"), (1, "#1c1f24")])
def test_colours_of_rows_are_seen_on_their_ground(theme: int, ground: str) -> None:
    """Contrast of at least 3 of what is no text (WCAG 2.2, 1.4.11); the second row of XYZ is the luminance."""

    def luminance(colour: str) -> float:
        value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(XYZ[1] @ np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4))

    assert f"--card: light-dark({'#ffffff, #1c1f24'})" in CSS
    for pair in re.findall(r"--s\d: light-dark\((#\w{6}), (#\w{6})\)", CSS):
        low, high = sorted((luminance(pair[theme]), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3, pair[theme]
