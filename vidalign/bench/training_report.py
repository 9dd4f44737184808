"""Fills the page of `vidalign.report` from one finished run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign.evaluation.evaluator import COMPOSITE, TRAINED, Evaluation
from vidalign.evaluation.intervals import estimate
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
    Table,
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
    suites: Table | None = None,
) -> Report:
    """The page of one run, read from its `folder`.

    differences: `after` against `before`; judged: the evaluations of the rows `before`, `after` and `ground truth`;
    suites: scores of external suites.
    """
    log, chosen = folder / FILE_NAME, f" --step {header['step']}" if "step" in header else ""
    history = read_history(log)
    after, seeds = judged["after"], recipe.evaluation.seeds
    count = len(after.prompts)
    unit = f"examples, {seeds} responses each" if after.responses else f"prompts, {seeds} clips each, same noise"
    headline = Metric(*after.headline) if after.headline else None
    watched = headline is not None and headline.judge != TRAINED and (TRAINED, COMPOSITE) in after.metrics
    hacking = Hacking(Metric(TRAINED, COMPOSITE), headline, _run_paths(history)) if headline and watched else None
    return Report(
        title=f"{recipe.objective.name} | {recipe.name}",
        summary=recipe.header.split("\n", 1)[0],
        facts={k: v for k, v in header.items() if k not in ("command", "machine")}
        | {"steps": str(recipe.trainer.steps)},  # beside the step of the student, where it is that of a checkpoint
        note=f"{count} held-out {unit} before and after; 95 % intervals over {unit.split(',')[0]}.",
        rows=[_evaluated(name, evaluation) for name, evaluation in judged.items()],
        headline=headline if differences else None,
        baseline="before",
        pairs=[Pair("before", "after", differences)] if differences else [],
        hacking=hacking if differences else None,
        suites=suites,
        curves=history_charts(history),
        prompts=_evaluated_clips(judged),
        warnings=_logged_warnings(log),
        commands=[header["command"], f"vidalign evaluate --run {_place(folder)}{chosen}"],
        texts={"Recipe": (folder / "recipe.yaml").read_text(encoding="utf-8")},
        environment={"machine": header["machine"], "python": sys.version.split()[0]},
    )


def _place(folder: Path) -> str:
    """A run's folder as an argument, without local paths."""
    return shlex.quote(folder.name if folder.is_absolute() else str(folder))


def _evaluated(name: str, evaluation: Evaluation) -> Row:
    scores = {
        Metric(judge, metric): Score(float(values.nanmean()), estimate(values).interval)
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
    records: Iterable[dict[str, Any]] = (record for record in read_records(log) if record["kind"] == "health")
    by_name = {record["name"]: record for record in records}  # a resumed run may have warned twice
    return [CellWarning(r["message"], name=r["name"], fix=r["fix"]) for r in by_name.values()]
