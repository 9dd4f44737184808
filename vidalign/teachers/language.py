"""A frozen language model as teacher: hidden states and logits over the student's own vocabulary."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidalign.errors import UserError
from vidalign.students.checks import check_folder, check_teacher_weights, written_config
from vidalign.students.common_tokens import common_entries, limit
from vidalign.students.language_config import ChatConfig, is_transformers
from vidalign.students.language_kind import Language, check_chat

if TYPE_CHECKING:
    from vidalign.data.source import PromptSource
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
        device: str = ""
        """Where its network lies and computes: `cpu`, `cuda` or `cuda:N`; empty: beside the student."""
        offload: bool = False
        """Its weights rest in host memory, and are on the device only while it scores. Results do not change."""
        dtype: Literal["", "float32", "bfloat16", "float16", "float64"] = ""
        """Type of its weights and of its computation; empty: as `engine.precision` says."""

    def __init__(self, model: LanguageStudent) -> None:
        from vidalign.teachers.placement import Placement  # torch, which a recipe's checks do not need

        self.model = model.eval().requires_grad_(False)
        self.placement = Placement()

    @classmethod
    def check(cls, draft: Draft) -> None:
        """Weights that vidalign saved can be read; a model of transformers is not opened. Tokens that are at hand are
        those of the student."""
        config = draft.settings("teacher", cls.Config)
        path = config.path
        if not path or not is_transformers(path):
            check_teacher_weights(draft, path, "language")
        elif Path(path).is_dir():
            check_folder(draft, path, "teacher.path")
        check_chat(draft, "teacher", path, lambda: Language.read_spec(path))
        _check_place(draft, config)
        _check_tokens(draft, path)

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: LanguageSpec) -> LanguageTeacher:
        from vidalign.students.language import LanguageStudent  # a network, which a recipe's checks do not need
        from vidalign.teachers.placement import check_device

        if config.device:
            check_device(config.device)
        model = LanguageStudent.load(config.path).configure(config.chat, section="teacher")
        if config.chat is not None:
            model.own_prompts = True
            model.chat.check()
        teacher = cls(model)
        teacher.place(config)
        return teacher

    def place(self, config: Config) -> None:
        """Where its network will lie, and its type; before an engine settles it there."""
        from vidalign.teachers.placement import Placement

        self.placement = Placement(config.device, config.offload, config.dtype)

    def fitted(self, prompts: PromptSource) -> PromptSource:
        """The prompts that it can read, where it has a chat of its own; see `fitting`."""
        from vidalign.students.lengths import fitting

        own = getattr(self.model, "own_prompts", False)
        return fitting(prompts, self.model.chat, self.model.spec.chat.long_prompts) if own else prompts

    def check_student(self, student: LanguageStudent) -> None:
        """Raises `UserError` unless both have the same tokens, since the teacher scores the student's own ids. Heads of
        other sizes are compared over the entries that both have, see `common_tokens`: both models are limited to them.
        """
        own, other = (model.chat.tokenizer.get_vocab() for model in (student, self.model))
        entries = common_entries(own, other, *(len(model.head_weight) for model in (student, self.model)))
        for model in (student, self.model):
            limit(model, entries)


def _check_place(draft: Draft, config: LanguageTeacher.Config) -> None:
    """A device can be named so; whether it is there is known where the run begins."""
    if config.device and not re.fullmatch(r"cpu|cuda(:\d+)?", config.device):
        why = "it is none of cpu, cuda and cuda:N"
        draft.refuse(f"the teacher cannot lie on {config.device!r}", "teacher.device", why, "use cuda:1, for example")
    if config.offload and config.device == "cpu":
        why = "its weights stay in host memory, with teacher.device: cpu"
        draft.refuse("teacher.offload has no use here", "teacher.offload", why, "delete one of the two")


def _check_tokens(draft: Draft, path: str) -> None:
    """Student and teacher share their tokens, where the files of both are at hand."""
    student = draft.recipe.student
    if not draft.sound("student") or not draft.sound("teacher"):
        return
    configs = [dict(student.init["config"]) if student.init else written_config(student.path), written_config(path)]
    sizes = [_entries(config) for config in configs]
    folders = any(Path(name).is_dir() for name in (path, student.path) if name)
    if None in sizes or (sizes[0] == sizes[1] and not folders):
        return
    from vidalign.students.language_checkpoint import chat_of

    try:
        words = [chat_of(spec).tokenizer.get_vocab() for spec in (Language.spec(student), Language.read_spec(path))]
    except UserError:
        return  # reported with the weights
    try:
        common_entries(*words, *sizes)
    except UserError as error:
        draft.refuse(error.problems[0].what, "teacher.path", error.problems[0].why, error.problems[0].fix)


def _entries(config: dict[str, Any]) -> int | None:
    """Entries of the head that a configuration of transformers describes; None where it does not say."""
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return size if isinstance(size, int) else None
