"""Fills the page of `vidalign.report` from one finished run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vidalign.bench.bootstrap import interval
from vidalign.bench.evaluation import Evaluation
from vidalign.bench.judges import AUDITOR, TRAINED
from vidalign.bench.language import ALL, EXACT
from vidalign.build import LANGUAGE
from vidalign.report import (
    CellWarning,
    EvaluationRow,
    Hacking,
    Metric,
    Pair,
    Pane,
    Report,
    Row,
    Score,
    ShownPrompt,
    TrainingPath,
)
from vidalign.report.charts import history_charts
from vidalign.tracking.clips import to_frames
from vidalign.tracking.jsonl import FILE_NAME, History, read_history, read_records

if TYPE_CHECKING:
    from vidalign.recipe import Recipe

HELD_OUT_CURVE, TRAINED_CURVE = "health/held_out/mean", "health/held_out_trained/mean"


def training_report(
    folder: Path,
    recipe: Recipe,
    differences: list[EvaluationRow],
    judged: dict[str, Evaluation],
    header: dict[str, str],
) -> Report:
    """The page of one run, read from its `folder`.

    differences: `after` against `before`; judged: the evaluations of the rows `before`, `after` and `ground truth`.
    """
    log, chosen = folder / FILE_NAME, f" --step {header['step']}" if "step" in header else ""
    history = read_history(log)
    language, count, seeds = recipe.student.name == LANGUAGE, len(judged["after"].prompts), recipe.evaluation.seeds
    unit = f"examples, {seeds} responses each" if language else f"prompts, {seeds} clips each, same noise"
    hacking = Hacking(Metric(TRAINED, "composite"), Metric(AUDITOR, "composite"), _run_paths(history))
    return Report(
        title=f"{recipe.objective.name} | {recipe.name}",
        summary=recipe.header.split("\n", 1)[0],
        facts={k: v for k, v in header.items() if k not in ("command", "machine")}
        | {"steps": str(recipe.trainer.steps)},  # beside the step of the student, where it is that of a checkpoint
        note=f"{count} held-out {unit} before and after; 95 % bootstrap intervals over {unit.split(',')[0]}.",
        rows=[_evaluated(name, evaluation) for name, evaluation in judged.items()],
        headline=(Metric(EXACT, ALL) if language else Metric(AUDITOR, "composite")) if differences else None,
        baseline="before",
        pairs=[Pair("before", "after", differences)] if differences else [],
        hacking=None if language or not differences else hacking,
        curves=history_charts(history),
        prompts=_evaluated_clips(judged),
        warnings=_logged_warnings(log),
        commands=[header["command"], f"vidalign evaluate --run {_place(folder)}{chosen}"],
        texts={"Recipe": (folder / "recipe.yaml").read_text(encoding="utf-8")},
        environment={"machine": header["machine"], "python": sys.version.split()[0]},
    )


def _place(folder: Path) -> str:
    """A run's folder as an argument, without where it lies on somebody's disk."""
    return shlex.quote(folder.name if folder.is_absolute() else str(folder))


def _evaluated(name: str, evaluation: Evaluation) -> Row:
    scores = {
        Metric(judge, metric): Score(float(values.nanmean()), interval(values))
        for (judge, metric), values in evaluation.metrics.items()
    }
    return Row(name, "objective" if name == "after" else "reference", scores)


def _run_paths(history: History) -> list[TrainingPath]:
    """The scores that were measured during training, where both were."""
    trained, held_out = dict(history.get(TRAINED_CURVE, [])), dict(history.get(HELD_OUT_CURVE, []))
    steps = sorted(trained.keys() & held_out.keys())
    return [TrainingPath("after", [trained[s] for s in steps], [held_out[s] for s in steps])] if steps else []


def _evaluated_clips(judged: dict[str, Evaluation]) -> list[ShownPrompt]:
    shown = []
    for index in range(min(len(evaluation.clips) for evaluation in judged.values())):
        panes = [Pane(name, to_frames(e.clips[index]), e.clip_metrics[index]) for name, e in judged.items()]
        shown.append(ShownPrompt(judged["after"].prompts[index], panes))
    return shown


def _logged_warnings(log: Path) -> list[CellWarning]:
    records: Iterable[dict] = (record for record in read_records(log) if record["kind"] == "health")
    by_name = {record["name"]: record for record in records}  # a resumed run may have warned twice
    return [CellWarning(r["message"], name=r["name"], fix=r["fix"]) for r in by_name.values()]
