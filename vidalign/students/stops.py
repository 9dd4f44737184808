"""Tokens that end a response of a language student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidalign.errors import UserError
from vidalign.students.chat import ChatEncoder
from vidalign.students.language_config import LanguageSpec


def stop_ids_of(chat: ChatEncoder, spec: LanguageSpec) -> list[int]:
    """The tokenizer's end-of-text token, the template's end of a turn, and those of the spec; `UserError` when nothing
    would end a response."""
    own = [int(end) for end in (chat.tokenizer.eos_token_id, chat.end) if end is not None]
    ids = {*own, *token_ids(chat.tokenizer, spec.stop)}
    if not ids | {*token_ids(chat.tokenizer, spec.sampling.stop)}:
        raise UserError(
            "nothing ends a response",
            where="student.sampling.stop",
            why="the tokenizer has no end-of-text token, and the template ends no turn with a token",
            fix="name the tokens that do",
        )
    return sorted(ids)


def token_ids(tokenizer: Any, names: Sequence[str]) -> list[int]:
    """The ids of tokens by name; `UserError` for one that is not in the vocabulary."""
    known = tokenizer.get_vocab() if names else {}
    for name in names:
        if name not in known:
            raise UserError(
                f"the stop token {name!r} is not in the vocabulary",
                where="sampling.stop",
                fix="give one whole token of the tokenizer",
            )
    return [known[name] for name in names]
