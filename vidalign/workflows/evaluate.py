"""The held-out judgement of a run's student against the one that it started from.

Writes RUN/evaluation.json, RUN/evaluation-clips.json (of a language student RUN/evaluation-responses.json) and
RUN/report.html; of the student in a checkpoint RUN/evaluation-step-N.json and so on.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vidalign.bench.suites.export import student_hash
from vidalign.bench.suites.scores import RUN_SCORES
from vidalign.build import computing_as, frozen_rewards, sampler_of
from vidalign.evaluation.comparison import compare, save_evaluation
from vidalign.evaluation.evaluator import Evaluation, Evaluator, frame_rate
from vidalign.provenance import describe_run
from vidalign.report import EvaluationRow, write_report
from vidalign.report.kept import write_answers, write_clips
from vidalign.report.table import evaluation_table
from vidalign.tracking.stages import Stage, counted, stages
from vidalign.workflows.opened import FINAL, FinishedRun, open_run
from vidalign.workflows.run_files import CLIPS, DEFAULT_FPS, EVALUATION, RESPONSES, read_run
from vidalign.workflows.saved import Saved
from vidalign.workflows.shown_answers import kept_answers
from vidalign.workflows.shown_clips import MEMORY, kept_clips
from vidalign.workflows.start import started_student
from vidalign.workflows.training_report import training_report

if TYPE_CHECKING:
    from vidalign.evaluation.metrics.base import Metric
    from vidalign.recipe import Recipe


def evaluate_run(
    folder: str | Path, overrides: Sequence[str] = (), *, saved: Saved = FINAL, console: Console | None = None
) -> list[EvaluationRow]:
    """Judge a run's student against the one it started from: a table, RUN/evaluation.json and RUN/report.html.

    A student of step N is judged into files of its own, evaluation-step-N.json and report-step-N.html.
    """
    run = open_run(folder, overrides, saved)
    recipe, console = run.recipe, console or Console()
    evaluator = Evaluator.from_recipe(recipe, frozen_rewards(recipe, run.student, run.folder))
    with stages(recipe.tracking.panel, console) as stage:
        judged = _judge(run, evaluator, stage)
        after = judged["after"]
        rows = compare(judged["before"], after, judged.get("ground truth"))
        done = stage("writing the report", 1)
        path = _write_judgement(run, judged, settings_of_judges(recipe, evaluator.metrics), evaluator)
        done(1)
    if not rows:
        what = "nothing can judge the evaluation prompts: what the student makes of them is in the report, unjudged"
        warnings.warn(f"{what} - evaluation.metrics - name metrics, or rewards", UserWarning, stacklevel=2)
    unit = "examples" if after.responses else "prompts"
    title = f"{len(after.prompts)} held-out {unit} x {evaluator.seeds} seeds, 95 % intervals over {unit}"
    for judge in dict.fromkeys(row.group for row in rows):
        console.print(evaluation_table([row for row in rows if row.group == judge], f"{judge} | {title}"))
    console.print(f"report: {path}", markup=False, emoji=False, soft_wrap=True)
    return rows


def _judge(run: FinishedRun, evaluator: Evaluator, stage: Stage) -> dict[str, Evaluation]:
    """The student before and after training, and the ground truth where the prompts' source has one."""
    count = len(evaluator.prompts) * evaluator.seeds
    judged, done = {}, stage("judging the ground truth", count)
    truth = evaluator.truth(MEMORY)
    done(count)
    after = computing_as(run.recipe, run.student)
    before = started_student(run.recipe).to(next(after.parameters()).dtype)  # both compute alike
    for name, student in (("before", before), ("after", after)):
        sampler = counted(sampler_of(run.recipe, student), stage(f"judging {name} training", count))
        judged[name] = evaluator(sampler, memory=MEMORY)
    return judged | ({"ground truth": truth} if truth else {})


def settings_of_judges(recipe: Recipe, metrics: Sequence[Metric]) -> dict[str, str]:
    """A line for every reward and metric that has settings, with all of them: which frames it saw is among them. The
    frame rate of the clips stands beside them. Local paths are stripped."""
    judges = {f"reward {key}": (choice.name, choice.config) for key, choice in recipe.rewards.items()}
    judges |= {f"metric {metric.name}": (metric.name, metric.config) for metric in metrics}
    lines = {}
    for label, (name, config) in judges.items():
        if settings := vars(config) if is_dataclass(config) else {}:
            lines[label] = " ".join([name, *(f"{key}={_short(value)}" for key, value in settings.items())])
    rate = frame_rate(recipe) if lines else None
    return lines | ({} if rate is None else {"clips": f"{rate:g} frames a second"})


def _short(value: Any) -> str:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else str(value)


def _write_judgement(
    run: FinishedRun, judged: dict[str, Evaluation], settings: dict[str, str], evaluator: Evaluator
) -> Path:
    """The evaluation, the clips and the report of a run's student; returns where the report is."""
    header = describe_run(run.recipe) | settings | ({} if run.step is None else {"step": str(run.step)})
    before, after, truth = judged["before"], judged["after"], judged.get("ground truth")
    scored = (run.folder / RUN_SCORES).is_dir()  # by official scorers, whose file names the student
    sha256 = student_hash(run.student) if scored else None
    path = run.file(EVALUATION)
    save_evaluation(path, before, after, truth, header, seeds=evaluator.seeds, student_sha256=sha256)
    if after.responses:
        write_answers(run.file(RESPONSES), kept_answers(judged))
    else:
        write_clips(run.file(CLIPS), kept_clips(judged), frame_rate(run.recipe) or DEFAULT_FPS)
    return write_report(run.file("report.html"), training_report(read_run(run.folder, run.step)))
