"""The charts of a benchmark's page: one line a row, the mean over its training seeds, in a band from the lowest to the
highest of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vidalign.bench.comparison import HELD_OUT
from vidalign.bench.report_tables import number
from vidalign.bench.results import Cell
from vidalign.bench.watched import Watched, watched
from vidalign.report import Chart, Metric, Trace, TrainingPath
from vidalign.report.model import Axis

Points = list[dict[str, float]]


def metric_of(key: str, split: str = HELD_OUT) -> Metric:
    """METRIC/NAME as a column; prompts other than the held-out ones make a judge of their own."""
    judge, _, name = key.partition("/")
    return Metric(judge if split == HELD_OUT else f"{judge}, {split}", name or judge)


def paths(cells: Sequence[Cell], keys: Watched) -> list[TrainingPath]:
    """The way of every row through the hacking plot."""
    found = []
    for row, members in _by_row(cells).items():
        curves = [[p for p in cell.curve if keys.trained in p and keys.held_out in p] for cell in members]
        if any(curves):
            trained, held_out = (_mean(curves, key) for key in (keys.trained, keys.held_out))
            found.append(TrainingPath(row, trained, held_out))
    return found


def curves(cells: Sequence[Cell], currency: str) -> list[Chart]:
    """One chart a metric, those of the held-out judge first and composites first."""
    keys = dict.fromkeys(key for cell in cells for point in cell.curve for key in point if "/" in key)
    first = watched(keys).held_out.split("/")[0]
    charts = []
    for key in sorted(keys, key=lambda key: (key.split("/")[0] != first, "composite" not in key)):
        traces = []
        for row, members in _by_row(cells).items():
            seeds = [[point for point in cell.curve if key in point] for cell in members]
            if any(seeds):
                x = _spent_along([points for points in seeds if points], currency)
                traces.append(Trace(row, _mean(seeds, key), x, row, _band(seeds, key)))
        charts.append(Chart(metric_of(key).name, traces, metric_of(key).judge))
    return charts


def drift(cells: Sequence[Cell]) -> list[Chart]:
    """One chart a score of single chunks."""
    charts = []
    for key in dict.fromkeys(key for cell in cells for key in cell.drift):
        traces = []
        for row, members in _by_row(cells).items():
            seeds = [[{key: value} for value in cell.drift[key]] for cell in members if key in cell.drift]
            if any(seeds):
                chunks: dict[Axis, list[float]] = {"chunk": list(range(1, max(map(len, seeds)) + 1))}
                traces.append(Trace(row, _mean(seeds, key), chunks, row, _band(seeds, key)))
        charts.append(Chart(key.replace("/", ": "), traces))
    return charts


def _by_row(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    return {row: [cell for cell in cells if cell.row == row] for row in dict.fromkeys(cell.row for cell in cells)}


def _at_each(seeds: Sequence[Points], key: str) -> list[list[float]]:
    """The finite values of every point, over the seeds that have it: the seeds' points are alike in their places."""
    longest = max(map(len, seeds))
    values = [[number(points[n][key]) for points in seeds if n < len(points)] for n in range(longest)]
    return [[value for value in each if math.isfinite(value)] for each in values]


def _mean(seeds: Sequence[Points], key: str) -> list[float]:
    return [sum(each) / len(each) if each else math.nan for each in _at_each(seeds, key)]


def _band(seeds: Sequence[Points], key: str) -> tuple[list[float], list[float]] | None:
    """The lowest and the highest seed at each point; None of a single seed."""
    if sum(map(bool, seeds)) < 2:
        return None
    each = _at_each(seeds, key)
    return [min(values, default=math.nan) for values in each], [max(values, default=math.nan) for values in each]


def _spent_along(seeds: Sequence[Points], currency: str) -> dict[Axis, list[float]]:
    """What a row's points can be drawn against, mean over seeds, the budget's currency first; older cells hold less."""
    points = [point for one in seeds for point in one]
    known: dict[Axis, list[float]] = {"step": _mean(seeds, "step")}
    for axis in ("forwards", "responses", "seconds"):
        if all(axis in point for point in points):
            known[axis] = _mean(seeds, axis)
    if all("reward_calls" in point for point in points):
        both = zip(_mean(seeds, "reward_calls"), _mean(seeds, "teacher_calls"), strict=True)
        known["calls"] = [rewards + teacher for rewards, teacher in both]
    known = {axis: values for axis, values in known.items() if axis in ("step", currency) or any(values)}
    return dict(sorted(known.items(), key=lambda item: item[0] != currency))
