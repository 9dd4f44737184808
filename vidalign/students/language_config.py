"""What a recipe says about a language student: its specification, chat template and sampling; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidalign.errors import UserError
from vidalign.recipe.generation import ChatConfig as ChatConfig
from vidalign.recipe.generation import Sampling as Sampling
from vidalign.students.spec import StudentSpec

SHIPPED = ("world", "tokens", "rules", "pictures", "signs")
"""First parts of the names of shipped weights; other `owner/name`s are of the hub."""

SHIPPED_TOKENIZER = "tasks"
SHIPPED_TOKENIZERS = (SHIPPED_TOKENIZER, "rules", "signs")
BESIDE = "."
"""What stands for a tokenizer in the folder of the weights."""


@dataclass
class LanguageSpec(StudentSpec):
    """All of a student but its weights."""

    config: dict[str, Any]
    """The model's transformers configuration, with its `model_type`."""
    tokenizer: str = SHIPPED_TOKENIZER
    """Folder or hub name of tokenizer (and processor) files; `tasks` is the shipped one of the embedded worlds,
    `rules` and `signs` those of the rule and sign worlds, and `.` the folder of the weights."""
    stop: list[str] = field(default_factory=list)
    """Tokens that end every response, besides the tokenizer's end-of-text token."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """How a question becomes a conversation."""
    sampling: Sampling = field(default_factory=Sampling)
    """How responses are drawn, unless a call says otherwise."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LanguageSpec:
        """The spec of a recipe's `student.init` or of a file; `UserError` for a wrong key."""
        try:
            parts = dict(values)
            for name, kind in (("chat", ChatConfig), ("sampling", Sampling)):
                if name in parts:
                    parts[name] = kind(**parts[name])
            return cls(**parts)
        except TypeError as error:
            raise UserError(
                "the language student's specification cannot be read",
                where="student.init",
                why=str(error),
                fix="see LanguageSpec",
            ) from error


def is_transformers(path: str) -> bool:
    """Whether a path names a transformers model (a folder or a hub name) rather than weights saved by vidalign."""
    return Path(path).is_dir() or (not Path(path).is_file() and is_hub_name(path))


def is_hub_name(path: str) -> bool:
    """``owner/name`` as on the hub, and not the name of shipped weights."""
    owner, slash, name = path.partition("/")
    is_path = owner in ("", ".", "..") or "/" in name or name.endswith(".safetensors")
    return bool(slash and name) and not is_path and owner not in SHIPPED
