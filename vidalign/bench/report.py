"""Fills the page of `vidalign.report` from the cells of a benchmark."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from vidalign.bench import report_charts, report_pairs
from vidalign.bench.comparison import (
    HELD_OUT,
    RowSummary,
    baseline_of,
    detectable,
    metric_names,
    summaries,
    values_of,
    varied,
)
from vidalign.bench.origin import GROUPS, groups_of, origin
from vidalign.bench.report_charts import metric_of
from vidalign.bench.report_tables import COUNTED, diagnostics, label_of
from vidalign.bench.results import Cell, Results, Spent
from vidalign.bench.sections import BASE, REFERENCES
from vidalign.bench.watched import watched
from vidalign.data.paths import inside
from vidalign.reading import regular
from vidalign.report import CellWarning, Hacking, Metric, Pair, Pane, Report, Row, Score, ShownPrompt, write_report
from vidalign.report.svg import words
from vidalign.report.text import duration

CLIPS = Path("runs") / "bench"
GONE = "not there"
COSTS = (*COUNTED, "seconds", "peak_memory_mib")


def write_bench_report(results: Results, out: Path, clips_folders: Sequence[Path] = (CLIPS,)) -> Path:
    """Write the page of a benchmark to `out` and return it.

    clips_folders: what the cells' `clips` are relative to, the first that has them counts; the page says which rows
    have none. Raises `UserError` where the page cannot be written.
    """
    return write_report(out, bench_report(results, clips_folders))


def bench_report(results: Results, clips_folders: Sequence[Path]) -> Report:
    """The page of a benchmark."""
    splits = list(dict.fromkeys([HELD_OUT, *(split for cell in results.cells for split in cell.prompt_split)]))
    found = {split: summaries(results, split) for split in splits}
    rows = _bench_rows(results, found)
    finished = [cell for cell in results.cells if cell.error is None]
    keys = watched(dict.fromkeys(name for cell in finished for name in cell.metrics))
    held_out, trained = (metric_of(key) if key else None for key in (keys.held_out, keys.trained))
    standing = held_out if held_out and held_out.name == "composite" else _first_composite(rows) or held_out
    pairs = report_pairs.pairs(results, found, f"{standing.judge}/{standing.name}" if standing else "")
    prompts, missing = _bench_clips(results, clips_folders)
    return Report(
        title=f"Benchmark {results.protocol.name}",
        result=_result(pairs, standing),
        summary=_budget(results),
        facts=_bench_facts(results),
        note=_bench_note(results),
        rows=rows,
        headline=standing,
        baseline=BASE if BASE in results.row_names() else "",
        pairs=pairs,
        hacking=Hacking(trained, held_out, report_charts.paths(finished, keys)) if trained and held_out else None,
        curves=report_charts.curves(finished, _budget_of(results).get("currency", "step")),
        drift=report_charts.drift(finished),
        prompts=prompts,
        prompts_note="Under each clip the scores of its prompt, mean over the evaluation seeds.",
        warnings=_bench_warnings(results) + _missing_clips(missing),
        diagnostics=diagnostics(results),
        commands=[
            *dict.fromkeys([results.command, *(c.command for c in results.cells if c.command)]),
            f"vidalign bench report {results.protocol.name}",
        ],
        texts={"Protocol": results.protocol.text},
        environment=_origin(results),
    )


def _result(pairs: Sequence[Pair], headline: Metric | None) -> str:
    """How many trained rows gain over the start weights, and which gains most."""
    rows = {
        pair.after: row
        for pair in pairs
        for row in pair.metrics
        if pair.before == BASE and pair.after not in REFERENCES and headline == Metric(row.group, row.metric)
    }
    if not rows or headline is None:
        return ""
    best = max(rows, key=lambda name: rows[name].difference)
    low, high = rows[best].interval
    better, worse = (sum(row.verdict == verdict for row in rows.values()) for verdict in ("better", "worse"))
    name = words(f"{headline.judge}: {headline.name}")
    return (
        f"{better} of {len(rows)} trained rows gain over the start weights on {name}, {worse} lose; most gains "
        f"{words(best)}, {rows[best].difference:+.3f} (95 % interval {low:+.3f} to {high:+.3f})."
    )


def _first_composite(rows: Sequence[Row]) -> Metric | None:
    """What to sort by where the protocol has no held-out judge."""
    return next((metric for row in rows for metric in row.scores if metric.name == "composite"), None)


def _bench_rows(results: Results, found: Mapping[str, Sequence[RowSummary]]) -> list[Row]:
    scores: dict[str, dict[Metric, Score]] = {name: {} for name in results.row_names()}
    for split, members in found.items():
        for summary in members:
            seeds = values_of(results.of_row(summary.row), summary.metric, split).nanmean(1).tolist()
            scores[summary.row][metric_of(summary.metric, split)] = Score(summary.mean, summary.interval, tuple(seeds))
    rows, groups = [], groups_of(results)
    for name in results.row_names():
        first = next(cell for cell in results.cells if cell.row == name)
        kind: Literal["objective", "reference"] = "objective" if first.kind == "objective" else "reference"
        cells = results.of_row(name)
        if kind == "objective" and cells:
            scores[name] |= _costs(cells)
        columns = _columns(cells) if kind == "objective" else {}
        baseline = baseline_of(results, name) if kind == "objective" else ""
        rows.append(Row(name, kind, scores[name], _made(first, cells), groups[name], columns, baseline))
    return rows


def _columns(cells: Sequence[Cell]) -> dict[str, str]:
    """What stands beside the gain of a row; steps, cost and time are means over its training seeds."""
    if not cells:
        return {}
    come = origin(cells[0].recipe)
    mean = Spent(**{f.name: sum(getattr(c.spent, f.name) for c in cells) / len(cells) for f in fields(Spent)})
    steps = [cell.curve[-1]["step"] for cell in cells if cell.curve]
    calls = mean.reward_calls + mean.teacher_calls
    counted = {"forwards": mean.forwards, "responses": mean.responses, "calls": calls}
    return {
        "learns from": come.learns_from,
        "paper, arXiv": come.paper,
        "steps": f"{sum(steps) / len(steps):,.0f}" if steps else "",
        **{f"cost, {name}": f"{value:,.0f}" if value else "" for name, value in counted.items()},
        "wall time": duration(mean.seconds),
    }


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


def _bench_clips(results: Results, folders: Sequence[Path]) -> tuple[list[ShownPrompt], dict[str, str]]:
    """The clips of each row's first seed that has some, and by row why there are none."""
    samples: list[tuple[Cell, np.ndarray]] = []
    missing: dict[str, str] = {}
    for name in results.row_names():
        cells = [cell for cell in results.of_row(name) if cell.clips]
        for cell in cells:
            clips, why = _read_clips(str(cell.clips), folders)
            if clips is not None:
                samples.append((cell, clips))
                missing.pop(name, None)
                break
            missing.setdefault(name, why)
    count = min((len(clips) for _, clips in samples), default=0)
    shown = [
        ShownPrompt(results.prompts[n], [Pane(cell.row, clips[n], _clip_scores(cell, n)) for cell, clips in samples])
        for n in range(count)
    ]
    return shown, missing


def _read_clips(place: str, folders: Sequence[Path]) -> tuple[np.ndarray | None, str]:
    """Clips from the first folder that has them, or why there are none."""
    why = ""
    for folder in folders:
        try:
            with np.load(regular(inside(folder, place))) as file:
                return file["clips"], ""
        except FileNotFoundError:
            why = why or GONE
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            why = str(error)
    return None, why


def _missing_clips(missing: dict[str, str]) -> list[CellWarning]:
    """One warning for all rows without clips, and one for each file that is damaged."""
    gone = [row for row, why in missing.items() if why == GONE]
    fix = f"`vidalign bench run` keeps them in {CLIPS}; others are read from clips beside the result file"
    found = [CellWarning(f"there are no clips of {', '.join(map(words, gone))}", fix=fix)] if gone else []
    broken = {row: why for row, why in missing.items() if row not in gone}
    return found + [CellWarning(f"its clips cannot be read: {why}", row) for row, why in broken.items()]


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
    outdated = {"outdated since": results.outdated_since} if results.outdated_since else {}
    return outdated | {
        "protocol_hash": results.protocol.hash[:12],
        "cells finished": f"{sum(cell.error is None for cell in results.cells)} of {len(results.cells)}",
    }


def _origin(results: Results) -> dict[str, str]:
    commits = dict.fromkeys(cell.commit for cell in results.cells if cell.commit)
    machine = {name: str(value) for name, value in results.machine.items()}
    return {**machine, "world hash": results.world_hash, "commits": ", ".join(commits)}


def _bench_note(results: Results) -> str:
    split = next((c.prompt_split[HELD_OUT] for c in results.cells if HELD_OUT in c.prompt_split), (0, 0))
    seeds = sorted({cell.seed for cell in results.cells if cell.kind == "objective"})
    return (
        f"{split[1] - split[0]} held-out prompts, training seeds {', '.join(map(str, seeds)) or 'none'}; 95 % "
        f"intervals over {varied(len(seeds))}. {GROUPS} Differences are paired by "
        f"prompt and by the training seeds that both rows have.{_detectable_note(results)}"
    )


def _detectable_note(results: Results) -> str:
    """The detectable differences of the held-out score and its pass."""
    keys, found = watched(metric_names(results.cells)), detectable(results)
    parts = [f"{name.replace('/', ': ')} {found[name]:.3f}" for name in (keys.held_out, keys.passed) if name in found]
    return f" Differences to baselines that are shown with probability 0.8: {', '.join(parts)}." if parts else ""
