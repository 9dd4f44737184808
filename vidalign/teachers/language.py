"""A frozen language model as teacher: hidden states and logits over the student's own vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidalign.errors import UserError
from vidalign.students.checks import check_teacher_weights, written_config
from vidalign.students.language_config import ChatConfig, is_transformers
from vidalign.students.language_kind import Language, check_chat

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.language import LanguageStudent
    from vidalign.students.language_config import LanguageSpec


class LanguageTeacher:
    """A frozen language model. Offers ``logits``, of ``model``: `compose`, `response_hidden`, `project`."""

    offers = ("logits",)

    @dataclass
    class Config:
        path: str = ""
        """Weights: a safetensors file, a shipped name such as `tokens/teacher`, or the folder or hub name of a
        transformers model."""
        chat: ChatConfig | None = None
        """How its prompts are written, where that is not as the student's: by its own chat template, or that which is
        given here, with these settings alone. The tokens of the response are the same."""

    def __init__(self, model: LanguageStudent) -> None:
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def check(cls, draft: Draft) -> None:
        """Weights that vidalign saved can be read; a model of transformers is not opened."""
        path = draft.settings("teacher", cls.Config).path
        if not path or not is_transformers(path):
            check_teacher_weights(draft, path, "language")
        check_chat(draft, "teacher", path, lambda: Language.read_spec(path))
        student = draft.recipe.student
        expected, actual = (written_config(p).get("vocab_size") for p in ("" if student.init else student.path, path))
        if expected and actual and expected != actual:
            draft.refuse(
                "student and teacher have other vocabularies",
                "teacher.path",
                f"{expected} and {actual} entries",
                "use a teacher of the same model family",
            )

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: LanguageSpec) -> LanguageTeacher:
        from vidalign.students.language import LanguageStudent  # a network, which a recipe's checks do not need

        model = LanguageStudent.load(config.path).configure(config.chat, section="teacher")
        if config.chat is not None:
            model.own_prompts = True
            model.chat.check()
        return cls(model)

    def check_student(self, student: LanguageStudent) -> None:
        """Raises `UserError` unless both have the same tokens and heads with as many entries. The teacher scores tokens
        by the student's own ids."""
        own, other = (model.chat.tokenizer.get_vocab() for model in (student, self.model))
        if own != other:
            raise UserError(
                "student and teacher have other vocabularies",
                where="teacher.path",
                why=f"{len(own.items() ^ other.items())} tokens differ",
                fix="use a teacher of the same model family",
            )
        expected, actual = student.lm_head.out_features, self.model.lm_head.out_features
        if expected != actual:
            raise UserError(
                "student and teacher have heads of different sizes",
                where="teacher.path",
                why=f"{expected} and {actual} entries, padding included",
                fix="use a teacher of the same model family",
            )
