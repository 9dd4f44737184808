"""The kind of student `language`, as the registry knows it: light, so that a recipe is checked without its network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign.students.language_config import LanguageSpec, is_transformers

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.recipe.schema import StudentConfig
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
    def stand_in(config: StudentConfig) -> tuple[LanguageStudent, None, None]:
        """A tiny student with the real one's tokenizer, chat and sampling and random weights; it has neither prompt
        features nor a codec. No weights are read."""
        from vidalign.students.language_stand_in import stand_in

        return stand_in(config), None, None

    @staticmethod
    def check(draft: Draft) -> None:
        """Refuse a recipe that does not fit the student."""
        from vidalign.data.source import find_source
        from vidalign.recipe.prompts import sources
        from vidalign.recipe.typed import build
        from vidalign.students.checks import check_adapter, check_folder, check_weights, written_layers

        student = draft.recipe.student
        if student.path and not student.init and Path(student.path).is_dir():
            check_folder(draft, student.path, "student.path")
        elif student.path and not student.init and not is_transformers(student.path):
            check_weights(draft, student.path, "student.path", "language")
        if student.init:
            build(LanguageSpec, draft.tree.value["student"].value["init"], "student.init", draft.problems)
        if student.cache:
            draft.refuse("a language student has no cache policy", "student.cache", "it is for videos", "delete it")
        check_adapter(draft, [] if student.init else written_layers(student.path))
        if _is_blind(draft):
            for key, source in sources(draft).items():
                if find_source(source)[0].brings_pictures:
                    draft.refuse(
                        "the student cannot see pictures",
                        key,
                        "it is a causal language model",
                        "use a vision-language model, or prompts without pictures",
                    )


def _is_blind(draft: Draft) -> bool:
    """Whether the student is known to be a plain language model, by its header, folder or `init`."""
    from vidalign.students.checks import written_config

    student = draft.recipe.student
    config = student.init.get("config") if student.init else written_config(student.path)
    return isinstance(config, dict) and bool(config) and config.get("vision_config") is None
