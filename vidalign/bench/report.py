"""Fills the page of `vidalign.report` from the cells of a benchmark."""

from __future__ import annotations

import itertools
import logging
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from vidalign.bench.comparison import (
    HELD_OUT,
    baseline_of,
    compare,
    detectable,
    goal_row,
    metric_names,
    summaries,
    values_of,
    varied,
)
from vidalign.bench.report_tables import COUNTED, diagnostics, label_of, number
from vidalign.bench.results import Cell, Results
from vidalign.bench.sections import BASE, REFERENCES
from vidalign.bench.watched import Watched, watched
from vidalign.data.paths import inside
from vidalign.reading import regular
from vidalign.report import (
    CellWarning,
    Chart,
    EvaluationRow,
    Hacking,
    Metric,
    Pair,
    Pane,
    Report,
    Row,
    Score,
    ShownPrompt,
    Trace,
    TrainingPath,
    write_report,
)
from vidalign.report.model import Axis

log = logging.getLogger(__name__)

CLIPS = Path("runs") / "bench"
COSTS = (*COUNTED, "seconds", "peak_memory_mib")


def write_bench_report(results: Results, out: Path, clips_folder: Path = CLIPS) -> Path:
    """Write the page of a benchmark to `out` and return it.

    clips_folder: what the cells' `clips` are relative to; clips that are not there are left out with a
    warning. Raises `UserError` where the page cannot be written.
    """
    return write_report(out, bench_report(results, clips_folder))


def bench_report(results: Results, clips_folder: Path) -> Report:
    """The page of a benchmark."""
    splits = list(dict.fromkeys([HELD_OUT, *(split for cell in results.cells for split in cell.prompt_split)]))
    rows = _bench_rows(results, splits)
    finished = [cell for cell in results.cells if cell.error is None]
    keys = watched(dict.fromkeys(name for cell in finished for name in cell.metrics))
    held_out, trained = (_metric(key) if key else None for key in (keys.held_out, keys.trained))
    return Report(
        title=f"Benchmark {results.protocol.name}",
        summary=_budget(results),
        facts=_bench_facts(results),
        note=_bench_note(results),
        rows=rows,
        headline=held_out if held_out and held_out.name == "composite" else _first_composite(rows) or held_out,
        baseline=BASE if BASE in results.row_names() else "",
        pairs=_bench_pairs(results, splits),
        hacking=Hacking(trained, held_out, _bench_paths(finished, keys)) if trained and held_out else None,
        curves=_bench_curves(finished, _budget_of(results).get("currency", "step")),
        drift=_bench_drift(finished),
        prompts=_bench_clips(results, clips_folder),
        prompts_note="Under each clip the scores of its prompt, mean over the evaluation seeds.",
        warnings=_bench_warnings(results),
        diagnostics=diagnostics(results),
        commands=[
            *dict.fromkeys([results.command, *(c.command for c in results.cells if c.command)]),
            f"vidalign bench report {results.protocol.name}",
        ],
        texts={"Protocol": results.protocol.text},
        environment={**{name: str(value) for name, value in results.machine.items()}, "world hash": results.world_hash},
    )


def _metric(key: str, split: str = HELD_OUT) -> Metric:
    """METRIC/NAME as a column; prompts other than the held-out ones make a judge of their own."""
    judge, _, name = key.partition("/")
    return Metric(judge if split == HELD_OUT else f"{judge}, {split}", name or judge)


def _first_composite(rows: Sequence[Row]) -> Metric | None:
    """What to sort by where the protocol has no held-out judge."""
    return next((metric for row in rows for metric in row.scores if metric.name == "composite"), None)


def _bench_rows(results: Results, splits: Sequence[str]) -> list[Row]:
    scores: dict[str, dict[Metric, Score]] = {name: {} for name in results.row_names()}
    for split in splits:
        for summary in summaries(results, split):
            seeds = values_of(results.of_row(summary.row), summary.metric, split).nanmean(1).tolist()
            scores[summary.row][_metric(summary.metric, split)] = Score(summary.mean, summary.interval, tuple(seeds))
    rows = []
    for name in results.row_names():
        first = next(cell for cell in results.cells if cell.row == name)
        kind: Literal["objective", "reference"] = "objective" if first.kind == "objective" else "reference"
        cells = results.of_row(name)
        if kind == "objective" and cells:
            scores[name] |= _costs(cells)
        rows.append(Row(name, kind, scores[name], _made(first, cells)))
    return rows


def _costs(cells: Sequence[Cell]) -> dict[Metric, Score]:
    """What training took, mean over seeds."""
    costs = {}
    for name in COSTS:
        values = tuple(float(getattr(cell.spent, name)) for cell in cells)
        if name == "responses" and not any(values):
            continue  # a student of videos
        costs[Metric("cost", name, higher_is_better=False)] = Score(sum(values) / len(values), seeds=values)
    return costs


def _made(first: Cell, cells: Sequence[Cell]) -> dict[str, str]:
    seeds = ", ".join(str(cell.seed) for cell in cells) if first.kind == "objective" else ""
    facts = {"recipe": first.recipe, "recipe_hash": first.recipe_hash, "commit": first.commit, "device": first.device}
    return {name: value for name, value in {**facts, "seeds": seeds}.items() if value}


def _bench_pairs(results: Results, splits: Sequence[str]) -> list[Pair]:
    """Objectives and references against the base student, objectives against their baselines, then the others."""
    rows = [name for name in results.row_names() if results.of_row(name)]
    objectives = [name for name in rows if results.of_row(name)[0].kind == "objective"]
    others = [name for name in rows if name not in (BASE, *objectives)]
    names = [(BASE, name) for name in (*objectives, *others)] if BASE in rows else []
    names += [(other, name) for name in objectives if (other := baseline_of(results, name)) not in ("", BASE)]
    names += [pair for pair in itertools.combinations(objectives, 2) if not {pair, pair[::-1]} & set(names)]
    means = {(split, s.row, s.metric): s.mean for split in splits for s in summaries(results, split)}
    goal = goal_row(results)
    gaps = _clear_gaps(results, goal, splits) if {BASE, goal} <= set(rows) else set()
    pairs = []
    for before, after in names:
        closing = before == BASE and after not in REFERENCES
        comparisons = [
            EvaluationRow(
                (metric := _metric(d.metric, split)).name,
                means.get((split, before, d.metric), math.nan),
                means.get((split, after, d.metric), math.nan),
                d.difference,
                d.interval,
                metric.judge,
                means[split, goal, d.metric] if closing and (split, d.metric) in gaps else None,
                goal.replace("_", " "),
                prompts=d.prompts,
                detectable=d.detectable,
            )
            for split in splits
            for d in compare(results, before, after, split=split)
        ]
        pairs.append(Pair(before, after, comparisons))
    return pairs


def _clear_gaps(results: Results, goal: str, splits: Sequence[str]) -> set[tuple[str, str]]:
    """Splits and metrics in which the base student falls short of the row `goal`: there is a gap to close."""
    differences = ((split, d) for split in splits for d in compare(results, BASE, goal, split=split))
    return {(split, d.metric) for split, d in differences if d.verdict == "better"}


def _bench_paths(cells: Sequence[Cell], keys: Watched) -> list[TrainingPath]:
    paths = []
    for cell in cells:
        points = [point for point in cell.curve if keys.trained in point and keys.held_out in point]
        if points:
            paths.append(TrainingPath(cell.row, [p[keys.trained] for p in points], [p[keys.held_out] for p in points]))
    return paths


def _bench_curves(cells: Sequence[Cell], currency: str) -> list[Chart]:
    """One chart a metric, one line a cell, those of the held-out judge first and composites first."""
    keys = dict.fromkeys(key for cell in cells for point in cell.curve for key in point if "/" in key)
    charts = []
    first = watched(keys).held_out.split("/")[0]
    for key in sorted(keys, key=lambda key: (key.split("/")[0] != first, "composite" not in key)):
        metric, traces = _metric(key), []
        for cell in cells:
            points = [point for point in cell.curve if key in point]
            if points:
                y = [number(point[key]) for point in points]
                traces.append(Trace(label_of(cell), y, _spent_along(points, currency), cell.row))
        charts.append(Chart(metric.name, traces, metric.judge))
    return charts


def _spent_along(points: list[dict[str, float]], currency: str) -> dict[Axis, list[float]]:
    """What the points of a curve can be drawn against, the budget's currency first; older cells hold less of it."""
    known: dict[Axis, list[float]] = {"step": [point["step"] for point in points]}
    for axis in ("forwards", "responses", "seconds"):
        if all(axis in point for point in points):
            known[axis] = [point[axis] for point in points]
    if all("reward_calls" in point for point in points):
        known["calls"] = [point["reward_calls"] + point["teacher_calls"] for point in points]
    known = {axis: values for axis, values in known.items() if axis in ("step", currency) or any(values)}
    return dict(sorted(known.items(), key=lambda item: item[0] != currency))


def _bench_drift(cells: Sequence[Cell]) -> list[Chart]:
    keys = dict.fromkeys(key for cell in cells for key in cell.drift)
    return [
        Chart(
            key.replace("/", ": "),
            [
                Trace(label_of(cell), cell.drift[key], {"chunk": list(range(1, len(cell.drift[key]) + 1))}, cell.row)
                for cell in cells
                if key in cell.drift
            ],
        )
        for key in keys
    ]


def _bench_clips(results: Results, folder: Path) -> list[ShownPrompt]:
    """The clips of each row's first seed that has some."""
    samples: list[tuple[Cell, np.ndarray]] = []
    for name in results.row_names():
        cell = next((cell for cell in results.of_row(name) if cell.clips), None)
        if cell is None or cell.clips is None:
            continue
        try:
            with np.load(regular(inside(folder, cell.clips))) as file:
                samples.append((cell, file["clips"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("The report shows no clips of %s: %s", name, error)
    count = min((len(clips) for _, clips in samples), default=0)
    return [
        ShownPrompt(results.prompts[n], [Pane(cell.row, clips[n], _clip_scores(cell, n)) for cell, clips in samples])
        for n in range(count)
    ]


def _clip_scores(cell: Cell, prompt: int) -> dict[str, float]:
    """Means over the evaluation seeds of a prompt."""
    keys = watched(cell.metrics)
    labels = {"trained": keys.trained, "held-out": keys.held_out, "passed": keys.passed}
    return {label: cell.metrics[key][prompt] for label, key in labels.items() if key}


def _bench_warnings(results: Results) -> list[CellWarning]:
    failed = [CellWarning(cell.error, label_of(cell), failed=True) for cell in results.cells if cell.error is not None]
    return failed + [CellWarning(text, label_of(cell)) for cell in results.cells for text in cell.warnings]


def _budget_of(results: Results) -> dict[str, Any]:
    budget: dict[str, Any] = (yaml.safe_load(results.protocol.text) or {}).get("budget", {})
    return budget


def _budget(results: Results) -> str:
    budget = _budget_of(results)
    if "amount" not in budget or "currency" not in budget:
        return ""
    return f"Every objective may spend {budget['amount']:,.0f} {budget['currency']} a seed."


def _bench_facts(results: Results) -> dict[str, str]:
    commits = dict.fromkeys(cell.commit for cell in results.cells if cell.commit)
    return {
        "protocol_hash": results.protocol.hash[:12],
        "world_hash": results.world_hash,
        "commit": ", ".join(commits),
        "cells finished": f"{sum(cell.error is None for cell in results.cells)} of {len(results.cells)}",
    }


def _bench_note(results: Results) -> str:
    split = next((c.prompt_split[HELD_OUT] for c in results.cells if HELD_OUT in c.prompt_split), (0, 0))
    seeds = sorted({cell.seed for cell in results.cells if cell.kind == "objective"})
    return (
        f"{split[1] - split[0]} held-out prompts, training seeds {', '.join(map(str, seeds)) or 'none'}; 95 % "
        f"intervals over {varied(len(seeds))}. Differences are paired by "
        f"prompt and by the training seeds that both rows have.{_detectable_note(results)}"
    )


def _detectable_note(results: Results) -> str:
    """The detectable differences of the held-out score and its pass."""
    keys, found = watched(metric_names(results.cells)), detectable(results)
    parts = [f"{name.replace('/', ': ')} {found[name]:.3f}" for name in (keys.held_out, keys.passed) if name in found]
    return f" Differences to baselines that are shown with probability 0.8: {', '.join(parts)}." if parts else ""
