"""The student of a run as one file with what made it and its scores."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import torch

from vidalign.errors import CheckpointError
from vidalign.provenance import without_run_folder
from vidalign.reading import read_json
from vidalign.students.weights import read
from vidalign.tracking.jsonl import read_records
from vidalign.workflows.opened import FINAL, STUDENT, FinishedRun, open_run
from vidalign.workflows.saved import Saved, held_out_score


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
        metadata = read(run.folder / STUDENT)[1]
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
            "the evaluation of the run cannot be read",
            where=str(file),
            why=str(error),
            fix="delete it, or write it again with `vidalign evaluate --run RUN`",
        ) from error
