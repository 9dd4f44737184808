"""The charts of a page: what is drawn, where it stands, what is left out, and what each says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_example import HISTORY, LEVELS, bench, points, run, svgs

from vidalign.report import render
from vidalign.report.charts import GROUP_TITLES, history_charts, is_constant, smoothed
from vidalign.report.explanations import explain


def test_charts_of_a_benchmark_have_all_axes_and_colours_by_row() -> None:
    hacking, *lines = svgs(render(bench()))
    assert [svg.get("data-axis") for svg in lines] == ["step", "forwards", "seconds"] * 2 + ["chunk"]
    colours = {}
    for mark in hacking.findall("g"):
        colours[mark.get("data-row")] = mark.get("style")
        name = mark.find("text")
        assert name is not None and name.text == str(mark.get("data-row")).replace("_", " ")
    assert set(colours) == set(LEVELS) and len(set(colours.values())) == len(LEVELS)
    assert len(hacking.findall("path[@class='way']")) == 3
    for svg in lines[:6]:
        rows = [(line.get("data-row"), line.get("style")) for line in svg.findall("g")]
        assert [row for row, _ in rows] == ["sft", "astrolabe", "adversary"]
        assert all(colours[row] == colour for row, colour in rows)
        assert all(line.find("path[@class='band']") is not None for line in svg.findall("g"))
    assert [line.get("data-row") for line in lines[-1].findall("g")] == list(LEVELS)


def test_points_stand_where_their_axes_say() -> None:
    svg = svgs(render(bench()))[1]
    ticks = [(float(t.get("y", 0)) - 4, float(t.text or "nan")) for t in svg.findall("text[@text-anchor='end']")]
    (y0, v0), (y1, v1) = ticks[0], ticks[-1]
    astrolabe = svg.findall("g")[1]  # held out, the middle one of three seeds
    line, band = (points(astrolabe.find(f"path[@class='{kind}']")) for kind in ("line ", "band"))  # type: ignore[arg-type]
    expected = [0.56 + (0.71 - 0.55) * part**0.5 for part in (0.0, 0.3, 0.6, 0.8, 1.0)]
    below, above = band[:5], band[:4:-1]
    for corners, shift in ((below, -0.01), (above, 0.01)):
        values = [v0 + (y - y0) / (y1 - y0) * (v1 - v0) for _, y in corners]
        assert values == pytest.approx([value + shift for value in expected], abs=1e-3)
    assert [v0 + (y - y0) / (y1 - y0) * (v1 - v0) for _, y in line] == pytest.approx(expected, abs=1e-3)
    across = [(float(t.get("x", 0)), float(t.text or "nan")) for t in svg.findall("text[@text-anchor='middle']")[:-1]]
    (x0, u0), (x1, u1) = across[0], across[-1]
    assert [u0 + (x - x0) / (x1 - x0) * (u1 - u0) for x, _ in line] == pytest.approx([0, 18, 36, 48, 60], abs=0.2)


def test_charts_say_in_words_what_they_show() -> None:
    for html in (render(run()), render(bench())):
        for svg in svgs(html):
            assert svg.get("role") == "img" and len(svg.get("aria-label", "")) > 20
            assert all((line.find("title") is not None) for line in svg.findall("g"))
    hacking = svgs(render(run()))[0]
    assert "after: trained 0.700, held out 0.700" in hacking.get("aria-label", "")
    labels = [svg.get("aria-label", "") for svg in svgs(render(run()))]
    assert any("total: 0.1 at step 1, 0.3 at 3" in label for label in labels)


def test_series_that_do_not_move_have_no_chart() -> None:
    charts, constant = history_charts(HISTORY)
    assert constant == {
        "health/held_out/mean": 0.5,
        "health/skipped_updates": 0.0,
        "objective/alpha_0.60/mean": 0.5000001,
    }
    assert {chart.title for chart in charts} == {"mean reward", "loss", "step/seconds"}
    assert "<dt>health/skipped updates</dt><dd>0</dd>" in render(run())


@pytest.mark.parametrize(
    ("values", "still"),
    [
        ([0.5, 0.4999999, 0.5000001], True),
        ([1e-8, -2e-8, 3e-9], True),
        ([0.0, 0.0], True),
        ([0.3], True),
        ([float("nan"), 0.3], True),
        ([0.0, 3e-5], False),  # a divergence that begins
        ([2e-8, 9e-7], True),  # a difference between two computations of the same
        ([1.0, 1.001], False),
        ([-0.1, 0.1], False),
    ],
)
def test_what_is_rounding_noise(values: list[float], still: bool) -> None:
    assert is_constant(values) == still


def test_a_small_learning_rate_has_a_chart() -> None:
    charts, constant = history_charts({"perf/learning_rate": [(1, 2e-8), (2, 1e-8)]})
    assert [chart.title for chart in charts] == ["learning_rate"] and not constant


def test_smoothing_is_a_weighted_mean_of_the_past() -> None:
    values = np.random.default_rng(0).normal(size=57)
    average, count = smoothed([*values[:20], float("nan"), *values[20:]])
    assert count == 6
    weights = (1 - 1 / 6) ** np.arange(57)[::-1]
    assert average[-1] == pytest.approx(float(weights @ values / weights.sum()))
    assert average[0] == values[0] and average[20] == average[19]
    assert smoothed([1.0, 2.0]) == ([1.0, 2.0], 1)
    assert smoothed([4.0] * 50)[0] == pytest.approx([4.0] * 50)


def test_every_series_of_a_shipped_recipe_is_explained() -> None:
    folder = Path(__file__).parents[1] / "golden" / "trajectories"
    steps = [json.loads(file.read_text())["step 1"] for file in folder.rglob("*.json")]
    names = {name for step in steps for name in step if name.split("/")[0] in GROUP_TITLES}
    assert len(names) > 50
    assert sorted(name for name in names if not explain(name)) == []


def test_curves_are_thinned_keep_the_last_point_and_skip_what_is_not_finite() -> None:
    html = render(run())
    assert not re.search(r"nan|Infinity", "".join(re.findall(r' d="([^"]*)"', html)))
    charts = {
        svg.get("aria-label", "").split(" against")[0]: svg for svg in svgs(html) if svg.get("data-axis") == "step"
    }
    total, motion = charts["mean reward"].findall("g")
    dots, line = total.findall("path")
    assert dots.get("d", "").count("h0") == 2 and line.get("d", "").count("M") == 2  # a gap where it was NaN
    (loss,) = charts["loss"].findall("g")
    assert 250 < len(points(loss.findall("path")[-1])) <= 320 and "4999 at 4999" in charts["loss"].get("aria-label", "")
