"""Run folders: opening them again, judging their student, writing their report, sampling from them.

RUN/recipe.yaml, RUN/plugins.json, RUN/student.safetensors, RUN/metrics.jsonl, RUN/evaluation.json, RUN/report.html;
of the student in a checkpoint RUN/evaluation-step-N.json and RUN/report-step-N.html.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from vidalign import registry
from vidalign.bench.evaluation import (
    Evaluation,
    compare,
    ground_truth,
    held_out_prompts,
    judge_student,
    save_evaluation,
    student_generator,
)
from vidalign.bench.language import held_out_examples, judge_language
from vidalign.bench.training_report import training_report
from vidalign.build import LANGUAGE, build_features, build_student
from vidalign.codecs import build_codec
from vidalign.data.examples import Example
from vidalign.engine import distributed
from vidalign.engine.rng import generator
from vidalign.errors import CheckpointError, DataError, UsageError, before_work
from vidalign.plugins import load_plugins_of
from vidalign.provenance import describe_run, without_run_folder
from vidalign.reading import read_json, regular
from vidalign.recipe import load_recipe, load_student_recipe
from vidalign.report import EvaluationRow, write_report
from vidalign.saved import Saved, held_out_score, step_of, student_at
from vidalign.students.video import VideoStudent, checkpoint
from vidalign.teachers.model import ModelTeacher
from vidalign.tracking.clips import write_clip
from vidalign.tracking.jsonl import read_records
from vidalign.tracking.stages import Stage, counted, stages
from vidalign.tracking.table import evaluation_table

if TYPE_CHECKING:
    from vidalign.recipe import Recipe

STUDENT = "student.safetensors"
FINAL = Saved()


@dataclass
class FinishedRun:
    """A run folder opened for reading."""

    folder: Path
    recipe: Recipe
    student: Any
    """A `VideoStudent` or a `LanguageStudent`."""
    checkpoint: Path | None = None
    """Where the student comes from, if not from the end of the run."""
    step: int | None = None
    """Step of that checkpoint."""

    def file(self, name: str) -> Path:
        """A file about the student; those of other steps have other names."""
        path = self.folder / name
        return path if self.step is None else path.with_stem(f"{path.stem}-step-{self.step}")


def open_run(
    folder: str | Path, overrides: Sequence[str] = (), saved: Saved = FINAL, *, student_only: bool = False
) -> FinishedRun:
    """Open a run with the student that is meant; raises `CheckpointError` naming what is missing.

    student_only: its rewards, teacher and objective, and their plugins, are not asked for.
    """
    folder = Path(folder)
    check_finished(folder, saved)
    if student_only:
        recipe = load_student_recipe(folder / "recipe.yaml")
    else:
        load_plugins_of(folder)
        recipe = load_recipe(folder / "recipe.yaml", list(overrides))
    log = folder / "metrics.jsonl"
    if log.is_file():
        header = next(iter(read_records(log)), {})
        recipe.name = str(header.get("recipe", recipe.name))  # what it was called when it was trained
    if not saved.final:
        source = saved.checkpoint(folder)
        step = step_of(source)
        return FinishedRun(folder, recipe, student_at(recipe, source, trust=saved.trust), source, step)
    kind = registry.get("students", recipe.student.name)
    return FinishedRun(folder, recipe, kind.load(folder / STUDENT, device=distributed.device()))


@before_work()
def check_finished(folder: Path, saved: Saved = FINAL) -> None:
    """Raises `CheckpointError` unless the folder holds a recipe and the student that is meant."""
    for name in ("recipe.yaml", STUDENT) if saved.final else ("recipe.yaml",):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} is not a finished run", where=str(folder / name), why="there is no such file",
                fix="finish it with `vidalign train RECIPE --run RUN --resume`, take a student that it has saved with "
                "--best or --step N, or name another folder",
            )  # fmt: skip
    if not saved.final:
        saved.checkpoint(folder)


def generator_of(recipe: Recipe, student: VideoStudent) -> Callable[..., torch.Tensor]:
    """How the recipe's evaluation samples a network: the causal few-step sampler, or a teacher's own."""
    student = student.eval().to(distributed.device())
    codec = build_codec(student.spec.codec).to(student.device)
    features, frames = build_features(student.spec), recipe.evaluation.frames
    if recipe.evaluation.sampler == "causal":
        return student_generator(student, features, codec, frames)
    teacher = ModelTeacher(student, frames)

    def generate(prompts: list[str], generators: list[torch.Generator]) -> torch.Tensor:
        return codec.decode(teacher.sample(features(prompts).to(student.device), generators))

    return generate


def evaluate_run(
    folder: str | Path, overrides: Sequence[str] = (), *, saved: Saved = FINAL, console: Console | None = None
) -> list[EvaluationRow]:
    """Judge a run's student against the one it started from: a table, RUN/evaluation.json and RUN/report.html.

    A student of step N is judged into files of its own, evaluation-step-N.json and report-step-N.html.
    """
    run = open_run(folder, overrides, saved)
    recipe, console = run.recipe, console or Console()
    language = recipe.student.name == LANGUAGE
    with stages(recipe.tracking.panel, console) as stage:
        judged = _judge_answers(run, stage) if language else _judge_clips(run, stage)
        after = judged["after"]
        rows = compare(judged["before"], after, judged.get("ground truth"))
        done = stage("writing the report", 1)
        path = _write_judgement(run, rows, judged)
        done(1)
    asked = "examples" if language else "prompts"
    title = f"{len(after.prompts)} held-out {asked} x {recipe.evaluation.seeds} seeds"
    for judge in dict.fromkeys(row.group for row in rows):
        table = [row for row in rows if row.group == judge]
        console.print(evaluation_table(table, f"{judge} | {title}, 95 % bootstrap intervals over {asked}"))
    console.print(f"report: {path}")
    return rows


def _judge_clips(run: FinishedRun, stage: Stage) -> dict[str, Evaluation]:
    """Clips before and after training, and those of the ground truth where the world can judge."""
    recipe, settings = run.recipe, run.recipe.evaluation
    prompts = held_out_prompts(recipe)
    clips = len(prompts) * settings.seeds
    done = stage("judging the ground truth", clips)
    truth = ground_truth(prompts, settings.seeds, settings.frames)
    done(clips)
    if truth is None:
        what = "the evaluation prompts are no captions of the embedded world: the clips are in the report, unjudged"
        warnings.warn(f"{what} - data.eval_prompts - use world:held_out for scores", UserWarning, stacklevel=3)
    judged = {}
    for name, student in (("before", build_student(recipe)), ("after", run.student)):
        generate = counted(generator_of(recipe, student), stage(f"judging {name} training", clips))
        judged[name] = judge_student(generate, prompts, settings.seeds)
    return judged | ({"ground truth": truth} if truth else {})


def _judge_answers(run: FinishedRun, stage: Stage) -> dict[str, Evaluation]:
    """Answers of a language student before and after training."""
    recipe, settings = run.recipe, run.recipe.evaluation
    examples, judged = held_out_examples(recipe), {}
    for name, student in (("before", build_student(recipe).to(distributed.device())), ("after", run.student)):
        done = stage(f"judging {name} training", len(examples) * settings.seeds)
        judged[name] = judge_language(student, examples, settings.seeds, settings.temperature, done)
    return dict(judged)


def _write_judgement(run: FinishedRun, rows: list[EvaluationRow], judged: dict[str, Evaluation]) -> Path:
    """The evaluation and the report of a run's student; returns where the report is."""
    header = describe_run(run.recipe) | ({} if run.step is None else {"step": str(run.step)})
    before, after, truth = judged["before"], judged["after"], judged.get("ground truth")
    save_evaluation(run.file("evaluation.json"), before, after, truth, header)
    report = training_report(run.folder, run.recipe, rows, judged, header)
    return write_report(run.file("report.html"), report)


def export_run(folder: str | Path, out: Path, dtype: str = "float32", saved: Saved = FINAL) -> Path:
    """Write a run's student to one file, with what made it and the means of its own evaluation in the metadata."""
    run = open_run(folder, saved=saved, student_only=True)
    metadata = {k: without_run_folder(v) for k, v in _provenance(run).items()}
    judged = run.file("evaluation.json")
    if judged.exists():
        metadata["scores"] = json.dumps(_scores(judged))
    run.student.to(getattr(torch, dtype)).save(out, metadata)
    return out


def _provenance(run: FinishedRun) -> dict[str, str]:
    """What made the student: as its file says, or the log of the run with the step and the score of its weights."""
    if run.checkpoint is None:
        metadata = checkpoint.read(run.folder / STUDENT)[1]
        return {k: v for k, v in metadata.items() if k not in ("spec", "format")}
    header = next(iter(read_records(run.folder / "metrics.jsonl")), {})
    score = held_out_score(run.checkpoint, run.recipe)
    own = {"step": str(run.step)} | ({} if score is None else {"held_out_score": f"{score:.4f}"})
    return {k: str(v) for k, v in header.items() if k not in ("kind", "step", "time")} | own


def _scores(file: Path) -> dict[str, float]:
    """Means of the trained student in an evaluation.json."""
    try:
        values = read_json(file)["values"]["after"]
        return {name: round(fmean(x for x in v if x is not None), 4) for name, v in values.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            "the evaluation of the run cannot be read", where=str(file), why=str(error),
            fix="delete it, or write it again with `vidalign evaluate --run RUN`",
        ) from error  # fmt: skip


def sample_run(
    folder: str | Path,
    prompts: Sequence[str],
    out: Path,
    *,
    frames: int | None = None,
    seed: int = 0,
    images: Sequence[Path] = (),
    saved: Saved = FINAL,
) -> list[Path]:
    """Write a clip of every prompt with a run's student; several prompts get numbered files.

    A language student answers every prompt, shown all `images`, into one text file.

    The text encoder warns about words that it does not know. Raises `UserError` for an impossible length.
    """
    run = open_run(folder, saved=saved, student_only=True)
    student = run.student.eval()
    if run.recipe.student.name == LANGUAGE:
        return [_write_answers(student, prompts, out, seed, images)]
    _check_clip_name(out)
    frames = run.recipe.data.frames if frames is None else frames
    codec = build_codec(student.spec.codec)
    with before_work():
        generate: Any = student_generator(student, build_features(student.spec), codec, frames)
    clips = generate(list(prompts), [generator(seed, "sample", 0, i) for i in range(len(prompts))])
    targets = [out] if len(prompts) == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(len(prompts))]
    return [write_clip(target, clip) for target, clip in zip(targets, clips, strict=True)]


def _check_clip_name(out: Path) -> None:
    """The file's name says a format that clips are written in."""
    if out.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(
            f"unknown clip format '{out.suffix or out.name}'", where="--out",
            why="clips are written as animated GIF or as MP4", fix="end the file name in .gif or .mp4",
        )  # fmt: skip


def _write_answers(student: Any, prompts: Sequence[str], out: Path, seed: int, images: Sequence[Path]) -> Path:
    """Prompt and response of every prompt in one text file."""
    from PIL import Image

    try:
        pictures = tuple(Image.open(regular(path)).convert("RGB") for path in images)
    except OSError as error:
        raise DataError("a picture cannot be read", where="--image", why=str(error)) from error
    examples = [Example(prompt, images=pictures) for prompt in prompts]
    generators = [generator(seed, "sample", 0, i) for i in range(len(prompts))]
    texts = student.decode(student.generate(student.prompts(examples), generators))
    out.parent.mkdir(parents=True, exist_ok=True)
    regular(out).write_text("".join(f"{p}\n-> {t}\n" for p, t in zip(prompts, texts, strict=True)), encoding="utf-8")
    return out
