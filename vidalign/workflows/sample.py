"""Clips or answers for prompts of one's own, of a run's student or of saved weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign.build import student_kind
from vidalign.engine import distributed
from vidalign.errors import before_work
from vidalign.students.hub import report_idle_adapter
from vidalign.students.weights import kind_of, kinds
from vidalign.workflows.opened import FINAL, load_student, load_student_of, open_recipe, student_file
from vidalign.workflows.saved import Saved
from vidalign.workflows.scaled import check_scale, scaled

if TYPE_CHECKING:
    import torch

    from vidalign.engine.config import Precision
    from vidalign.students.base import Student
    from vidalign.students.kind import StudentKind
    from vidalign.students.samples import SampleRequest, Samples


def sample_run(
    folder: str | Path,
    request: SampleRequest,
    *,
    precision: Precision | None = None,
    saved: Saved = FINAL,
    scale: float = 1.0,
    semi: Path | None = None,
) -> Samples:
    """Write what a run's student makes of a request; as long as in training where it gives no length.

    precision: that of the run's recipe unless given. scale: how much of its change the student has, added to the
    start weights or to the student of the run `semi`, see `vidalign.workflows.scaled`. Raises `UserError` for what the
    student cannot do, before its weights are loaded. The text encoder warns about words outside its vocabulary.
    """
    folder = Path(folder)
    check_scale(scale, "--scale")
    recipe = open_recipe(folder, saved=saved, student_only=True)
    kind = student_kind(recipe)
    request = kind.sampled_as(recipe.student, replace(request, latents=recipe.data.frames))
    spec = kind.read_spec(student_file(folder)) if saved.final else kind.spec(recipe.student)

    def load(dtype: torch.dtype | None) -> Student[Any]:
        report_rounding(dtype)
        student = load_student_of(folder, recipe, saved, dtype)
        if scale != 1 or semi is not None:
            scaled(folder, semi, saved).put(student, scale)
        return student

    return _write(kind, spec, request, precision or recipe.engine.precision, load)


def report_rounding(dtype: torch.dtype | None) -> None:
    """Warn that 16 bits may keep little of what a run has trained: small updates lie below what they resolve."""
    if dtype is not None and dtype.itemsize == 2:
        short = str(dtype).removeprefix("torch.")
        what = f"the trained weights are rounded to {short}, which keeps little of a small update"
        warnings.warn(f"{what}: `vidalign export --dtype {short}` measures how much, fp32 keeps all", stacklevel=3)


def sample_student(path: str, request: SampleRequest, *, precision: Precision = "auto") -> Samples:
    """Write what saved weights make of a request, by their path or shipped name. Raises `UserError` as `sample_run`."""
    with before_work():
        kind = kinds()[kind_of(path)]
        spec = kind.read_spec(path)
    report_idle_adapter(path)

    def load(dtype: torch.dtype | None) -> Student[Any]:
        return load_student(kind, path, dtype)

    return _write(kind, spec, request, precision, load)


def _write(
    kind: type[StudentKind[Any, Any]],
    spec: Any,
    request: SampleRequest,
    precision: Precision,
    load: Callable[[torch.dtype | None], Student[Any]],
) -> Samples:
    """Check, encode the prompts, and only then load the student: it is never in memory beside the text encoder."""
    with before_work():
        kind.check_samples(spec, request)
    features = kind.features(spec)
    if features is not None:
        features.prepare(request.texts)
    student = load(kind.sampling_dtype(distributed.resolve_precision(precision)))
    return kind.write_samples(student.eval(), request, features)
