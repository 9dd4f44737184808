"""Charts of the page: a run's history sorted into charts, and all charts as plain data for the script."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from vidalign.report.model import NAN, Axis, Chart, Metric, Report, Row, Score, Trace
from vidalign.tracking.jsonl import History

MAX_POINTS = 500  # a longer curve is thinned to about this many points
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


def history_charts(history: History) -> list[Chart]:
    """Mean rewards share one chart, their group stds another; every other metric has its own.

    Groups stand in the order of GROUP_TITLES. Where the seconds of every step were logged, so is their sum an axis.
    """
    families: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name in sorted(history):
        group, _, rest = name.partition("/")
        title, label = rest, rest
        if group == "reward" and "group_std" in name:
            stem = rest.removesuffix("/mean").replace("group_std", "").strip("/")
            title, label = "standard deviation within groups", stem or "total"
        elif group == "reward" and (rest == "mean" or rest.endswith("/mean")):
            title, label = "mean reward", rest.removesuffix("mean").strip("/") or "total"
        elif name.startswith("health/held_out"):
            group, title = "reward", "held-out judge"  # beside the trained reward, to show hacking
        families.setdefault((group, title), []).append((name, label))
    clock = _clock(history)
    order = list(GROUP_TITLES)
    known = sorted(
        (family for family in families if family[0] in order),
        key=lambda family: (order.index(family[0]), CHART_ORDER.get(family[1], 9)),
    )
    return [
        Chart(
            title,
            [_history_trace(label, history[name], clock) for name, label in families[group, title]],
            GROUP_TITLES[group],
        )
        for group, title in known
    ]


def _clock(history: History) -> dict[int, float]:
    """Training seconds until each step."""
    points = history.get(STEP_SECONDS, [])
    return dict(zip([step for step, _ in points], itertools.accumulate(value for _, value in points), strict=True))


def _history_trace(label: str, points: list[tuple[int, float]], clock: dict[int, float]) -> Trace:
    x: dict[Axis, list[float]] = {"step": [step for step, _ in points]}
    if all(step in clock for step, _ in points):
        x["seconds"] = [clock[step] for step, _ in points]
    return Trace(label, [value for _, value in points], x)


def payload(report: Report) -> list[dict[str, Any]]:
    """All charts in the order of the page: hacking plot, curves, drift; non-finite numbers are null."""
    indices = {row.name: index for index, row in enumerate(report.rows)}
    charts = [_hacking(report, indices)] if report.hacking else []
    charts += [_lines("curve", chart, indices) for chart in report.curves]
    return charts + [_lines("drift", chart, indices) for chart in report.drift]


def axes(charts: Sequence[Chart]) -> dict[Axis, str]:
    """Axes that some trace of the charts has, in their order, with their labels; the first is shown."""
    return {axis: AXES[axis] for chart in charts for trace in chart.traces for axis in trace.x}


def _lines(kind: str, chart: Chart, indices: dict[str, int]) -> dict[str, Any]:
    traces = []
    for trace in chart.traces:
        stride = max(1, len(trace.y) // MAX_POINTS)
        x = {axis: _thin(values, stride) for axis, values in trace.x.items()}
        row = indices.get(trace.row, -1)
        traces.append({"label": trace.label, "row": row, "x": x, "y": _thin(trace.y, stride)})
    return {"kind": kind, "title": chart.title, "traces": traces}


def _thin(values: Sequence[float], stride: int) -> list[float | None]:
    return _plain(values[::-stride][::-1])  # from the back, so that the last point stays


def _plain(values: Iterable[float]) -> list[float | None]:
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _hacking(report: Report, indices: dict[str, int]) -> dict[str, Any]:
    plot = report.hacking
    assert plot is not None, "called only when there is one"
    points = [
        {"row": index, "x": _point(row, plot.trained), "y": _point(row, plot.held_out)}
        for index, row in enumerate(report.rows)
    ]
    paths = [
        {"row": indices[path.row], "x": _plain(path.trained), "y": _plain(path.held_out)}
        for path in plot.paths
        if path.row in indices
    ]
    return {
        "kind": "hacking",
        "title": "Trained against held-out score",
        "x_title": axis_title(plot.trained),
        "y_title": axis_title(plot.held_out),
        "baseline": indices.get(report.baseline, -1),
        "points": points,
        "paths": paths,
    }


def axis_title(metric: Metric) -> str:
    """e.g. `held-out auditor: composite`."""
    return f"{metric.judge}: {metric.name}".replace("_", " ")


def _point(row: Row, metric: Metric) -> dict[str, Any]:
    score = row.scores.get(metric, Score(NAN))
    mean, low, high = _plain([score.mean, *score.interval])
    return {"mean": mean, "low": low, "high": high, "seeds": _plain(score.seeds)}
