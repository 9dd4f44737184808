"""Tuning the rows of a protocol on training prompts: the grid of every row, with the same number of trials.

A trial is a cell of a protocol of its own, ``runs/bench/NAME-tune.yaml``: the budget, start weights and sampler of the
protocol, judged on training prompts by the metric that chooses. So trials are resumed, shared by hash and run side by
side like other cells. ``runs/bench/NAME-tune/tuning.json`` holds every trial.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from vidalign.bench.cell import cell_recipe
from vidalign.bench.protocol import Protocol, load_protocol
from vidalign.bench.results import Results, write_json
from vidalign.bench.runner import BenchRun, chosen_rows
from vidalign.bench.search import FAILED, Axis, Point, at_edge, grid_size, next_trials, winner
from vidalign.bench.sections import BASE, AxisConfig, TuningConfig
from vidalign.bench.watched import metric_kind
from vidalign.errors import DataError, Interrupted, UserError, nearest
from vidalign.owner import replacing
from vidalign.provenance import machine
from vidalign.recipe import Recipe

RESULT = "tuning.json"


@dataclass
class Tuned:
    """One row and its trials."""

    row: str
    axes: list[Axis]
    scores: dict[Point, float] = field(default_factory=dict)
    """In the order in which they were tried."""
    errors: dict[Point, str] = field(default_factory=dict)

    @property
    def best(self) -> Point:
        """The winner. Raises `UserError` where every trial failed."""
        if max(self.scores.values()) == FAILED:
            reasons = "; ".join(dict.fromkeys(self.errors.values()))
            raise UserError(f"every trial of {self.row!r} failed", why=reasons, fix="repair its recipe")
        return winner(self.axes, self.scores)

    @property
    def own(self) -> Point:
        """The recipe's own settings."""
        return tuple(axis.start for axis in self.axes)

    def settings(self, point: Point) -> list[str]:
        """All settings of a trial, as overrides."""
        return [f"{axis.key}={_text(value, axis)}" for axis, value in zip(self.axes, point, strict=True)]

    def overrides(self, point: Point) -> list[str]:
        """What makes a recipe that trial; nothing for values that are the recipe's own."""
        pairs = zip(self.settings(point), point, self.own, strict=True)
        return [text for text, value, own in pairs if value != own]

    def name(self, point: Point) -> str:
        """The name of the trial's cells, by its settings: a grid that changes keeps the trials that it shares, also one
        that begins elsewhere because the protocol has taken a winner over."""
        settings = json.dumps([self.row, self.settings(point)])
        return f"{self.row}-{hashlib.sha256(settings.encode()).hexdigest()[:6]}"


@dataclass
class TuneRun:
    """One call of ``vidalign bench tune``."""

    protocol_name: str
    overrides: list[str] = field(default_factory=list)
    small: bool = False
    rows: list[str] | None = None
    """Rows to tune; None means all of them."""
    jobs: int | None = None
    plugins: list[Path] = field(default_factory=list)
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.protocol = load_protocol(self.protocol_name, self.overrides, small=self.small)
        if self.protocol.tuning is None:
            raise UserError(
                f"{self.protocol.name} has no section tuning",
                where="tuning",
                fix="give it training prompts, tuning={prompts: {source: world:train}}; see docs/tuning.md",
            )
        self.tuning: TuningConfig = self.protocol.tuning
        self.metric = chosen_metric(self.protocol)
        self.file = Path("runs") / "bench" / f"{self.protocol.name}-tune.yaml"
        self.tuned = [Tuned(row, []) for row in chosen_rows(self.protocol, self.rows, "--rows")]
        self._find_axes()

    @property
    def folder(self) -> Path:
        return self.file.with_suffix("")

    @property
    def conditions(self) -> dict[str, Any]:
        """What trials in one file have in common."""
        return {
            "metric": self.metric,
            "prompts": asdict(self.tuning.prompts),
            "budget": asdict(self.protocol.budget),
            "seeds": self.tuning.seeds,
        }

    def command(self) -> str:
        """The command line that does the same again."""
        words = ["vidalign", "bench", "tune", self.protocol_name, *self.overrides]
        words += ["--small"] if self.small else []
        words += ["--rows", ",".join(self.rows)] if self.rows is not None else []
        return shlex.join(words + [word for file in self.plugins for word in ("--plugin", str(file))])

    def run(self) -> Path:
        """Run what is left of every row's trials and write the result; raises `Interrupted` after Ctrl-C."""
        results = self._round({})
        self._check_metric(results)
        while waiting := {one.row: found for one in self.tuned if (found := self._next(one))}:
            results = self._round(waiting)
        return write_json(self.folder / RESULT, self._document(results))

    def _find_axes(self) -> None:
        """The axes of every row. Raises `UserError` for prompts that it does not train on, and for too few trials."""
        self._write({one.row: [()] for one in self.tuned})
        protocol = load_protocol(str(self.file))
        for one in self.tuned:
            recipe = cell_recipe(protocol, one.name(()), self.tuning.seeds[0])
            one.axes = axes_of(recipe, self.tuning.grid)
            least = grid_size(one.axes)
            if self.tuning.trials < least:
                raise UserError(
                    f"{self.tuning.trials} trials are fewer than the grid of {one.row!r} has",
                    where="tuning.trials",
                    why=f"its {len(one.axes)} axes need {least}",
                    fix=f"raise it to {least} or more: every row has the same number",
                )

    def _next(self, one: Tuned) -> list[Point]:
        return next_trials(one.axes, one.scores, self.tuning.trials, self.tuning.widen)

    def _round(self, waiting: Mapping[str, list[Point]]) -> Results:
        """Run some trials of each row side by side and take their scores."""
        self._write({one.row: [*one.scores, *waiting.get(one.row, [])] for one in self.tuned})
        trials = [(one, point) for one in self.tuned for point in waiting.get(one.row, [])]
        names = [one.name(point) for one, point in trials]
        bench = BenchRun(str(self.file), objectives=names, jobs=self.jobs, plugins=self.plugins, say=self.say)
        try:
            results = bench.run()
        except Interrupted as stopped:
            what = "the tuning is not finished"
            raise Interrupted(what, where=str(self.folder), fix=f"go on with `{self.command()}`") from stopped
        for one, point in trials:
            name = one.name(point)
            values = [_mean(cell.metrics.get(self.metric, [])) for cell in results.of_row(name)]
            complete = len(values) == len(self.tuning.seeds) and all(map(math.isfinite, values))
            one.scores[point] = sum(values) / len(values) if complete else FAILED
            if not complete:
                one.errors[point] = "; ".join(why for (row, _), why in bench.errors.items() if row == name)
        return results

    def _write(self, points: Mapping[str, list[Point]]) -> None:
        """The protocol of the trials: rows are no part of its hash, so it may grow."""
        rows = {one.name(point): self._trial(one, point) for one in self.tuned for point in points[one.row]}
        text = "# Written by `vidalign bench tune`.\n" + yaml.safe_dump(self._conditions() | {"objectives": rows})
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError("cannot write the trials", where=str(self.file), why=str(error)) from error

    def _trial(self, one: Tuned, point: Point) -> dict[str, Any]:
        config = self.protocol.objectives[one.row]
        own = {"recipe": config.recipe, "student": config.student, "plugin": config.plugin}
        return {**own, "overrides": [*config.overrides, *one.overrides(point)]}

    def _conditions(self) -> dict[str, Any]:
        """The sections of the trials' protocol but its rows."""
        protocol, metric = self.protocol, self.metric.partition("/")[0]
        evaluation = asdict(protocol.evaluation) | {"long_factor": 0, "shown": 0, "curve_points": 0}
        return {
            "prompts": asdict(self.tuning.prompts),
            "student": asdict(protocol.student),
            "budget": asdict(protocol.budget),
            "metrics": {metric: protocol.metrics[metric]},
            "seeds": self.tuning.seeds,
            "evaluation": evaluation,
            "health": {"clips": 0},
            "trained_prompts": True,
        }

    def _check_metric(self, results: Results) -> None:
        """Raises `UserError` where the start weights have no value of the metric that chooses."""
        cells = results.of_row(BASE)
        known = [name for cell in cells for name, values in cell.metrics.items() if math.isfinite(_mean(values))]
        if cells and self.metric not in known:
            close = nearest(self.metric, known)
            fix = f"did you mean {close!r}?" if close else f"values: {', '.join(known)}"
            raise UserError(f"nothing on the tuning prompts has {self.metric!r}", where="tuning.metric", fix=fix)

    def _document(self, results: Results) -> dict[str, Any]:
        """All trials, as the result file holds them."""
        start = [_mean(cell.metrics.get(self.metric, [])) for cell in results.of_row(BASE)]
        return {
            "command": self.command(),
            "protocol": {"name": self.protocol.name, "hash": self.protocol.hash},
            "commit": ", ".join(dict.fromkeys(cell.commit for cell in results.cells if cell.commit)),
            "machine": machine(),
            **self.conditions,
            "start": start[0] if start else None,
            "rows": [self._described(one) for one in self.tuned],
        }

    def _described(self, one: Tuned) -> dict[str, Any]:
        trials = [
            {"settings": one.settings(point), "score": score, "error": one.errors.get(point)}
            for point, score in one.scores.items()
        ]
        return {
            "row": one.row,
            "own": one.settings(one.own),
            "best": one.settings(one.best),
            "recipe": self.protocol.objectives[one.row].described,
            "overrides": one.overrides(one.best),
            "at_edge": at_edge(one.axes, one.scores, one.best),
            "trials": trials,
        }


def check_conditions(earlier: Mapping[str, Any], conditions: Mapping[str, Any]) -> None:
    """Raises `UserError` where an earlier result has other prompts, another budget, metric, start or seeds."""
    for key, value in conditions.items():
        if earlier.get(key) != value:
            raise UserError(
                "the file holds trials under other conditions",
                where=key,
                why=f"{json.dumps(earlier.get(key))}, not {json.dumps(value)}",
                fix="write to another file, or tune all rows anew",
            )


def with_rows_of(earlier: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """The result `document` with the rows of an earlier one that it did not tune before its own.

    Raises `UserError` where the earlier trials had other conditions.
    """
    check_conditions(earlier, {key: document[key] for key in ("metric", "prompts", "budget", "seeds", "start")})
    tuned = {row["row"] for row in document["rows"]}
    kept = [row for row in earlier["rows"] if row["row"] not in tuned]
    if not kept:
        return dict(document)
    both = {
        key: word.join(dict.fromkeys([*earlier[key].split(word), *document[key].split(word)]))
        for key, word in (("command", " and "), ("commit", ", "))
    }
    return {**document, **both, "rows": [*kept, *document["rows"]]}


def axes_of(recipe: Recipe, grid: Mapping[str, AxisConfig]) -> list[Axis]:
    """The axes of a grid that a recipe has, around its own values.

    Raises `UserError` where it has none of the first: trials that are left refine that one.
    """
    plain, axes = recipe.plain(), []
    for name, config in grid.items():
        found = ((key, _value(plain, key)) for key in config.keys)
        key, start = next(((key, value) for key, value in found if value > 0), ("", 0.0))
        bare = Axis(key, start, (), config.whole, config.least)
        values = sorted({start, *(v for f in config.factors if f != 1 and (v := bare.allowed(start * f)))} - {0.0})
        if len(values) > 1:
            axes.append(Axis(key, start, tuple(values), config.whole, config.least))
        elif not axes:
            keys = ", ".join(config.keys)
            what, where = f"{recipe.name} has no {keys}", f"tuning.grid.{name}"
            raise UserError(what, where=where, fix="name a setting that every row has: its trials are refined there")
    return axes


def chosen_metric(protocol: Protocol) -> str:
    """METRIC/NAME that chooses: the held-out score, or what the protocol says. `UserError` where there is none."""
    assert protocol.tuning is not None, "only protocols with a tuning section are tuned"
    named = protocol.tuning.metric
    if not named:
        kinds = {name: metric_kind(name) for name in protocol.metrics}
        first = (f"{n}/{value}" for n, k in kinds.items() if k is not None and not k.trained for value in k.shown)
        if found := next(first, ""):
            return found
        what = "no metric of the protocol is known to be held out"
        raise UserError(what, where="tuning.metric", fix="name METRIC/VALUE")
    metric = named.partition("/")[0]
    if metric not in protocol.metrics:
        close = nearest(metric, protocol.metrics)
        fix = f"did you mean {close!r}?" if close else f"metrics: {', '.join(protocol.metrics)}"
        raise UserError(f"the protocol has no metric {metric!r}", where="tuning.metric", fix=fix)
    return named


def _value(plain: Any, key: str) -> float:
    """The number at a dotted key; 0 where there is none."""
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return float(plain) if isinstance(plain, int | float) and not isinstance(plain, bool) else 0.0


def _mean(values: list[float]) -> float:
    """Over the prompts that were judged; NaN where none was."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _text(value: float, axis: Axis) -> str:
    """As in an override; YAML takes 3e-05 for a text and 3.0e-05 for a number."""
    text = f"{value:.0f}" if axis.whole else f"{value:g}"
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def tuning_table(document: Mapping[str, Any]) -> Table:
    """Start, winner and its settings by row, for the console."""
    trials = {len(row["trials"]) for row in document["rows"]}
    title = f"{document['metric']} on {document['prompts']['source']}, start {document['start']:.3f}"
    table = Table(title=f"{title}, {', '.join(map(str, sorted(trials)))} trials a row")
    for column in ("row", "as it is", "best", "settings", "at the edge of the grid"):
        table.add_column(column, overflow="fold")
    for row in document["rows"]:
        best = max(trial["score"] for trial in row["trials"] if trial["score"] is not None)
        (own,) = [trial["score"] for trial in row["trials"] if trial["settings"] == row["own"]]
        before = "failed" if own is None else f"{own:.3f}"
        table.add_row(row["row"], before, f"{best:.3f}", ", ".join(row["overrides"]), ", ".join(row["at_edge"]))
    return table
