"""Renders a `Report` to one HTML file that needs no network.

Tables, charts (inline SVG) and clips (sheets of frames that CSS moves) are written here and work without JavaScript.
The script sorts and filters tables, chooses the axis of the charts, hides rows and plays all clips from one clock.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from vidalign.errors import UserError
from vidalign.reading import regular
from vidalign.report import charts, forest, sprites, svg
from vidalign.report.hacking import hacking_plot
from vidalign.report.model import Chart, Report

COLOURS = 8  # of objectives, in report.css; later rows take them again
GREYS = 4  # of references
ANSWERS = 24
"""Prompts whose answers a page shows."""


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
    environment.filters.update(
        number=format_number, words=svg.words, goal=partial(forest.goal_text, write=format_number)
    )
    colours = _colours(report)
    cards = _cards(report)
    references = _references(report)
    sheets = [sheet for card in cards for _, sheet in card["panes"]]
    return environment.get_template("report.html.j2").render(
        report=report,
        chips=report.leaderboard or sum(row.kind == "objective" for row in report.rows) > 1,
        groups=forest.groups_of(report.rows),
        gains=forest.gains(report) if report.leaderboard else None,
        metrics=forest.metrics_of(report),
        board=forest.board(report) if report.leaderboard else [],
        colours=colours,
        styles={row.name: svg.line_style(row.name, list(colours), references) for row in report.rows},
        pair=forest.compared(report) if report.pairs else None,
        choices=forest.choices(report, format_number) if report.leaderboard and len(report.pairs) > 1 else None,
        hacking=hacking_plot(report, colours),
        curves=_curve_groups(report, colours),
        axes=charts.axes(report.curves),
        smooth=any(charts.smoothed(trace.y)[1] > 1 for chart in report.curves for trace in chart.traces),
        drift=[(chart, svg.drawings(chart, colours, references)) for chart in report.drift],
        cards=cards,
        answers=report.answers[:ANSWERS],
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
