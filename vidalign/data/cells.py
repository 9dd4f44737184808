"""What the cells of a table mean: texts, and conversations as prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
"""Other names of the roles of a conversation."""


def text_of(value: Any) -> str:
    """A cell as text: strings and numbers as they are written, nothing for None, other values as JSON writes them."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


@dataclass(frozen=True)
class Asked:
    """What a cell asks: the last user turn, the turns before it, and an answer that follows it."""

    prompt: str
    before: tuple[tuple[str, str], ...] = ()
    response: str = ""


def question(value: Any) -> Asked:
    """A prompt, or a conversation ``[{"role": ..., "content": ...}, ...]`` (also ``from`` and ``value``).

    A conversation ends with the user's turn, or with one answer to it. Raises `ValueError` saying what is wrong.
    """
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        return _conversation([_turn(turn) for turn in value])
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"the prompt is empty: {value!r}")
    if not isinstance(value, str):
        raise ValueError(f"it is neither a text nor a conversation: {str(value)[:60]}")
    return Asked(value)


UTF_8 = "write it in UTF-8"


def half_characters(text: str) -> str:
    """What is wrong with a text that no encoding can hold, such as one read in the wrong encoding; '' for others."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"it holds half a character, {text[error.start]!r}"
    return ""


def _conversation(turns: Sequence[tuple[str, str]]) -> Asked:
    response = ""
    if turns[-1][0] == "assistant":
        response, turns = turns[-1][1], turns[:-1]
    if not turns or turns[-1][0] != "user":
        raise ValueError("the conversation has no last turn of the user")
    return Asked(turns[-1][1], tuple(turns[:-1]), response)


def _turn(turn: Mapping[str, Any]) -> tuple[str, str]:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    if not isinstance(role, str) or not isinstance(content, str) or not content.strip():
        raise ValueError(f"a turn of the conversation has no role or no text: {str(dict(turn))[:60]}")
    return ROLES.get(role, role), content
