"""What a recipe says about a language student: its specification, chat template and sampling; no torch."""

from __future__ import annotations

import string
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vidalign.errors import UserError

SHIPPED = ("world", "tokens", "pictures")
"""First parts of the names of shipped weights; other `owner/name`s are of the hub."""


@dataclass
class ChatConfig:
    """How a question becomes a conversation."""

    system: str = ""
    """System turn; empty: none."""
    privileged: str = "{prompt}\n\n{privileged}"
    """User turn of a privileged policy."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further variables of the model's chat template, such as `enable_thinking: false`."""

    def __post_init__(self) -> None:
        names = sorted(name for _, name, _, _ in string.Formatter().parse(self.privileged) if name is not None)
        if names != ["privileged", "prompt"]:
            raise UserError(
                f"the privileged turn {self.privileged!r} cannot be filled in", where="chat.privileged",
                why=f"it names {', '.join(names) or 'nothing'}", fix="use {prompt} and {privileged}, once each",
            )  # fmt: skip


@dataclass
class Sampling:
    """How responses are drawn."""

    max_new_tokens: int = 256
    """Longest response in tokens, the stop token included."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that hold this much probability (nucleus sampling)."""
    top_k: int = 0
    """Draw among this many likeliest tokens; 0: among all."""
    stop: list[str] = field(default_factory=list)
    """Tokens that end a response, besides the model's own end-of-text tokens."""

    def __post_init__(self) -> None:
        checks = {"max_new_tokens": self.max_new_tokens >= 1, "temperature": self.temperature >= 0,
                  "top_p": 0 < self.top_p <= 1, "top_k": self.top_k >= 0}  # fmt: skip
        for name, good in checks.items():
            if not good:
                raise UserError(f"{name} is {getattr(self, name)}", where=f"sampling.{name}",
                                fix="see the ranges in `Sampling`")  # fmt: skip


@dataclass
class LanguageSpec:
    """All of a student but its weights."""

    config: dict[str, Any]
    """The model's transformers configuration, with its `model_type`."""
    tokenizer: str = "tasks"
    """Folder or hub name of tokenizer (and processor) files; `tasks` is the shipped one of the embedded worlds."""
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
            raise UserError("the language student's specification cannot be read", where="student.init",
                            why=str(error), fix="see LanguageSpec") from error  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_transformers(path: str) -> bool:
    """Whether a path names a transformers model (a folder or a hub name) rather than weights saved by vidalign."""
    return Path(path).is_dir() or (not Path(path).is_file() and is_hub_name(path))


def is_hub_name(path: str) -> bool:
    """``owner/name`` as on the hub, and not the name of shipped weights."""
    owner, slash, name = path.partition("/")
    is_path = owner in ("", ".", "..") or "/" in name or name.endswith(".safetensors")
    return bool(slash and name) and not is_path and owner not in SHIPPED
