"""What the page shows, as plain data. A training run is a report of three rows: before, after and ground truth. A
benchmark has a row for every objective and reference. Empty parts are left out of the page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

NAN = math.nan
LEAST_PROMPTS = 8
"""Prompts from which on a difference may be called better or worse: below, the interval says little."""
TOO_FEW = "too few prompts"
TOO_FEW_WHY = f"{TOO_FEW}: no better or worse from fewer than {LEAST_PROMPTS}"
Axis = Literal["step", "forwards", "calls", "responses", "seconds", "chunk"]


@dataclass(frozen=True)
class Metric:
    """A column of the leaderboard."""

    judge: str
    """Who says so, e.g. `held-out auditor`; metrics of one judge stand together."""
    name: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Score:
    """One row's mean of one metric, with its 95 % interval (NaN: none) and the mean of each training seed."""

    mean: float
    interval: tuple[float, float] = (NAN, NAN)
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of the leaderboard, with the same colour everywhere on the page."""

    name: str
    kind: Literal["objective", "reference"] = "objective"
    scores: dict[Metric, Score] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    """What made it, e.g. recipe, seeds, device; unfolds under its name."""
    group: str = ""
    """Rows of a group, e.g. `methods` or `controls`, can be shown alone."""
    columns: dict[str, str] = field(default_factory=dict)
    """What stands beside its gain: paper, what it learns from, steps, cost, wall time."""
    baseline: str = ""
    """The row that it is to beat, where that is not the report's baseline."""


@dataclass(frozen=True)
class EvaluationRow:
    """Two rows compared by one metric on the same prompts: means, paired difference, its 95 % interval."""

    metric: str
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    group: str = ""
    """Heading in the table, the metric's judge; rows of a group stay together."""
    goal: float | None = None
    """The same metric of what is to be reached, where there is such a row."""
    goal_name: str = "ground truth"
    """What that is: true clips, or a language student's teacher."""
    higher_is_better: bool = True
    prompts: int | None = None
    """Prompts with a value in both rows, where that is known."""
    detectable: float = NAN
    """The difference that so many prompts (and seeds) show with probability .8."""

    @property
    def gap_closed(self) -> float | None:
        """Share of the distance from `before` to the goal that was covered; None below a distance of 0.01."""
        gap = NAN if self.goal is None else self.goal - self.before
        return self.difference / gap if gap > 0.01 else None

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval excludes zero, `unclear` otherwise; nothing from a few prompts."""
        if self.prompts is not None and self.prompts < LEAST_PROMPTS:
            return TOO_FEW
        low, high = self.interval
        if not low <= high or low <= 0 <= high:
            return "unclear"
        return "better" if (low > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Pair:
    """The paired differences `after - before` of two rows."""

    before: str
    after: str
    metrics: list[EvaluationRow]

    @property
    def title(self) -> str:
        return f"{self.after} against {self.before}"


@dataclass(frozen=True)
class Trace:
    """A line of a chart. It is drawn in the colour of `row` (and hidden with it), else in one of its own."""

    label: str
    y: list[float]
    x: dict[Axis, list[float]]
    """One list as long as `y` for every axis that it can be drawn against."""
    row: str = ""
    band: tuple[list[float], list[float]] | None = None
    """The lower and the upper side of what `y` is the mean of, each as long as `y`."""


@dataclass(frozen=True)
class Chart:
    """One chart of a page: traces over the same axis."""

    title: str
    traces: list[Trace]
    group: str = ""
    """Charts of a group unfold together."""
    note: str = ""
    """What it shows and how to read it, in one line."""


@dataclass(frozen=True)
class TrainingPath:
    """The way of one training run through the hacking plot: both scores at the same points in time."""

    row: str
    trained: list[float]
    held_out: list[float]


@dataclass(frozen=True)
class Hacking:
    """Trained against held-out score: what goes right without going up hacks its reward."""

    trained: Metric
    held_out: Metric
    paths: list[TrainingPath] = field(default_factory=list)


@dataclass(frozen=True)
class Pane:
    """The clip of one row, uint8 `[F, H, W, 3]`, with scores by name."""

    row: str
    frames: np.ndarray
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownPrompt:
    """The clips of one prompt from the same noise, side by side."""

    prompt: str
    panes: list[Pane]
    label: str = ""
    """Its place among all prompts: `best`, `median` or `worst`."""
    change: float = NAN
    """Of the headline's score, after minus before, of these very clips."""


@dataclass(frozen=True)
class Answer:
    """The text of one row, with its grade: 1 right, 0 wrong, NaN not graded."""

    row: str
    text: str
    score: float = NAN


@dataclass(frozen=True)
class ShownAnswers:
    """The answers to one prompt side by side."""

    prompt: str
    answers: list[Answer]
    change: float = NAN
    """Of the grade, after minus before."""


@dataclass(frozen=True)
class CellWarning:
    """A health warning of a run, or of one cell of a benchmark, or why the cell failed."""

    message: str
    cell: str = ""
    name: str = ""
    """Key of the warning in the troubleshooting page."""
    fix: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Table:
    """A plain table: one label and the values of `columns` a row; NaN is shown as nothing."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[float | str]]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    result: str = ""
    """What came out, in one sentence."""
    summary: str = ""
    """One or two sentences under the title."""
    facts: dict[str, str] = field(default_factory=dict)
    """Short facts under the title: date, wall time, hashes, commit, steps."""
    note: str = ""
    """How the scores were measured: prompts, clips per prompt, kind of interval."""
    rows: list[Row] = field(default_factory=list)
    leaderboard: bool = True
    """Whether the rows have a table of their own; False where the paired differences say the same."""
    headline: Metric | None = None
    """The leaderboard is sorted by it first, and its judge is shown first."""
    baseline: str = ""
    """Row that the others are compared with in the leaderboard: the student before training."""
    pairs: list[Pair] = field(default_factory=list)
    """The first is shown; the others where they are chosen."""
    hacking: Hacking | None = None
    curves: list[Chart] = field(default_factory=list)
    constant: dict[str, float] = field(default_factory=dict)
    """Series that have no chart because they did not move beyond rounding: name and last value."""
    drift: list[Chart] = field(default_factory=list)
    """Scores by chunk of a clip; their traces have the axis `chunk`."""
    prompts: list[ShownPrompt] = field(default_factory=list)
    prompts_note: str = ""
    """What the scores under the clips are."""
    fps: float = 8
    answers: list[ShownAnswers] = field(default_factory=list)
    """Of a language student, in the order of the page; it shows `page.ANSWERS` of them."""
    answers_note: str = ""
    warnings: list[CellWarning] = field(default_factory=list)
    suites: Table | None = None
    """Scores of external suites, from their official scorers."""
    diagnostics: list[Table] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Shell commands that make this and the page again, one each."""
    texts: dict[str, str] = field(default_factory=dict)
    """Long texts by title, shown as they are: the recipe or the protocol."""
    environment: dict[str, str] = field(default_factory=dict)
    cost: Table | None = None
    """What the run took."""
