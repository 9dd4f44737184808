"""The hacking plot, trained against held-out score of every row, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidalign.report.model import NAN, Metric, Report, Row, Score
from vidalign.report.svg import Place, Scale, dots, path, scale, words

WIDTH, HEIGHT = 440.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 16.0, 14.0, 38.0
LETTER, LINE = 6.0, 12.0
"""About the width of a letter and the height of a line, to keep labels apart."""


@dataclass(frozen=True)
class Mark:
    """The point of one row, its intervals and seeds, and its name beside it."""

    row: str
    colour: str
    hollow: bool
    x: float
    y: float
    bars: str
    seeds: str
    label_x: float
    label_y: float
    anchor: str
    title: str


@dataclass(frozen=True)
class HackingPlot:
    """Everything that is drawn."""

    x_title: str
    y_title: str
    x: Scale
    y: Scale
    marks: list[Mark]
    paths: list[tuple[str, str, str]]
    """Row, colour and line of each way through training."""
    front: str
    """Through the rows that no other row beats in both scores."""
    start: tuple[float, float] | None
    """Where the baseline stands."""
    text: str


def hacking_plot(report: Report, colours: Mapping[str, str]) -> HackingPlot | None:
    """The plot of a report; None where it has none, or no row has both scores."""
    plot = report.hacking
    if plot is None:
        return None
    points = [(row, _score(row, plot.trained), _score(row, plot.held_out)) for row in report.rows]
    points = [(row, x, y) for row, x, y in points if math.isfinite(x.mean) and math.isfinite(y.mean)]
    if not points:
        return None
    walked = [one for one in plot.paths if one.row in colours]
    x = scale(
        [v for _, s, _ in points for v in _ends(s)] + [v for one in walked for v in one.trained], LEFT, WIDTH - RIGHT
    )
    y = scale(
        [v for _, _, s in points for v in _ends(s)] + [v for one in walked for v in one.held_out], HEIGHT - BOTTOM, TOP
    )
    titles = axis_title(plot.trained), axis_title(plot.held_out)
    marks = _marks(points, x.place, y.place, colours)
    start = next(((m.x, m.y) for m in marks if m.row == report.baseline), None)
    return HackingPlot(
        *titles,
        x,
        y,
        marks,
        [(one.row, colours[one.row], path(one.trained, one.held_out, x.place, y.place)) for one in walked],
        _front([(s.mean, t.mean) for row, s, t in points if row.kind == "objective"], x.place, y.place),
        start,
        f"{titles[1]} against {titles[0]}. " + "; ".join(mark.title for mark in marks) + ".",
    )


def axis_title(metric: Metric) -> str:
    """e.g. `held-out auditor: composite`."""
    return words(f"{metric.judge}: {metric.name}")


def _score(row: Row, metric: Metric) -> Score:
    return row.scores.get(metric, Score(NAN))


def _ends(score: Score) -> list[float]:
    return [score.mean, *score.interval, *score.seeds]


def _marks(points: Sequence[tuple[Row, Score, Score]], x: Place, y: Place, colours: Mapping[str, str]) -> list[Mark]:
    """The points from top to bottom, each name at the first of four sides where it hides no other name or point."""
    taken = [(x(s.mean) - 6, y(t.mean) - 6, x(s.mean) + 6, y(t.mean) + 6) for _, s, t in points]
    marks = []
    for row, trained, held_out in sorted(points, key=lambda point: -point[2].mean):
        at = x(trained.mean), y(held_out.mean)
        label_x, label_y, anchor, box = _label(words(row.name), *at, taken)
        taken.append(box)
        pairs = list(zip(trained.seeds, held_out.seeds, strict=False)) if len(trained.seeds) > 1 else []
        marks.append(
            Mark(
                row.name,
                colours[row.name],
                row.kind == "reference",
                *at,
                _bars(trained, held_out, x, y),
                dots([a for a, _ in pairs], [b for _, b in pairs], x, y),
                label_x,
                label_y,
                anchor,
                f"{words(row.name)}: trained {trained.mean:.3f}, held out {held_out.mean:.3f}",
            )
        )
    return marks


Box = tuple[float, float, float, float]


def _label(name: str, x: float, y: float, taken: Sequence[Box]) -> tuple[float, float, str, Box]:
    """Place, anchor and box of a name."""
    width = LETTER * len(name)
    sides = [(x, y - 10, "middle"), (x, y + 18, "middle"), (x + 10, y + 4, "start"), (x - 10, y + 4, "end")]
    boxes = []
    for at, base, anchor in sides:
        left = at - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
        shift = min(0.0, WIDTH - 2 - left - width) - min(0.0, left - LEFT)
        boxes.append((at + shift, base, anchor, (left + shift, base - LINE, left + shift + width, base)))
    free = (one for one in boxes if not any(_overlap(one[3], other) for other in taken))
    return next(free, boxes[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _bars(trained: Score, held_out: Score, x: Place, y: Place) -> str:
    """The 95 % intervals of both scores, where there are any."""
    (left, right), (low, high) = trained.interval, held_out.interval
    across = path([left, right], [held_out.mean] * 2, x, y) if left <= right else ""
    return across + (path([trained.mean] * 2, [low, high], x, y) if low <= high else "")


def _front(points: Sequence[tuple[float, float]], x: Place, y: Place) -> str:
    best, front = -math.inf, []
    for trained, held_out in sorted(points, reverse=True):
        if held_out > best:
            best = held_out
            front.append((trained, held_out))
    return path([a for a, _ in front], [b for _, b in front], x, y) if len(front) > 1 else ""
