"""Run folders: opening them again, judging their student, writing their report, sampling from them.

RUN/recipe.yaml, RUN/student.safetensors, RUN/metrics.jsonl, RUN/evaluation.json, RUN/report.html.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from vidalign.bench.evaluation import (
    compare,
    ground_truth,
    held_out_prompts,
    judge_student,
    save_evaluation,
    student_generator,
)
from vidalign.bench.report import training_report
from vidalign.build import build_features, build_student
from vidalign.codecs import build_codec
from vidalign.engine import distributed
from vidalign.engine.rng import generator
from vidalign.errors import CheckpointError
from vidalign.provenance import describe_run, without_run_folder
from vidalign.recipe import load_recipe
from vidalign.report import EvaluationRow, write_report
from vidalign.students.video import VideoStudent, checkpoint
from vidalign.teachers.model import ModelTeacher
from vidalign.tracking.clips import write_clip
from vidalign.tracking.jsonl import read_records
from vidalign.tracking.table import evaluation_table

if TYPE_CHECKING:
    from vidalign.recipe import Recipe

STUDENT = "student.safetensors"


@dataclass
class FinishedRun:
    """A run folder opened for reading."""

    folder: Path
    recipe: Recipe
    student: VideoStudent


def open_run(folder: str | Path, overrides: Sequence[str] = ()) -> FinishedRun:
    """Open a finished run; raises `CheckpointError` naming what is missing."""
    folder = Path(folder)
    for name in ("recipe.yaml", STUDENT):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} is not a finished run", where=str(folder / name), why="there is no such file",
                fix="finish it with `vidalign train RECIPE --run RUN --resume`, or name another folder",
            )  # fmt: skip
    recipe = load_recipe(folder / "recipe.yaml", list(overrides))
    log = folder / "metrics.jsonl"
    if log.is_file():
        header = next(iter(read_records(log)), {})
        recipe.name = header.get("recipe", recipe.name)  # what it was called when it was trained
    return FinishedRun(folder, recipe, VideoStudent.load(folder / STUDENT, device=distributed.device()))


def generator_of(recipe: Recipe, student: VideoStudent) -> Callable[..., torch.Tensor]:
    """How the recipe's evaluation samples a network: the causal few-step sampler, or a teacher's Euler steps."""
    student = student.eval().to(distributed.device())
    codec = build_codec(student.spec.codec).to(student.device)
    features, frames = build_features(student.spec), recipe.evaluation.frames
    if recipe.evaluation.sampler == "causal":
        return student_generator(student, features, codec, frames)
    teacher = ModelTeacher(student, frames)

    def generate(prompts: list[str], generators: list[torch.Generator]) -> torch.Tensor:
        shape = (frames, *student.chunk_shape[1:])
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(student.device)
        return codec.decode(teacher.sample(noise, features(prompts).to(student.device)))

    return generate


def evaluate_run(
    folder: str | Path, overrides: Sequence[str] = (), *, console: Console | None = None
) -> list[EvaluationRow]:
    """Judge a run's student against the one it started from: a table, RUN/evaluation.json and RUN/report.html."""
    run = open_run(folder, overrides)
    recipe, settings = run.recipe, run.recipe.evaluation
    prompts = held_out_prompts(recipe)
    truth = ground_truth(prompts, settings.seeds, settings.frames)
    before = judge_student(generator_of(recipe, build_student(recipe)), prompts, settings.seeds)
    after = judge_student(generator_of(recipe, run.student), prompts, settings.seeds)
    judged = {"before": before, "after": after, "ground truth": truth}
    rows = compare(before, after, truth)
    header = describe_run(recipe)
    save_evaluation(run.folder / "evaluation.json", before, after, truth, header)
    path = write_report(run.folder / "report.html", training_report(run.folder, recipe, rows, judged, header))
    console = console or Console()
    title = f"{len(prompts)} held-out prompts x {settings.seeds} seeds, 95 % bootstrap intervals over prompts"
    for judge in dict.fromkeys(row.group for row in rows):
        console.print(evaluation_table([row for row in rows if row.group == judge], f"{judge} | {title}"))
    console.print(f"report: {path}")
    return rows


def export_run(folder: str | Path, out: Path, dtype: str = "float32") -> Path:
    """Write a run's student to one file, with what made it and the means of its evaluation in the metadata."""
    run = open_run(folder)
    _, metadata = checkpoint.read(run.folder / STUDENT)
    metadata = {k: without_run_folder(v) for k, v in metadata.items() if k not in ("spec", "format")}
    judged = run.folder / "evaluation.json"
    if judged.is_file():
        values = json.loads(judged.read_text(encoding="utf-8"))["values"]["after"]
        scores = {name: round(sum(v) / len(v), 4) for name, v in values.items()}
        metadata["scores"] = json.dumps(scores)
    run.student.to(getattr(torch, dtype)).save(out, metadata)
    return out


def sample_run(
    folder: str | Path, prompts: Sequence[str], out: Path, *, frames: int | None = None, seed: int = 0
) -> list[Path]:
    """Write a clip of every prompt with a run's student; several prompts get numbered files.

    The text encoder warns about words that it does not know. Raises `UserError` for an impossible length.
    """
    run = open_run(folder)
    student = run.student.eval()
    frames = frames or run.recipe.data.frames
    generate: Any = student_generator(student, build_features(student.spec), build_codec(student.spec.codec), frames)
    clips = generate(list(prompts), [generator(seed, "sample", 0, i) for i in range(len(prompts))])
    targets = [out] if len(prompts) == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(len(prompts))]
    return [write_clip(target, clip) for target, clip in zip(targets, clips, strict=True)]
