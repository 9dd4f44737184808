"""Run folders, opened for reading: a recipe and the student that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign import registry
from vidalign.build import student_kind
from vidalign.engine import distributed
from vidalign.errors import CheckpointError, UsageError, before_work
from vidalign.plugins import load_plugins_of
from vidalign.recipe import Recipe, load_recipe, load_student_recipe
from vidalign.recipe.load import written
from vidalign.students.weights import kinds
from vidalign.tracking.jsonl import read_records
from vidalign.workflows.run_files import file_of
from vidalign.workflows.saved import Saved, step_of, student_at

if TYPE_CHECKING:
    import torch

    from vidalign.students.base import Student
    from vidalign.students.kind import StudentKind

STUDENT = "student.safetensors"
FINAL = Saved()


@dataclass
class FinishedRun:
    """A run folder opened for reading."""

    folder: Path
    recipe: Recipe
    student: Student[Any]
    checkpoint: Path | None = None
    """Where the student comes from, if not from the end of the run."""
    step: int | None = None
    """Step of that checkpoint."""

    def file(self, name: str) -> Path:
        """A file about the student; those of other steps have other names."""
        return file_of(self.folder, name, self.step)


def open_run(
    folder: str | Path, overrides: Sequence[str] = (), saved: Saved = FINAL, *, student_only: bool = False
) -> FinishedRun:
    """Open a run with the student that is meant; raises `CheckpointError` naming what is missing.

    student_only: its rewards, teacher and objective, and their plugins, are not loaded.
    """
    folder = Path(folder)
    recipe = open_recipe(folder, overrides, saved, student_only=student_only)
    source = None if saved.final else saved.checkpoint(folder)
    step = None if source is None else step_of(source)
    return FinishedRun(folder, recipe, load_student_of(folder, recipe, saved), source, step)


def open_recipe(
    folder: Path, overrides: Sequence[str] = (), saved: Saved = FINAL, *, student_only: bool = False
) -> Recipe:
    """The recipe of a run, with its plugins loaded; see `open_run`."""
    check_finished(folder, saved)
    if student_only:
        if written(folder / "recipe.yaml", [], "student", "name") not in registry.names("students"):
            load_plugins_of(folder)  # the student itself is one
        recipe = load_student_recipe(folder / "recipe.yaml")
    else:
        load_plugins_of(folder)
        recipe = load_recipe(folder / "recipe.yaml", list(overrides))
        if any(word.lstrip("~").startswith("student") for word in overrides):
            _check_same_student(recipe, load_recipe(folder / "recipe.yaml", []))
    log = folder / "metrics.jsonl"
    if log.is_file():
        header = next(iter(read_records(log)), {})
        recipe.name = str(header.get("recipe", recipe.name))  # what it was called when it was trained
    return recipe


@before_work()
def _check_same_student(changed: Recipe, own: Recipe) -> None:
    """Refuse changes that the saved student does not follow, because its own file says how it samples.

    Where its files lie and how it computes may change: the specification stays the same.
    """
    before, after = (student_kind(recipe).spec(recipe.student) for recipe in (own, changed))
    same_kind = type(before) is type(after)
    differ = [one.name for one in fields(before) if same_kind and getattr(before, one.name) != getattr(after, one.name)]
    if not same_kind or differ:
        raise UsageError(
            "a run's student is judged as it was trained, its specification cannot be changed",
            where=", ".join(f"student.{name}" for name in differ) or "student.name",
            fix="leave the change out; a recipe whose student.path is this student may change it",
        )


def load_student_of(
    folder: Path, recipe: Recipe, saved: Saved = FINAL, dtype: torch.dtype | None = None
) -> Student[Any]:
    """The student of a run that is meant, on this process' device; dtype: of its weights, None = as they are saved.

    Raises `CheckpointError`.
    """
    if saved.final:
        return load_student(student_kind(recipe), student_file(folder), dtype)
    source = saved.checkpoint(folder)
    step_of(source)  # raises for one that is not intact
    found: Student[Any] = student_at(recipe, source, trust=saved.trust)
    return found if dtype is None else found.to(dtype)


def load_student(kind: type[StudentKind[Any, Any]], path: str | Path, dtype: torch.dtype | None = None) -> Student[Any]:
    """Saved weights on this process' device; dtype: see `load_student_of`."""
    options = {} if dtype is None else {"dtype": dtype}
    student: Student[Any] = kind.load(path, device=distributed.device(), **options)
    return student


def student_file(folder: Path) -> Path:
    """The weights of a run's student, where its kind keeps them; those of older runs lie in the run's folder."""
    places = [folder / kind.saved for kind in kinds().values()]
    return next((place for place in places if place.is_file()), folder / STUDENT)


@before_work()
def check_finished(folder: Path, saved: Saved = FINAL) -> None:
    """Raises `CheckpointError` unless the folder holds a recipe and the student that is meant."""
    for file in (folder / "recipe.yaml", student_file(folder)) if saved.final else (folder / "recipe.yaml",):
        if not file.is_file():
            raise CheckpointError(
                f"{folder} is not a finished run",
                where=str(file),
                why="there is no such file",
                fix="finish it with `vidalign train RECIPE --run RUN --resume`, take a student that it has saved with "
                "--best or --step N, or name another folder; see docs/troubleshooting.md",
            )
    if not saved.final:
        saved.checkpoint(folder)
