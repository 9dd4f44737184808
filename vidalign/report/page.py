"""Renders a `Report` to one HTML file that needs no network.

Tables, charts (inline SVG) and clips (sheets of frames that CSS moves) are written here and work without JavaScript.
The script sorts and filters tables, chooses the axis of the charts, hides rows and plays all clips from one clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vidalign.errors import UserError
from vidalign.reading import regular
from vidalign.report import charts, sprites, svg
from vidalign.report.hacking import hacking_plot
from vidalign.report.model import Chart, EvaluationRow, Metric, Report, Score

COLOURS = 8  # of objectives, in report.css; later rows take them again
GREYS = 4  # of references


def write_report(path: str | Path, report: Report) -> Path:
    """Write the page and return its path. Raises `UserError` where it cannot be written."""
    path = Path(path)
    html = render(report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        regular(path).write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(
            "cannot write the report",
            where=str(path),
            why=error.strerror or str(error),
            fix="free some space or choose another path; the results themselves are complete",
        ) from error
    return path


def render(report: Report) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vidalign.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, words=svg.words)
    colours = _colours(report)
    cards = _cards(report)
    sheets = [sheet for card in cards for _, sheet in card["panes"]]
    return environment.get_template("report.html.j2").render(
        report=report,
        chips=report.leaderboard or sum(row.kind == "objective" for row in report.rows) > 1,
        metrics=_metrics(report),
        board=_board(report) if report.leaderboard else [],
        colours=colours,
        pairs=_compared(report),
        hacking=hacking_plot(report, colours),
        curves=_curve_groups(report, colours),
        axes=charts.axes(report.curves),
        smooth=any(charts.smoothed(trace.y)[1] > 1 for chart in report.curves for trace in chart.traces),
        drift=[(chart, svg.drawings(chart, colours, _references(report))) for chart in report.drift],
        cards=cards,
        frames={sheet["motion"]: sprites.stops(sheet) for sheet in sheets},
    )


def format_number(value: float | None, sign: bool = False) -> str:
    """Three decimals near one, separated thousands for large ones, two digits for tiny ones; `-` for nothing."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 100:
        text = f"{value:+.3f}"
    elif 100 <= size < 1e9:
        text = f"{value:+,.0f}"
    else:
        text = f"{value:+.1e}"
    return text if sign else text.removeprefix("+")


def _colours(report: Report) -> dict[str, str]:
    """Names of CSS variables: colours for objectives, greys for references."""
    names: dict[str, str] = {}
    counts = {"objective": 0, "reference": 0}
    for row in report.rows:
        kind = counts[row.kind]
        counts[row.kind] += 1
        names[row.name] = f"--s{kind % COLOURS}" if row.kind == "objective" else f"--r{kind % GREYS}"
    return names


def _metrics(report: Report) -> list[Metric]:
    """The columns of the leaderboard, those of the headline's judge first, a judge's pass beside its composite."""
    metrics = list(dict.fromkeys(metric for row in report.rows for metric in row.scores))
    judges = list(dict.fromkeys(metric.judge for metric in metrics))
    if report.headline and report.headline.judge in judges:
        judges.insert(0, judges.pop(judges.index(report.headline.judge)))
    return sorted(
        metrics, key=lambda metric: (judges.index(metric.judge), metric != report.headline, _place_of(metric.name))
    )


def _place_of(name: str) -> int:
    """The composite of a judge stands before its pass, and both before the rest."""
    return 0 if name == "composite" else 1 if name.endswith("pass") else 2


def _board(report: Report) -> list[dict[str, Any]]:
    """Rows of the leaderboard, best headline first, with a cell for every metric."""
    metrics = _metrics(report)
    verdicts = {
        (pair.after, row.group, row.metric): row.verdict
        for pair in report.pairs
        if pair.before == report.baseline
        for row in pair.metrics
    }
    places = {metric: _spread([r.scores[metric] for r in report.rows if metric in r.scores]) for metric in metrics}
    baseline = next((row.scores for row in report.rows if row.name == report.baseline), {})
    board = []
    for row in report.rows:
        cells = [
            {
                "score": row.scores.get(metric, Score(math.nan)),
                "verdict": verdicts.get((row.name, metric.judge, metric.name), ""),
                "place": places[metric],
                "zero": baseline[metric].mean if metric in baseline else None,
            }
            for metric in metrics
        ]
        board.append({"row": row, "cells": cells})
    return sorted(board, key=lambda line: _rank(line["row"].scores.get(report.headline), report.headline))


def _rank(score: Score | None, metric: Metric | None) -> float:
    if score is None or metric is None or not math.isfinite(score.mean):
        return math.inf
    return -score.mean if metric.higher_is_better else score.mean


Place = Callable[[float], float]


def _spread(scores: Sequence[Score]) -> Place:
    """Value -> percent of the axis that holds all of the scores' intervals."""
    return _axis([end for score in scores for end in (score.mean, *score.interval)])


def _centred(rows: Sequence[EvaluationRow]) -> Place:
    """Value -> percent of an axis with zero in its middle that holds all differences."""
    ends = [abs(end) for row in rows for end in (*row.interval, row.difference)]
    return _axis([*ends, *(-end for end in ends)])


def _axis(values: Sequence[float]) -> Place:
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high - low

    def place(value: float) -> float:
        if not math.isfinite(value) or span == 0:
            return 50.0
        return round(2 + 96 * min(1.0, max(0.0, (value - low) / span)), 2)

    return place


def _compared(report: Report) -> list[dict[str, Any]]:
    """The tables of paired differences: one a pair, or one of all pairs by metric where there is no leaderboard."""
    merged = len(report.pairs) > 1 and not report.leaderboard
    if merged:
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
        return [{"title": "All runs", "before": "before", "after": "after", "groups": groups, "place": _centred(rows)}]
    return [
        {
            "title": pair.title,
            "before": pair.before,
            "after": pair.after,
            "groups": {
                judge: [(row.metric, row) for row in members]
                for judge, members in _by_judge(pair.metrics, report).items()
            },
            "place": _centred(pair.metrics),
        }
        for pair in report.pairs
    ]


def _by_judge(rows: Sequence[EvaluationRow], report: Report) -> dict[str, list[EvaluationRow]]:
    """Judge -> its rows, judges in the order of the leaderboard, the composite of each first."""
    order = list(dict.fromkeys([*(metric.judge for metric in _metrics(report)), *(row.group for row in rows)]))
    groups = {judge: [row for row in rows if row.group == judge] for judge in order}
    groups = {judge: sorted(members, key=lambda row: _place_of(row.metric)) for judge, members in groups.items()}
    return {judge: members for judge, members in groups.items() if members}


def _curve_groups(report: Report, colours: dict[str, str]) -> dict[str, list[tuple[Chart, list[svg.Drawing]]]]:
    """Title of a group -> its charts, each with its drawings."""
    groups: dict[str, list[tuple[Chart, list[svg.Drawing]]]] = {}
    for chart in report.curves:
        groups.setdefault(chart.group, []).append((chart, svg.drawings(chart, colours, _references(report))))
    return groups


def _references(report: Report) -> frozenset[str]:
    return frozenset(row.name for row in report.rows if row.kind == "reference")


def _cards(report: Report) -> list[dict[str, Any]]:
    """The prompts that fit, each with its panes and their sheets of frames."""
    return [
        {
            "prompt": shown.prompt,
            "label": shown.label,
            "change": shown.change,
            "panes": list(zip(shown.panes, sheets, strict=True)),
        }
        for shown, sheets in zip(report.prompts, sprites.fit(report.prompts), strict=False)
    ]
