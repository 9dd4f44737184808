"""Charts as inline SVG, made when the page is written: geometry here, elements in `templates/charts.html.j2`.

Colours are CSS variables of the page, so a theme needs no new picture. Lengths are units of the view box.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vidalign.report.charts import AXES, smoothed, thinned
from vidalign.report.model import Axis, Chart, Trace

WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 8.0, 36.0
SERIES = 8  # colours of report.css
STYLES = ("", "dash", "dot")
"""How the lines of the first, second and third `SERIES` rows are drawn; colours repeat."""
LEAST_GROUPS = 5
"""Groups from which on one of them may count as an outlier."""
LETTER, LINE = 5.5, 11.0
"""About the width of a letter and the height of a line of a label."""

Place = Callable[[float], float]


@dataclass(frozen=True)
class Scale:
    """Values of an axis -> units of the view box, and the ticks on it."""

    low: float
    high: float
    """The values at its ends."""
    start: float
    end: float
    """The places of its ends."""
    ticks: list[tuple[float, str]]
    """Where each stands, and its text."""

    def place(self, value: float) -> float:
        """Where a value stands; one that lies beyond an end, at that end."""
        inside = min(self.high, max(self.low, value))
        return round(self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def beyond(self, value: float) -> int:
        """-1 below the axis, 1 above it, 0 on it."""
        return (value > self.high) - (value < self.low)


@dataclass(frozen=True)
class Drawn:
    """One line: `path` through its (smoothed) values, `dots` at the raw ones where both are shown."""

    label: str
    row: str
    colour: str
    style: str
    path: str
    dots: str
    band: str
    """The area of its spread, where it has one."""
    title: str
    end: tuple[float, float]
    """Place of its last value."""
    name: str = ""
    """What stands beside the end: the row, and the last value where that lies beyond the axis."""
    name_y: float | None = None
    """Where its name stands to the right of the chart; None where a legend names it."""


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
    right: float
    """Where the axes end; names stand to the right."""
    bottom: float
    height: float


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
    axis = Scale(low, high, start, end, [])
    ticks = [n * step for n in range(first, math.floor(high / step) + 1)]
    return replace(axis, ticks=[(axis.place(tick), _tick(tick, step)) for tick in ticks])


def without_outliers(groups: Iterable[Sequence[float]], always: Iterable[Sequence[float]] = ()) -> list[float]:
    """The values of all groups but those far away from the others, so that a collapsed row does not flatten an axis.

    The first value of a group stands for it. Far away: more than three times the distance of the quartiles beyond them
    (Tukey's outer fence). Of fewer than `LEAST_GROUPS` groups none is. always: groups that are kept wherever they lie.
    """
    known = [group for group in groups if group and math.isfinite(group[0])]
    if len(known) >= LEAST_GROUPS:
        low, _, high = statistics.quantiles([group[0] for group in known], n=4, method="inclusive")
        reach = 3 * (high - low)
        known = [group for group in known if reach == 0 or low - reach <= group[0] <= high + reach]
    return [value for group in (*known, *always) for value in group]


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
    named = _named(chart.traces)
    height = max(HEIGHT, TOP + BOTTOM + LINE * len(chart.traces)) if named else HEIGHT
    bottom = height - BOTTOM
    kept = [_reach(trace) for trace in chart.traces if trace.row in references]
    reach = [_reach(trace) for trace in chart.traces if trace.row not in references]
    y = scale(without_outliers(reach, kept), bottom, TOP, 4)
    names = [_name(trace, y) for trace in chart.traces] if named else [""] * len(chart.traces)
    right = WIDTH - (LETTER * min(34, max(map(len, names))) + 10 if named else RIGHT)
    least = 1.0 if axis in ("step", "chunk") else 0.0
    x = scale([value for trace in chart.traces for value in trace.x[axis]], LEFT, right, margin=0.02, least=least)
    order, alone = list(colours), [trace for trace in chart.traces if trace.row not in colours]
    lines = []
    for trace, name in zip(chart.traces, names, strict=True):
        own = next((n for n, other in enumerate(alone) if other is trace), -1)
        colour = f"--s{own % SERIES}" if own >= 0 else colours[trace.row]
        style = STYLES[own // SERIES % 3] if own >= 0 else line_style(trace.row, order, references)
        lines.append(_drawn(trace, axis, x, y, colour, style, name))
    text = f"{words(chart.title)} against {AXES[axis]}. " + "; ".join(line.title for line in lines) + "."
    return Drawing(axis, AXES[axis], x, y, _with_places(lines, bottom) if named else lines, text, right, bottom, height)


def line_style(row: str, order: Sequence[str], references: frozenset[str]) -> str:
    """Dashes of a row's lines: rows of the same colour differ in them, references have their own."""
    if row in references:
        return "reference"
    return STYLES[[name for name in order if name not in references].index(row) // SERIES % len(STYLES)]


def _named(traces: Sequence[Trace]) -> bool:
    """Whether names stand beside the lines: of rows, where there are several with a line each."""
    rows = [trace.row for trace in traces]
    return len(rows) > 1 and all(rows) and len(set(rows)) == len(rows)


def _name(trace: Trace, y: Scale) -> str:
    last = next((value for value in reversed(trace.y) if math.isfinite(value)), math.nan)
    beyond = y.beyond(last)
    return words(trace.row) + (f" {'↑' if beyond > 0 else '↓'} {last:.2g}" if beyond else "")


def _reach(trace: Trace) -> list[float]:
    """The last value of a line, which stands for it, and all others."""
    finite = [value for value in trace.y if math.isfinite(value)]
    return [*finite[-1:], *finite, *(value for side in trace.band or () for value in side)]


def _with_places(lines: Sequence[Drawn], bottom: float) -> list[Drawn]:
    """The lines, names from top to bottom as they end, none over another."""
    order = sorted(range(len(lines)), key=lambda n: lines[n].end[1])
    places, last = {}, -math.inf
    for n in order:
        last = places[n] = max(lines[n].end[1], last + LINE)
    limit = bottom
    for n in reversed(order):  # what was pushed over the bottom goes up again
        places[n] = min(places[n], limit)
        limit = places[n] - LINE
    return [replace(line, name_y=round(places[n], 1)) for n, line in enumerate(lines)]


def _drawn(trace: Trace, axis: Axis, x: Scale, y: Scale, colour: str, style: str, name: str) -> Drawn:
    average, window = smoothed(trace.y)
    places, raw = thinned(trace.x[axis]), thinned(trace.y)
    line = path(places, thinned(average), x.place, y.place)
    points = dots(places, raw, x.place, y.place) if window > 1 or len(raw) <= 2 * SERIES else ""
    finite = [(at, value) for at, value in zip(trace.x[axis], trace.y, strict=True) if math.isfinite(value)]
    first, last = (finite[0], finite[-1]) if finite else ((0.0, math.nan), (0.0, math.nan))
    title = f"{words(trace.label)}: {first[1]:.4g} at {AXES[axis]} {first[0]:.4g}, {last[1]:.4g} at {last[0]:.4g}"
    end = (x.place(last[0]), y.place(last[1]) if finite else y.end)
    band = _area(trace.x[axis], trace.band, x.place, y.place) if trace.band else ""
    return Drawn(trace.label, trace.row, colour, style, line, points, band, title, end, name)


def _area(xs: Sequence[float], band: tuple[list[float], list[float]], x: Place, y: Place) -> str:
    """Between the lower and the upper side, where both are finite."""
    known = [each for each in zip(xs, *band, strict=True) if all(map(math.isfinite, each))]
    corners = [(at, low) for at, low, _ in known] + [(at, high) for at, _, high in reversed(known)]
    return "M" + "L".join(f"{x(a):g} {y(b):g}" for a, b in corners) + "Z" if len(known) > 1 else ""


def _round_step(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _tick(value: float, step: float) -> str:
    """As many digits as neighbouring ticks need to differ; thousands as `k`, millions as `M`."""
    if abs(value) < step / 2:
        return "0"
    if step < 1e-3:
        return f"{value:.0e}" if abs(value) < 10 * step and step == 10 ** round(math.log10(step)) else f"{value:.1e}"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if step >= size or abs(value) >= 10 * size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
