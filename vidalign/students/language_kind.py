"""The kind of student `language`, as the registry knows it: light, so that a recipe is checked without its network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign.students.language_config import LanguageSpec, is_transformers

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.language import LanguageStudent


class Language:
    """A causal language model, or an image-text-to-text model, of transformers."""

    spec_type = LanguageSpec
    makes = "texts"
    """What rewards have to judge."""

    @staticmethod
    def from_spec(spec: LanguageSpec, seed: int = 0) -> LanguageStudent:
        """See `LanguageStudent.from_spec`."""
        from vidalign.students.language import LanguageStudent

        return LanguageStudent.from_spec(spec, seed)

    @staticmethod
    def load(path: str | Path, **options: Any) -> LanguageStudent:
        """See `LanguageStudent.load`."""
        from vidalign.students.language import LanguageStudent

        return LanguageStudent.load(path, **options)

    @staticmethod
    def check(draft: Draft) -> None:
        """Refuse a recipe that does not fit the student."""
        from vidalign.recipe.typed import build
        from vidalign.students.checks import check_adapter, check_folder, check_weights

        student = draft.recipe.student
        if student.path and not student.init and Path(student.path).is_dir():
            check_folder(draft, student.path, "student.path")
        elif student.path and not student.init and not is_transformers(student.path):
            check_weights(draft, student.path, "student.path", "language")
        if student.init:
            build(LanguageSpec, draft.tree.value["student"].value["init"], "student.init", draft.problems)
        if student.cache:
            draft.refuse("a language student has no cache policy", "student.cache", "it is for videos", "delete it")
        check_adapter(draft, ())
