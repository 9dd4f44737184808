"""A run's history sorted into charts: what does not move is listed, long curves are thinned, raw points smoothed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from vidalign.report.explanations import explain
from vidalign.report.model import Axis, Chart, Trace
from vidalign.tracking.jsonl import History

MAX_POINTS = 300  # a longer curve is thinned to about this many points
SMOOTHED_FROM = 10  # points from which on a curve is smoothed
ROUNDING = 1e-5
"""Relative range within which a series is rounding noise: about a hundred units in the last place of float32."""
NOISE = 1e-6
"""Size below which scores, losses and differences are rounding noise around zero."""
CHART_ORDER = {"mean reward": 0, "held-out judge": 1, "standard deviation within groups": 2}
GROUP_TITLES = {"reward": "Rewards", "objective": "Objective", "health": "Health", "perf": "Time and memory"}
STEP_SECONDS = "perf/step/seconds"
AXES: dict[Axis, str] = {
    "step": "step",
    "forwards": "student forwards",
    "calls": "reward and teacher calls",
    "responses": "responses",
    "seconds": "seconds",
    "chunk": "chunk",
}


def history_charts(history: History, row: str = "") -> tuple[list[Chart], dict[str, float]]:
    """The charts of a run, and the last value of every series that has none because it did not move.

    Mean rewards share one chart, their group stds another; every other metric has its own. Groups stand in the order
    of GROUP_TITLES. Where the seconds of every step were logged, so is their sum an axis. row: whose colour the lines
    have.
    """
    families: dict[tuple[str, str], list[tuple[str, str]]] = {}
    constant: dict[str, float] = {}
    for name in sorted(history):
        group = name.partition("/")[0]
        if group not in GROUP_TITLES:
            continue
        values = [value for _, value in history[name]]
        if is_constant(values, 0.0 if group == "perf" else NOISE):  # a learning rate may be that small
            constant[name] = values[-1]
            continue
        group, title, label = _place(name)
        families.setdefault((group, title), []).append((name, label))
    clock, order = _clock(history), list(GROUP_TITLES)
    known = sorted(families, key=lambda family: (order.index(family[0]), CHART_ORDER.get(family[1], 9)))
    charts = [
        Chart(
            title,
            [_history_trace(label, history[name], clock, row) for name, label in families[group, title]],
            GROUP_TITLES[group],
            explain(families[group, title][0][0]),
        )
        for group, title in known
    ]
    return charts, constant


def is_constant(values: Sequence[float], noise: float = NOISE) -> bool:
    """Whether a series has less than two finite values, or moves by no more than rounding does.

    noise: size below which all of it is rounding noise around zero.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return True
    low, high = min(finite), max(finite)
    size = max(abs(low), abs(high))
    return high - low <= ROUNDING * size or size < noise


def smoothed(values: Sequence[float]) -> tuple[list[float], int]:
    """The moving average of a curve, as long as it, and over about how many points; the curve itself where it is short.

    Exponential with weight ``1 - 1 / n`` for the past, ``n`` a tenth of the points, and divided by the sum of its
    weights, so that the first values are no shorter averages pulled to zero. Values that are not finite are skipped.
    """
    count = round(len(values) / 10)
    if len(values) < SMOOTHED_FROM or count < 2:
        return list(values), 1
    keep = 1 - 1 / count
    total, weight, out = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight if weight else math.nan)
    return out, count


def thinned(values: Sequence[float]) -> list[float]:
    """At most about MAX_POINTS of them, evenly, with the last one."""
    stride = max(1, len(values) // MAX_POINTS)
    return list(values[::-stride][::-1])


def axes(charts: Sequence[Chart]) -> dict[Axis, str]:
    """Axes that some trace of the charts has, in their order, with their labels; the first is shown."""
    return {axis: AXES[axis] for chart in charts for trace in chart.traces for axis in trace.x}


def _place(name: str) -> tuple[str, str, str]:
    """Group, title of the chart and label in it."""
    group, _, rest = name.partition("/")
    if group == "reward" and "group_std" in name:
        stem = rest.removesuffix("/mean").replace("group_std", "").strip("/")
        return group, "standard deviation within groups", stem or "total"
    if group == "reward" and (rest == "mean" or rest.endswith("/mean")):
        return group, "mean reward", rest.removesuffix("mean").strip("/") or "total"
    if name.startswith("health/held_out"):  # beside the trained reward, to show hacking
        trained = rest.startswith("held_out_trained")
        return "reward", "held-out judge", "trained rewards" if trained else "held-out judge"
    title = rest.removesuffix("/mean")
    return group, title, title


def _clock(history: History) -> dict[int, float]:
    """Training seconds until each step."""
    points = history.get(STEP_SECONDS, [])
    return dict(zip([step for step, _ in points], itertools.accumulate(value for _, value in points), strict=True))


def _history_trace(label: str, points: list[tuple[int, float]], clock: dict[int, float], row: str) -> Trace:
    x: dict[Axis, list[float]] = {"step": [step for step, _ in points]}
    if all(step in clock for step, _ in points):
        x["seconds"] = [clock[step] for step, _ in points]
    return Trace(label, [value for _, value in points], x, row)
