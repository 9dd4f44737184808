"""The student of a run, or one in a folder, in a form that others read, with what made it and its scores."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from vidalign.build import student_kind
from vidalign.errors import CheckpointError, UsageError, UserError, before_work, nearest
from vidalign.provenance import without_run_folder
from vidalign.reading import read_json
from vidalign.students.exchange import Leaving
from vidalign.students.hub import DESCRIPTION, is_student_folder, report_idle_adapter
from vidalign.students.kind import StudentKind
from vidalign.students.rounding import rounding
from vidalign.students.weights import header, kind_of, kinds
from vidalign.tracking.jsonl import read_records
from vidalign.workflows.opened import FINAL, FinishedRun, open_recipe, open_run, student_file
from vidalign.workflows.saved import Saved, held_out_score, save_adapter_at
from vidalign.workflows.start import started_student

ADAPTER = "adapter"
"""Folder of a run with its adapter."""


@dataclass(frozen=True)
class Exported:
    """What an export has written."""

    path: Path
    note: str = ""
    """What rounding has lost of the update; empty where nothing is rounded."""


def export_run(folder: str | Path, out: Path, dtype: str = "", saved: Saved = FINAL, form: str = "single") -> Exported:
    """Write the student of a run, or of a student's folder, to `out`.

    dtype: of the tensors, empty = as they are stored. form: one of the kind's `forms`. What made the student and the
    means of its own evaluation stand in the metadata. Raises `UsageError` for a form that it does not have, or that
    would not compute what was trained.
    """
    with leaving(folder, saved, form) as (kind, student):
        written = kind.export(student, form, out, dtype)
        rounded = dtype in ("bfloat16", "float16") and form != kind.adapter_form
        return Exported(written, _lost(folder, kind, student, dtype) if rounded and student.start else "")


def _lost(folder: str | Path, kind: type[StudentKind[Any, Any]], student: Leaving, dtype: str) -> str:
    """How much of the update is below what `dtype` resolves."""
    try:
        start = _goes_on_from(folder, kind) or dict(kind.tensors(student.start))
    except (UserError, OSError) as error:
        return f"how much of the update {dtype} loses was not measured: {student.start}: {error}"
    found = rounding(start, kind.tensors(student.path), getattr(torch, dtype))
    if found is None:
        return "the weights are those that training began with"
    return (
        f"{100 * found.lost:.1f} % of the update is lost by rounding to {dtype}, and what the file has of it is off by "
        f"{100 * found.error:.0f} % of its norm; float32 keeps it, and so does the adapter"
    )


def _goes_on_from(folder: str | Path, kind: type[StudentKind[Any, Any]]) -> dict[str, torch.Tensor]:
    """The weights that a run began with, where it went on from an adapter; else none."""
    recipe = None if is_student_folder(folder) else open_recipe(Path(folder), student_only=True)
    adapter = None if recipe is None else recipe.student.adapter
    if recipe is None or adapter is None or not adapter.start:
        return {}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / kind.saved
        file.parent.mkdir(parents=True, exist_ok=True)
        started_student(recipe).save(file)
        return dict(kind.tensors(file))


@contextmanager
def leaving(folder: str | Path, saved: Saved, form: str) -> Iterator[tuple[type[StudentKind[Any, Any]], Leaving]]:
    """The kind and the saved weights of what is exported; those of a checkpoint are written for as long as this
    lasts."""
    if is_student_folder(folder):
        kind = kinds()[kind_of(folder)]
        _check_form(kind, form)
        report_idle_adapter(folder)
        yield kind, Leaving(Path(folder))
        return
    run = open_run(folder, saved=saved, student_only=True)
    kind = student_kind(run.recipe)
    _check_form(kind, form)
    made, recipe = _made(run), run.recipe
    student = Leaving(student_file(run.folder), made, start="" if recipe.student.init else recipe.student.path)
    adapted = recipe.student.adapter is not None
    if run.checkpoint is None:
        yield kind, replace(student, adapter=run.folder / ADAPTER if adapted else None)
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        run.student.to(getattr(torch, recipe.trainer.save_dtype)).save(path / kind.saved)
        if adapted and form != "single":
            save_adapter_at(recipe, run.checkpoint, path / ADAPTER, trust=saved.trust)
        yield kind, replace(student, path=path / kind.saved, adapter=path / ADAPTER if adapted else None)


def made_of(folder: Path) -> dict[str, str]:
    """What is known of what made the student of a run, or of a student's folder."""
    if is_student_folder(folder):
        return {str(k): str(v) for k, v in read_json(folder / DESCRIPTION)["made"].items()}
    return _made(open_run(folder, student_only=True))


@before_work()
def _check_form(kind: type[StudentKind[Any, Any]], form: str) -> None:
    """The kind of student has that form."""
    if form not in kind.forms:
        near = nearest(form, kind.forms)
        raise UsageError(
            f"this student is not exported as {form!r}",
            where="--to",
            why=f"its forms are {', '.join(kind.forms)}",
            fix=f"did you mean {near!r}?" if near else "",
        )


def _made(run: FinishedRun) -> dict[str, str]:
    """What made the student, with the means of its own evaluation."""
    metadata = {k: without_run_folder(v) for k, v in _provenance(run).items()}
    judged = run.file("evaluation.json")
    return metadata | ({"scores": json.dumps(_scores(judged))} if judged.exists() else {})


def _provenance(run: FinishedRun) -> dict[str, str]:
    """What made the student: as its file says, or the log of the run with the step and the score of its weights."""
    if run.checkpoint is None:
        metadata = header(student_file(run.folder)).metadata
        return {k: v for k, v in metadata.items() if k not in ("spec", "format")}
    first = next(iter(read_records(run.folder / "metrics.jsonl")), {})
    score = held_out_score(run.checkpoint)
    own = {"step": str(run.step)} | ({} if score is None else {"held_out_score": f"{score:.4f}"})
    return {k: str(v) for k, v in first.items() if k not in ("kind", "step", "time")} | own


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
