"""Fills the page of `vidalign.report` from the files of one run, or of several side by side."""

from __future__ import annotations

import math
import shlex
from datetime import datetime

from vidalign.bench.suites.scores import suite_table
from vidalign.evaluation.comparison import compare
from vidalign.evaluation.evaluator import COMPOSITE, TRAINED, Evaluation
from vidalign.evaluation.intervals import estimate
from vidalign.report import (
    CellWarning,
    EvaluationRow,
    Hacking,
    Metric,
    Pair,
    Report,
    Row,
    Score,
    ShownAnswers,
    Table,
    TrainingPath,
)
from vidalign.report.charts import STEP_SECONDS, history_charts
from vidalign.report.text import duration
from vidalign.tracking.jsonl import History
from vidalign.workflows.run_files import RunFiles

HELD_OUT_CURVE, TRAINED_CURVE = "health/held_out/mean", "health/held_out_trained/mean"
PHASE_ORDER = ("collect", "judge", "student", "held_out")
HEADER = {"recipe", "seed", "step"}
"""Entries of a run's header that stand at the top of the page; the others stand beside the machine."""
CLIPS_NOTE = (
    "Sorted by how much the held-out score of a clip changed; best, median and worst are those of all prompts whose "
    "clips were kept."
)

ANSWERS_NOTE = "The first response to each example, graded; largest changes first."


def training_report(run: RunFiles) -> Report:
    """The page of one run."""
    charts, constant = history_charts(run.history)
    judged = run.judgement.judged if run.judgement else {}
    differences = differences_of(run)
    headline = headline_of(run)
    changed = [shown for shown in run.clips if math.isfinite(shown.change)]
    chosen = f" --step {run.step}" if run.step is not None else ""
    table = suite_table(run.folder, run.judgement.student_sha256) if run.judgement else None
    return Report(
        title=f"{run.objective} | {run.header.get('recipe', run.folder.name)}",
        result=result_of(run),
        summary=run.summary,
        facts=_facts(run),
        note=_note(run),
        leaderboard=False,
        rows=[row_of(name, name, evaluation) for name, evaluation in judged.items()],
        headline=headline if differences else None,
        baseline="before",
        pairs=[Pair("before", "after", differences)] if differences else [],
        hacking=hacking_of(headline, judged, paths_of(run.history, "after")) if differences else None,
        suites=table,
        curves=charts,
        constant=constant,
        prompts=changed or run.clips,
        prompts_note=CLIPS_NOTE if changed else "",
        fps=run.fps,
        answers=run.answers,
        answers_note=_answers_note(run.answers),
        warnings=run.warnings + missing_of(run),
        commands=[one for one in (run.command, f"vidalign evaluate --run {_place(run)}{chosen}") if one],
        texts={"Recipe": run.text},
        environment={k: v for k, v in run.header.items() if k not in {*HEADER, "command", "time"}},
        cost=cost_table([run]),
    )


def differences_of(run: RunFiles) -> list[EvaluationRow]:
    """After against before by every metric; none of a run that was not judged."""
    if run.judgement is None:
        return []
    judged = run.judgement.judged
    return compare(judged["before"], judged["after"], judged.get("ground truth"))


def headline_of(run: RunFiles) -> Metric | None:
    """The score that stands for all."""
    score = run.judgement.judged["after"].headline if run.judgement else None
    return Metric(*score) if score else None


def result_of(run: RunFiles) -> str:
    """What came out, in one sentence: gain, share of the gap, time, machine, seed."""
    headline = headline_of(run)
    named = {Metric(row.group, row.metric): row for row in differences_of(run)}
    row = named.get(headline) if headline else None
    machine = ", ".join(run.header.get("machine", "an unknown machine").split(", ")[:2])
    machine = machine.replace(", 1 threads", ", 1 thread")
    took = f"{duration(sum(run.starts))} on {machine}"
    if row is None or headline is None:
        return f"Not judged; {took}, seed {run.seed}."
    judge = headline.judge if headline.judge == TRAINED else f"held-out {headline.judge.removeprefix('held-out ')}"
    name = judge.replace("_", " ") + ("" if headline.name == COMPOSITE else f" ({headline.name.replace('_', ' ')})")
    low, high = row.interval
    doubt = {"unclear": "No clear change: ", "too few prompts": "From few prompts: "}.get(row.verdict, "")
    parts = [f"{doubt}{row.difference:+.3f} on the {name} (95 % interval {low:+.3f} to {high:+.3f})"]
    if row.gap_closed is not None and row.gap_closed > 0:
        parts.append(f"{100 * row.gap_closed:.0f} % of the gap to {row.goal_name}")
    return ", ".join([*parts, took, f"seed {run.seed}"]) + "."


def _facts(run: RunFiles) -> dict[str, str]:
    facts = {"date": _date(run), "wall time": duration(sum(run.starts))}
    facts |= {name: run.header[name] for name in ("recipe", "seed") if name in run.header}
    last = max((points[-1][0] for points in run.history.values()), default=0)
    facts["steps"] = f"{last} of {run.setting('trainer', 'steps') or last}"
    return facts | ({} if run.step is None else {"student of step": str(run.step)})


def _date(run: RunFiles) -> str:
    """When the run began, in UTC; earlier versions did not record it."""
    try:
        return datetime.fromisoformat(run.header["time"]).strftime("%Y-%m-%d %H:%M UTC")
    except (KeyError, ValueError):
        return "not recorded"


def _note(run: RunFiles) -> str:
    if run.judgement is None:
        return ""
    count, seeds = len(run.judgement.judged["after"].prompts), run.judgement.seeds
    each = "" if seeds is None else f", {seeds} {'responses' if run.judgement.texts else 'clips, same noise,'} each"
    unit = "examples" if run.judgement.texts else "prompts"
    return f"{count} held-out {unit}{each} before and after; 95 % intervals over {unit}."


def missing_of(run: RunFiles) -> list[CellWarning]:
    """What an unfinished run, or one of an earlier version, does not have."""
    again = f"`vidalign evaluate --run {_place(run)}` judges it and keeps clips"
    if run.judgement is None:
        return [CellWarning("this run has no judgement, so there are no scores and no clips", fix=again)]
    if run.judgement.texts and not run.answers:
        return [CellWarning("this run kept no responses", fix=again.replace("clips", "responses"))]
    if not run.clips and not run.judgement.texts:
        return [CellWarning("this run kept no clips", fix=again)]
    return []


def _answers_note(answers: list[ShownAnswers]) -> str:
    """How many answers changed, where a grader calls each right or wrong."""
    scores = [{answer.row: answer.score for answer in shown.answers} for shown in answers]
    pairs = [(one.get("before"), one.get("after")) for one in scores]
    if not pairs or any(score not in (0.0, 1.0) for pair in pairs for score in pair):
        return ANSWERS_NOTE
    right, wrong, stayed = (sum(pair == which for pair in pairs) for which in ((0, 1), (1, 0), (1, 1)))
    return (
        f"{ANSWERS_NOTE} Of {len(pairs)} answers, {right} became right, {wrong} became wrong, {stayed} stayed right "
        f"and {len(pairs) - right - wrong - stayed} wrong."
    )


def _place(run: RunFiles) -> str:
    """A run's folder as an argument, without local paths."""
    return shlex.quote(run.folder.name if run.folder.is_absolute() else str(run.folder))


def origin_of(run: RunFiles) -> str:
    """What made a run, in one line."""
    names = [name for name in ("recipe", "recipe_hash", "seed", "commit", "machine") if name in run.header]
    return " | ".join([_date(run), *(f"{name.replace('_', ' ')} {run.header[name]}" for name in names)])


def row_of(name: str, role: str, evaluation: Evaluation) -> Row:
    """A row with the mean of every metric and its interval; role: `after` is drawn as what was trained."""
    scores = {
        Metric(judge, metric): Score(float(values.nanmean()), estimate(values).interval)
        for (judge, metric), values in evaluation.metrics.items()
    }
    return Row(name, "objective" if role == "after" else "reference", scores)


def hacking_of(headline: Metric | None, judged: dict[str, Evaluation], paths: list[TrainingPath]) -> Hacking | None:
    """Only where something judges that is not trained on."""
    watched = headline is not None and headline.judge != TRAINED and (TRAINED, COMPOSITE) in judged["after"].metrics
    return Hacking(Metric(TRAINED, COMPOSITE), headline, paths) if headline and watched else None


def paths_of(history: History, row: str) -> list[TrainingPath]:
    """The scores that were measured during training, where both were."""
    trained, held_out = dict(history.get(TRAINED_CURVE, [])), dict(history.get(HELD_OUT_CURVE, []))
    steps = sorted(trained.keys() & held_out.keys())
    return [TrainingPath(row, [trained[s] for s in steps], [held_out[s] for s in steps])] if steps else []


def cost_table(runs: list[RunFiles], names: list[str] | None = None) -> Table:
    """Seconds of training and their parts, from the log."""
    names = names or ["this run"]
    columns = ["wall time", "starts", "steps", "a step", *PHASE_ORDER]
    rows: list[tuple[str, list[float | str]]] = []
    for name, run in zip(names, runs, strict=True):
        steps = [value for _, value in run.history.get(STEP_SECONDS, [])]
        whole = sum(steps)
        mean = f"{whole / len(steps):.2f} s" if steps else ""
        parts = [sum(v for _, v in run.history.get(f"perf/{phase}/seconds", [])) for phase in PHASE_ORDER]
        shares = [f"{100 * part / whole:.0f} %" if whole and part else "" for part in parts]
        rows.append((name, [duration(sum(run.starts)), str(len(run.starts)), str(len(steps)), mean, *shares]))
    note = "Wall time of training, and how much of the steps each part took; the judgement at the end is not in it."
    return Table("Cost", columns, rows, note)
