"""What a chat template makes of a conversation: its text, and what it writes after an assistant's turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidalign.errors import UserError, first_line

SAID = "vidalign0said0this"
"""Stands for an assistant's text, to see what a template writes behind it; neither markup nor blank."""


@dataclass(frozen=True)
class Turns:
    """The chat template of one model with the variables that it is given."""

    source: Any
    """The tokenizer, or the processor of a vision-language model."""
    template: str = ""
    """Text of a Jinja template; empty: that of `source`."""
    options: Mapping[str, Any] | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a template at all."""
        return bool(self.template or self.source.chat_template)

    def text(self, turns: Sequence[Mapping[str, Any]], begun: bool = True) -> str:
        """The conversation in text; begun: with the marker of the assistant's turn behind it.

        Raises `UserError` for a conversation that the template refuses, or where there is no template.
        """
        if not self.exists:
            raise UserError(
                "the tokenizer has no chat template",
                where="student.chat.template",
                why="base models come without one",
                fix="give chat.template, or use an instruction-tuned model",
            )
        own = {"chat_template": self.template} if self.template else {}
        options = {"tokenize": False, "add_generation_prompt": begun, **own, **(self.options or {})}
        try:
            return str(self.source.apply_chat_template(list(turns), **options))
        except Exception as error:  # a template is a program of somebody else
            raise UserError(
                "the chat template cannot write the conversation",
                where="student.chat",
                why=first_line(error),
                fix="check chat.template, chat.system and chat.options",
            ) from error

    def answered(self, user: Mapping[str, Any], said: Any) -> str:
        """A conversation with an assistant's turn in it; `said`: a content that holds `SAID`. Empty where there is no
        template, or where it writes no such turn."""
        if not self.exists:
            return ""
        try:
            text = self.text([user, {"role": "assistant", "content": said}], begun=False)
        except UserError:
            return ""
        return text if SAID in text else ""
