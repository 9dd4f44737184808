"""Students and teachers whose heads have different sizes over one tokenizer.

Published models pad their heads: over the 151,665 tokens of Qwen2.5 the head of the 7B model has 152,064 entries, that
of the 1.5B model 151,936. Entries beyond the smaller head belong to no token of both. So the two are compared over the
first ``min`` entries, and both distributions are normalised over these: in losses, in statistics and in rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vidalign.errors import UserError

if TYPE_CHECKING:
    from vidalign.students.language import LanguageStudent

WHAT = "student and teacher have other vocabularies"
FIX = "use a teacher with the student's tokenizer"


def common_entries(own: Mapping[str, int], other: Mapping[str, int], size: int, other_size: int) -> int:
    """Number of entries of the vocabulary that student and teacher share: that of the smaller head.

    own, other: token to id, of the student's and of the teacher's tokenizer; size, other_size: entries of their heads.
    Raises `UserError` unless both have the same tokens at the same ids below that number. The student has no token
    beyond it, since the teacher could not read it. The teacher may have further ones: the student never writes them.
    """
    entries = min(size, other_size)
    parts = [{(at, token) for token, at in tokens.items() if at < entries} for tokens in (own, other)]
    if differing := parts[0] ^ parts[1]:
        token = min(differing)[1]
        places = (f"the {who} has {_at(tokens, token)}" for who, tokens in (("student", own), ("teacher", other)))
        why = f"{len({token for _, token in differing})} tokens differ: of {token!r} {', '.join(places)}"
        raise UserError(WHAT, where="teacher.path", why=why, fix=FIX)
    if beyond := sorted((at, token) for token, at in own.items() if at >= entries):
        why = (
            f"the teacher's head ends at {entries} entries, and the student's {beyond[0][1]!r} is token {beyond[0][0]}"
        )
        raise UserError(WHAT, where="teacher.path", why=why, fix=FIX)
    return entries


def _at(tokens: Mapping[str, int], token: str) -> str:
    return f"id {tokens[token]}" if token in tokens else "none"


def limit(model: LanguageStudent, entries: int) -> None:
    """From now on the vocabulary of `model` is its first so many entries: of `project` and `distil`, and of what it
    draws. Weights stay as they are; the rows of the head beyond get no gradient."""
    if entries >= model.head_weight.shape[0]:
        return

    def cut(module: Any, inputs: Any, output: Any) -> Any:
        output.logits = output.logits[..., :entries]
        return output

    model.entries = entries
    model.model.register_forward_hook(cut)
