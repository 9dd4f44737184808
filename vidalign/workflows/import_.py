"""A public checkpoint made into a student, by the kind of student that knows its preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidalign import registry
from vidalign.errors import UsageError, before_work
from vidalign.recipe.schema import StudentChoice
from vidalign.students.exchange import Imported, ImportOptions
from vidalign.students.kind import StudentKind


def import_student(
    preset: str, checkpoint: str, out: Path, options: ImportOptions | None = None, kind: str = StudentChoice.name
) -> Imported:
    """Make the folder `out` of a public checkpoint, a file, folder or hub id, by a preset; returns what was made.

    kind: the kind of student that has such presets. Raises `UserError` before anything is written.
    """
    chosen: type[StudentKind[Any, Any]] = registry.get("students", kind)
    with before_work():
        if out.suffix == ".safetensors":
            raise UsageError(
                f"a student is imported into a folder, not {out.name!r}", where="--out", fix="name a folder"
            )
        return chosen.import_checkpoint(preset, checkpoint, out, options or ImportOptions())
