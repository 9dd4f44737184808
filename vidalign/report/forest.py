"""Tables with their intervals drawn: the forest of gains, the leaderboard, the paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vidalign.report.model import NAN, EvaluationRow, Metric, Pair, Report, Row, Score
from vidalign.report.svg import Scale, scale, without_outliers

START, END = 2.0, 98.0
"""Percent of a drawing where its axis begins and ends."""
Format = Callable[..., str]


def metrics_of(report: Report) -> list[Metric]:
    """The columns of the leaderboard, those of the headline's judge first, a judge's pass beside its composite."""
    metrics = list(dict.fromkeys(metric for row in report.rows for metric in row.scores))
    judges = list(dict.fromkeys(metric.judge for metric in metrics))
    if report.headline and report.headline.judge in judges:
        judges.insert(0, judges.pop(judges.index(report.headline.judge)))
    return sorted(
        metrics, key=lambda metric: (judges.index(metric.judge), metric != report.headline, _place_of(metric.name))
    )


@dataclass(frozen=True)
class Gain:
    """A trained row's differences of the headline score: to the report's baseline, and to its own where it has one."""

    row: Row
    gain: EvaluationRow
    own: EvaluationRow | None


@dataclass(frozen=True)
class Gains:
    """What the forest of gains draws, best row first."""

    lines: list[Gain]
    axis: Scale
    columns: list[str]


def gains(report: Report) -> Gains | None:
    """The forest of gains; None where no trained row was compared with the report's baseline."""
    lines = []
    for row in report.rows:
        gain = _difference(report, report.baseline, row.name)
        if gain is not None and row.kind == "objective":
            own = _difference(report, row.baseline, row.name) if row.baseline != report.baseline else None
            lines.append(Gain(row, gain, own))
    if not lines:
        return None
    lines.sort(key=lambda line: -_signed(line.gain))
    columns = dict.fromkeys(name for line in lines for name, text in line.row.columns.items() if text)
    return Gains(lines, _with_zero([line.gain for line in lines]), list(columns))


def board(report: Report) -> list[dict[str, Any]]:
    """Rows of the leaderboard, best headline first, with a cell for every metric."""
    metrics = metrics_of(report)
    verdicts = {
        (pair.after, row.group, row.metric): row.verdict
        for pair in report.pairs
        if pair.before == report.baseline
        for row in pair.metrics
    }
    axes = {metric: _spread(report.rows, metric) for metric in metrics}
    baseline = next((row.scores for row in report.rows if row.name == report.baseline), {})
    lines = []
    for row in report.rows:
        cells = [
            {
                "score": row.scores.get(metric, Score(math.nan)),
                "verdict": verdicts.get((row.name, metric.judge, metric.name), ""),
                "axis": axes[metric],
                "zero": baseline[metric].mean if metric in baseline else None,
            }
            for metric in metrics
        ]
        lines.append({"row": row, "cells": cells})
    return sorted(lines, key=lambda line: _rank(line["row"].scores.get(report.headline), report.headline))


def compared(report: Report) -> dict[str, Any]:
    """The table of paired differences: that of the first pair, or of all pairs by metric without a leaderboard."""
    if len(report.pairs) > 1 and not report.leaderboard:
        rows = [row for pair in report.pairs for row in pair.metrics]
        groups: dict[str, list[tuple[str, EvaluationRow]]] = {}
        for judge, members in _by_judge(rows, report).items():
            for name in dict.fromkeys(row.metric for row in members):
                groups[f"{judge}: {name}" if judge else name] = [
                    (pair.after, row)
                    for pair in report.pairs
                    for row in pair.metrics
                    if (row.group, row.metric) == (judge, name)
                ]
        return {"title": "All runs", "before": "before", "after": "after", "groups": groups, "axis": _centred(rows)}
    first = report.pairs[0]
    known = {(row.group, row.metric): row for row in first.metrics}
    union = {(row.group, row.metric): row for pair in report.pairs for row in pair.metrics} | known
    return {
        "title": first.title,
        "before": first.before,
        "after": first.after,
        "groups": {
            judge: [(row.metric, known.get((judge, row.metric), _nothing(row))) for row in members]
            for judge, members in _by_judge(list(union.values()), report).items()
        },
        "axis": _centred(first.metrics),
    }


def choices(report: Report, write: Format) -> dict[str, Any]:
    """All pairs for the script that fills the table of `compared`, numbers as text in the order of its rows.

    rows: name of a row -> its means; pairs: `[before, after, greatest size on the axis, rows]`, a row
    `[difference, low, high, detectable, verdict, what is to be reached]` or 0 where it was not measured.
    """
    order = [(row.group, row.metric) for members in compared(report)["groups"].values() for _, row in members]
    means: dict[str, dict[tuple[str, str], str]] = {}
    pairs = []
    for pair in report.pairs:
        known = {(row.group, row.metric): row for row in pair.metrics}
        for key, row in known.items():
            means.setdefault(pair.before, {})[key] = write(row.before)
            means.setdefault(pair.after, {})[key] = write(row.after)
        lines = [_line(known[key], write) if key in known else 0 for key in order]
        pairs.append([pair.before, pair.after, _centred(pair.metrics).high, lines])
    rows = {name: [one.get(key, "-") for key in order] for name, one in means.items()}
    return {"rows": rows, "pairs": pairs}


def goal_text(row: EvaluationRow, write: Format) -> str:
    """What is to be reached and how much of the way was covered; nothing where there is no goal."""
    if row.goal is None:
        return ""
    closed = f", gap closed {100 * row.gap_closed:.0f} %" if row.gap_closed is not None else ""
    return f"{row.goal_name} {write(row.goal)}{closed}"


def _line(row: EvaluationRow, write: Format) -> list[str]:
    low, high = (write(end, sign=True) for end in row.interval)
    detectable = write(row.detectable) if math.isfinite(row.detectable) else ""
    return [write(row.difference, sign=True), low, high, detectable, row.verdict, goal_text(row, write)]


def _nothing(row: EvaluationRow) -> EvaluationRow:
    """A metric that a pair does not have."""
    return EvaluationRow(row.metric, NAN, NAN, NAN, (NAN, NAN), row.group, higher_is_better=row.higher_is_better)


def _difference(report: Report, before: str, after: str) -> EvaluationRow | None:
    """The headline's row of a pair."""
    pair: Pair | None = next((pair for pair in report.pairs if (pair.before, pair.after) == (before, after)), None)
    if pair is None or report.headline is None:
        return None
    headline = report.headline.judge, report.headline.name
    return next((row for row in pair.metrics if (row.group, row.metric) == headline), None)


def _signed(row: EvaluationRow) -> float:
    """The difference as a gain: more is better."""
    return row.difference if row.higher_is_better else -row.difference


def _rank(score: Score | None, metric: Metric | None) -> float:
    if score is None or metric is None or not math.isfinite(score.mean):
        return math.inf
    return -score.mean if metric.higher_is_better else score.mean


def _spread(rows: Sequence[Row], metric: Metric) -> Scale:
    """An axis for the scores of all rows with their intervals."""
    scores = [(row.kind, row.scores[metric]) for row in rows if metric in row.scores]
    trained, references = (
        [[score.mean, *score.interval] for kind, score in scores if kind == wanted]
        for wanted in ("objective", "reference")
    )
    return scale(without_outliers(trained, references), START, END)


def _with_zero(rows: Sequence[EvaluationRow]) -> Scale:
    """An axis for differences with their intervals and zero."""
    return scale([0.0, *without_outliers([row.difference, *row.interval] for row in rows)], START, END, 4)


def _centred(rows: Sequence[EvaluationRow]) -> Scale:
    """An axis with zero in its middle for the differences of several metrics."""
    ends = [abs(end) for row in rows for end in (*row.interval, row.difference) if math.isfinite(end)]
    return scale([*ends, *(-end for end in ends)], START, END)


def _by_judge(rows: Sequence[EvaluationRow], report: Report) -> dict[str, list[EvaluationRow]]:
    """Judge -> its rows, judges in the order of the leaderboard, the composite of each first."""
    order = list(dict.fromkeys([*(metric.judge for metric in metrics_of(report)), *(row.group for row in rows)]))
    groups = {judge: [row for row in rows if row.group == judge] for judge in order}
    groups = {judge: sorted(members, key=lambda row: _place_of(row.metric)) for judge, members in groups.items()}
    return {judge: members for judge, members in groups.items() if members}


def _place_of(name: str) -> int:
    """The composite of a judge stands before its pass, and both before the rest."""
    return 0 if name == "composite" else 1 if name.endswith("pass") else 2


def groups_of(rows: Sequence[Row]) -> list[str]:
    """The groups of rows that can be shown alone, those of trained rows first."""
    ordered = sorted(rows, key=lambda row: row.kind != "objective")
    return list(dict.fromkeys(row.group for row in ordered if row.group))
