"""The search of `vidalign bench tune`: which settings a row tries next, from the scores that it has.

A coordinate search on a grid. Along each axis in turn the recipe's own value is tried with its neighbours, the other
axes at the best so far. A winner at the edge widens the axis, a bounded number of times. Trials that are left refine
the first axis between the best and its neighbours. Every row ends with the same number of trials, whatever axes its
objective has. The next trials follow from the scores alone, so an interrupted search goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, ...]
"""A value for every axis."""
FAILED = -math.inf
"""The score of a trial that has none."""


@dataclass(frozen=True)
class Axis:
    """One setting of one row."""

    key: str
    start: float
    """The recipe's own value."""
    values: tuple[float, ...]
    """Those of the grid, increasing, the recipe's own among them."""
    whole: bool = False
    least: float = 0.0

    def beyond(self, low: bool) -> float | None:
        """The next value outside of the grid, as far away again; None where there is none."""
        first, second = (self.values[0], self.values[1]) if low else (self.values[-1], self.values[-2])
        return self.allowed(first * first / second)

    def allowed(self, value: float) -> float | None:
        """The value as it may be tried: whole numbers are rounded; None below the least."""
        value = float(round(value)) if self.whole else float(f"{value:.3g}")
        return value if value > 0 and value >= self.least else None

    def wider(self, value: float) -> Axis:
        """With one more value."""
        return Axis(self.key, self.start, tuple(sorted({*self.values, value})), self.whole, self.least)


def grid_size(axes: Sequence[Axis]) -> int:
    """Trials of the grid when nothing is widened."""
    return 1 + sum(len(axis.values) - 1 for axis in axes)


def next_trials(axes: Sequence[Axis], scores: Mapping[Point, float], trials: int, widen: int) -> list[Point]:
    """The settings to try next, all at once; empty when `trials` have scores."""
    left = trials - len(scores)
    if left <= 0:
        return []
    best: Point = tuple(axis.start for axis in axes)
    for n, axis in enumerate(axes):
        points, wide = _along(axes, best, n, axis, scores, widen)
        if missing := [point for point in points if point not in scores]:
            return missing[:left]
        best = _winner(points, scores, wide.start, n)
    return _between(axes[0], best, scores)[:left]


def winner(axes: Sequence[Axis], scores: Mapping[Point, float]) -> Point:
    """The settings with the best score, of equal ones the nearest to the recipe's own."""

    def distance(point: Point) -> float:
        return sum(abs(math.log(value / axis.start)) for axis, value in zip(axes, point, strict=True))

    return max(scores, key=lambda point: (scores[point], -distance(point)))


def at_edge(axes: Sequence[Axis], scores: Mapping[Point, float], best: Point) -> list[str]:
    """Keys of the axes along which no better value lies on one side only because none was tried there."""
    edges = []
    for n, axis in enumerate(axes):
        tried = sorted({point[n] for point in scores if _others(point, n) == _others(best, n)})
        open_below = axis.allowed(best[n] / 2) not in (None, best[n])
        if len(tried) > 1 and (best[n] == tried[-1] or (best[n] == tried[0] and open_below)):
            edges.append(axis.key)
    return edges


def _along(
    axes: Sequence[Axis], best: Point, n: int, axis: Axis, scores: Mapping[Point, float], widen: int
) -> tuple[list[Point], Axis]:
    """The points of one axis at the best of the others, widened as far as the scores ask for."""
    points = [_with(best, n, value) for value in axis.values]
    for _ in range(widen):
        if any(point not in scores for point in points):
            break
        won = _winner(points, scores, axis.start, n)[n]
        further = axis.beyond(low=True) if won == axis.values[0] else None
        further = axis.beyond(low=False) if won == axis.values[-1] else further
        if further is None or further in axis.values:
            break
        axis = axis.wider(further)
        points = [_with(best, n, value) for value in axis.values]
    return points, axis


def _between(axis: Axis, best: Point, scores: Mapping[Point, float]) -> list[Point]:
    """Settings half-way, by ratio, between the best value of the first axis and its neighbours."""
    line = {point[0]: score for point, score in scores.items() if _others(point, 0) == _others(best, 0)}
    tried, won = sorted(line), max(line, key=lambda value: line[value])
    place = tried.index(won)
    near = [tried[k] for k in (place - 1, place + 1) if 0 <= k < len(tried)]
    values = [axis.allowed(math.sqrt(won * value)) for value in near]
    return [_with(best, 0, value) for value in values if value is not None and value not in tried]


def _winner(points: Sequence[Point], scores: Mapping[Point, float], start: float, n: int) -> Point:
    """The point with the best score, of equal ones the nearest to the recipe's own value."""
    return max(points, key=lambda point: (scores[point], -abs(math.log(point[n] / start))))


def _with(point: Point, n: int, value: float) -> Point:
    return (*point[:n], value, *point[n + 1 :])


def _others(point: Point, n: int) -> Point:
    return point[:n] + point[n + 1 :]
