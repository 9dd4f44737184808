"""What a chat template makes of a conversation: its text, and what it writes after an assistant's turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidalign.errors import UserError, first_line
from vidalign.reading import regular

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
    section: str = "student.chat"
    """Where the recipe says so."""

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
                where=f"{self.section}.template",
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
                where=f"{self.section}.template" if self.template else self.section,
                why=first_line(error),
                fix="check chat.template and chat.options",
            ) from error

    def check(self, system: Sequence[Mapping[str, Any]], user: Mapping[str, Any], says: str) -> None:
        """Raises `UserError` for a template that cannot write these turns, or leaves out what the system turn, if there
        is one, `says`."""
        self.text([user])
        if not system:
            return
        why = "it writes nothing of it"
        try:
            if says.strip() in self.text([*system, user]):
                return
        except UserError as error:
            why = error.problems[0].why
        raise UserError(
            "the chat template refuses a system turn",
            where=f"{self.section}.system",
            why=why,
            fix="leave chat.system empty and put its text into the prompts, or give another chat.template",
        )

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


def template_text(template: str, section: str = "student.chat") -> str:
    """A chat template as a recipe gives it: its text, or that of the file that it names. Raises `UserError` for one
    that is neither."""
    if not template or any(mark in template for mark in ("{{", "{%", "{#")):
        return template
    try:
        return regular(Path(template)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no chat template {template[:60]!r}",
            where=f"{section}.template",
            why=f"it holds no Jinja, such as {{{{ messages }}}}, and cannot be read as a file: {first_line(error)}",
            fix="give the text of a template, or the path of a file",
        ) from error
