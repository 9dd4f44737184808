"""Charts as inline SVG, made when the page is written: geometry here, elements in `templates/charts.html.j2`.

Colours are CSS variables of the page, so a theme needs no new picture. Lengths are units of the view box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vidalign.report.charts import AXES, smoothed, thinned
from vidalign.report.model import Axis, Chart, Trace

WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 8.0, 36.0
SERIES = 8  # colours of report.css

Place = Callable[[float], float]


@dataclass(frozen=True)
class Scale:
    """Values of an axis -> units of the view box, and the ticks on it."""

    place: Place
    ticks: list[tuple[float, str]]
    """Where each stands, and its text."""


@dataclass(frozen=True)
class Drawn:
    """One line: `path` through its (smoothed) values, `dots` at the raw ones where both are shown."""

    label: str
    row: str
    colour: str
    style: str
    path: str
    dots: str
    title: str


@dataclass(frozen=True)
class Drawing:
    """One chart against one axis."""

    axis: Axis
    x_title: str
    x: Scale
    y: Scale
    lines: list[Drawn]
    text: str
    """The chart in words."""


def drawings(chart: Chart, colours: Mapping[str, str], references: frozenset[str] = frozenset()) -> list[Drawing]:
    """The chart against each axis that all of its traces have; the first one is shown.

    colours: CSS variable of each row; references: rows that are drawn with dashes.
    """
    shared = [axis for axis in chart.traces[0].x if all(axis in trace.x for trace in chart.traces)]
    return [_drawing(chart, axis, colours, references) for axis in shared]


def scale(
    values: Sequence[float], start: float, end: float, count: int = 5, margin: float = 0.04, least: float = 0.0
) -> Scale:
    """A linear axis over the finite values, between two places, with about `count` round ticks, `least` apart."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    spread = high - low or abs(high) or 1.0
    low, high = low - margin * spread, high + margin * spread
    step = max(least, _round_step((high - low) / count))
    first = math.ceil(low / step)
    ticks = [n * step for n in range(first, math.floor(high / step) + 1)]

    def place(value: float) -> float:
        return round(start + (value - low) / (high - low) * (end - start), 1)

    return Scale(place, [(place(tick), _tick(tick, step)) for tick in ticks])


def path(xs: Sequence[float], ys: Sequence[float], x: Place, y: Place) -> str:
    """The line through the points, broken where a value is not finite."""
    parts, pen = [], "M"
    for a, b in zip(xs, ys, strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = "M"
            continue
        parts.append(f"{pen}{x(a):g} {y(b):g}")
        pen = "L"
    return "".join(parts)


def dots(xs: Sequence[float], ys: Sequence[float], x: Place, y: Place) -> str:
    """A point at every finite value, as strokes of no length."""
    pairs = ((a, b) for a, b in zip(xs, ys, strict=True) if math.isfinite(a) and math.isfinite(b))
    return "".join(f"M{x(a):g} {y(b):g}h0" for a, b in pairs)


def words(name: str) -> str:
    """A name as text."""
    return name.replace("_", " ")


def _drawing(chart: Chart, axis: Axis, colours: Mapping[str, str], references: frozenset[str]) -> Drawing:
    xs = [value for trace in chart.traces for value in trace.x[axis]]
    ys = [value for trace in chart.traces for value in trace.y]
    least = 1.0 if axis in ("step", "chunk") else 0.0
    x, y = scale(xs, LEFT, WIDTH - RIGHT, margin=0.02, least=least), scale(ys, HEIGHT - BOTTOM, TOP, 4)
    named = [trace for trace in chart.traces if trace.row not in colours]
    lines = []
    for trace in chart.traces:
        own = next((n for n, other in enumerate(named) if other is trace), -1)
        colour = f"--s{own % SERIES}" if own >= 0 else colours[trace.row]
        style = "dash" if trace.row in references else "dot" if own >= SERIES else ""
        lines.append(_drawn(trace, axis, x.place, y.place, colour, style))
    text = f"{words(chart.title)} against {AXES[axis]}. " + "; ".join(line.title for line in lines[:SERIES]) + "."
    return Drawing(axis, AXES[axis], x, y, lines, text)


def _drawn(trace: Trace, axis: Axis, x: Place, y: Place, colour: str, style: str) -> Drawn:
    average, window = smoothed(trace.y)
    places, raw = thinned(trace.x[axis]), thinned(trace.y)
    line = path(places, thinned(average), x, y)
    points = dots(places, raw, x, y) if window > 1 or len(raw) <= 2 * SERIES else ""
    finite = [(at, value) for at, value in zip(trace.x[axis], trace.y, strict=True) if math.isfinite(value)]
    first, last = (finite[0], finite[-1]) if finite else ((0.0, math.nan), (0.0, math.nan))
    title = f"{words(trace.label)}: {first[1]:.4g} at {AXES[axis]} {first[0]:.4g}, {last[1]:.4g} at {last[0]:.4g}"
    return Drawn(trace.label, trace.row, colour, style, line, points, title)


def _round_step(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _tick(value: float, step: float) -> str:
    """As many digits as tell neighbouring ticks apart; thousands as `k`, millions as `M`."""
    if abs(value) < step / 2:
        return "0"
    if step < 1e-3:
        return f"{value:.0e}" if abs(value) < 10 * step and step == 10 ** round(math.log10(step)) else f"{value:.1e}"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if step >= size or abs(value) >= 10 * size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
