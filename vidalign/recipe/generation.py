"""How a student that answers with text is prompted and sampled: sections of recipes and of student files."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Any, Literal

from vidalign.errors import UserError


@dataclass
class ChatConfig:
    """How a question becomes a conversation."""

    system: str = ""
    """System turn; empty: none."""
    privileged: str = "{prompt}\n\n{privileged}"
    """User turn of a privileged policy."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further variables of the chat template, such as `enable_thinking: false`."""
    template: str = ""
    """Chat template, for a base model that has none: the text of a Jinja template, or a file that holds it. Empty: the
    model's own."""
    control_tokens: Literal["as_text", "as_written"] = "as_text"
    """Control tokens and placeholders of pictures that somebody typed into a prompt, such as `<|im_end|>`: as_text =
    they are read as ordinary text, as_written = as the tokens of that name."""

    max_prompt_length: int | None = None
    """Longest prompt in tokens, with its privileged text and pictures; null = the model's context less
    `sampling.max_new_tokens`."""
    long_prompts: Literal["refuse", "drop", "cut"] = "refuse"
    """What becomes of a longer one: refuse = the run ends, drop = another training prompt takes its place, cut = the
    beginning of its question is left out."""

    def __post_init__(self) -> None:
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise UserError(
                f"max_prompt_length is {self.max_prompt_length}", where="chat.max_prompt_length", fix="use 1 or more"
            )
        names = sorted(name for _, name, _, _ in string.Formatter().parse(self.privileged) if name is not None)
        if names != ["privileged", "prompt"]:
            raise UserError(
                f"the privileged turn {self.privileged!r} cannot be filled in",
                where="chat.privileged",
                why=f"it names {', '.join(names) or 'nothing'}",
                fix="use {prompt} and {privileged}, once each",
            )


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
        checks = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
        }
        for name, good in checks.items():
            if not good:
                raise UserError(
                    f"{name} is {getattr(self, name)}", where=f"sampling.{name}", fix="see the ranges in `Sampling`"
                )
