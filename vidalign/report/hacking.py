"""The hacking plot, trained against held-out score of every row, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidalign.report.model import NAN, Metric, Report, Row, Score
from vidalign.report.svg import Place, Scale, dots, line_style, path, scale, without_outliers, words

WIDTH, HEIGHT = 440.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 16.0, 14.0, 38.0
FEW = 8
"""Rows up to which the plot has its least size."""
LETTER, LINE = 6.0, 12.0
"""About the width of a letter and the height of a line, to keep labels apart."""
NEAR = 18.0
"""Distance from which on a line joins a point and its name."""


@dataclass(frozen=True)
class Mark:
    """The point of one row, its intervals and seeds, and its name beside it."""

    row: str
    colour: str
    shape: str
    """`reference`, or how its lines are drawn: rows of the same colour differ in it."""
    x: float
    y: float
    bars: str
    seeds: str
    label: str
    label_x: float
    label_y: float
    anchor: str
    lead: str
    """The line from the point to a name that stands further away."""
    title: str


@dataclass(frozen=True)
class HackingPlot:
    """Everything that is drawn."""

    width: float
    height: float
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
    many = max(1.0, min(2.0, len(points) / FEW)) ** 0.75
    width, height = round(WIDTH * many), round(HEIGHT * many)
    ways = {row: [one for one in walked if one.row == row] for row in colours}
    across = [(row.kind, [*_ends(s), *(v for way in ways[row.name] for v in way.trained)]) for row, s, _ in points]
    up = [(row.kind, [*_ends(s), *(v for way in ways[row.name] for v in way.held_out)]) for row, _, s in points]
    x = scale(_kept(across), LEFT, width - RIGHT)
    y = scale(_kept(up), height - BOTTOM, TOP)
    titles = axis_title(plot.trained), axis_title(plot.held_out)
    references = frozenset(row.name for row in report.rows if row.kind == "reference")
    shapes = {row: line_style(row, list(colours), references) for row in colours}
    marks = _marks(points, x, y, colours, shapes)
    start = next(((m.x, m.y) for m in marks if m.row == report.baseline), None)
    return HackingPlot(
        width,
        height,
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


def _kept(groups: Sequence[tuple[str, list[float]]]) -> list[float]:
    """What an axis holds: all references, and the trained rows but outliers."""
    references = [values for kind, values in groups if kind == "reference"]
    return without_outliers([values for kind, values in groups if kind != "reference"], references)


def _score(row: Row, metric: Metric) -> Score:
    return row.scores.get(metric, Score(NAN))


def _ends(score: Score) -> list[float]:
    return [score.mean, *score.interval, *score.seeds]


def _marks(
    points: Sequence[tuple[Row, Score, Score]],
    x: Scale,
    y: Scale,
    colours: Mapping[str, str],
    shapes: Mapping[str, str],
) -> list[Mark]:
    """The points from top to bottom, each name at the nearest place where it hides no other name or point."""
    spots = [(x.place(s.mean), y.place(t.mean)) for _, s, t in points]
    taken = [(at - 6, up - 6, at + 6, up + 6) for at, up in spots]
    marks = []
    for row, trained, held_out in sorted(points, key=lambda point: -point[2].mean):
        at = x.place(trained.mean), y.place(held_out.mean)
        beyond = x.beyond(trained.mean) or y.beyond(held_out.mean)
        label = words(row.name) + (f" ({trained.mean:.2f}, {held_out.mean:.2f})" if beyond else "")
        label_x, label_y, anchor, box = _label(label, *at, taken, (x.end, y.start))
        taken.append(box)
        pairs = list(zip(trained.seeds, held_out.seeds, strict=False)) if len(trained.seeds) > 1 else []
        marks.append(
            Mark(
                row.name,
                colours[row.name],
                shapes[row.name],
                *at,
                _bars(trained, held_out, x.place, y.place),
                dots([a for a, _ in pairs], [b for _, b in pairs], x.place, y.place),
                label,
                label_x,
                label_y,
                anchor,
                _lead(at, box),
                f"{words(row.name)}: trained {trained.mean:.3f}, held out {held_out.mean:.3f}"
                + (", beyond the axes" if beyond else ""),
            )
        )
    return marks


Box = tuple[float, float, float, float]


def _label(
    name: str, x: float, y: float, taken: Sequence[Box], ends: tuple[float, float]
) -> tuple[float, float, str, Box]:
    """Place, anchor and box of a name; ends: right and lower end of the axes."""
    width = LETTER * len(name)
    boxes = []
    for far in (0.0, 12.0, 26.0, 42.0, 60.0, 80.0, 105.0, 135.0, 170.0, 210.0):
        slope = 0.7 * far
        sides = [(x, y - 10 - far, "middle"), (x, y + 18 + far, "middle")]
        sides += [(x + 10 + far, y + 4, "start"), (x - 10 - far, y + 4, "end")]
        sides += [(x + 8 + slope, y + 4 + way * (4 + slope), "start") for way in (-1, 1) if far]
        sides += [(x - 8 - slope, y + 4 + way * (4 + slope), "end") for way in (-1, 1) if far]
        for at, base, anchor in sides:
            left = at - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
            shift = min(0.0, ends[0] + RIGHT - 2 - left - width) - min(0.0, left - LEFT)
            box = (left + shift, base - LINE, left + shift + width, base)
            boxes.append((round(at + shift, 1), round(base, 1), anchor, box))
    inside = [one for one in boxes if one[3][1] >= TOP - 4 and one[3][3] <= ends[1]]
    free = (one for one in inside if not any(_overlap(one[3], other) for other in taken))
    return next(free, boxes[0])


def _lead(at: tuple[float, float], box: Box) -> str:
    """From a point to the nearest place of the box of its name, where that is far."""
    x, y = min(max(at[0], box[0]), box[2]), min(max(at[1], box[1] + 3), box[3])
    far = math.hypot(x - at[0], y - at[1])
    return f"M{at[0]:g} {at[1]:g}L{x:.1f} {y:.1f}" if far > NEAR else ""


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
