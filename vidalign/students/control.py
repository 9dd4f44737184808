"""Control tokens that somebody typed: encoded as the text that they are, not as the token of that name.

Before the template is filled in, every control token in a user's text is replaced by a mark. In the conversation that
the template writes, each control token left is the template's own: it is replaced by an alias, and the marks by what
they stand for. A second tokenizer knows the control tokens by their aliases alone. So it reads the template's tokens
as ever, and the user's as ordinary text that merges with its neighbours. Marks and aliases are drawn at random, so
that nobody can type one.

`apply_chat_template(..., sanitize_control_tokens=True)` of later versions of transformers encodes the pieces apart.
That breaks words at the border of a token, and fails for tokenizers that have whole words.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from vidalign.errors import UserError


class TypedTokens:
    """What a tokenizer makes of texts in which some `tokens` were typed; `marked` texts go in, ids come out."""

    def __init__(self, tokenizer: Any, tokens: Iterable[str]) -> None:
        self.tokenizer = tokenizer
        key = secrets.token_hex(8)
        longest = sorted(set(tokens), key=lambda token: (-len(token), token))
        self._marks = {token: f"\ufdd0{key}m{n}\ufdd1" for n, token in enumerate(longest)}
        self._aliases = {token: f"\ufdd0{key}a{n}\ufdd1" for n, token in enumerate(longest)}
        self._folded = tuple({_folded(token) for token in longest})

    def __getattr__(self, name: str) -> Any:
        """Whatever else a processor asks of its tokenizer."""
        if name == "tokenizer" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def typed_in(self, text: str) -> bool:
        """Whether somebody typed such a token, in whatever form a normaliser of the tokenizer may bring it."""
        folded = _folded(text)
        return any(token in folded for token in self._folded)

    def marked(self, text: str) -> str:
        """A user's text with a mark in the place of every token."""
        return _replaced(text, self._marks)

    def unmarked(self, text: str) -> str:
        """The text that was typed."""
        return _replaced(text, {mark: token for token, mark in self._marks.items()})

    def __call__(self, text: str | Sequence[str], **options: Any) -> Any:
        """As the tokenizer: a conversation, or several, whose user's texts are `marked`."""
        texts = [text] if isinstance(text, str) else list(text)
        known = [self.unmarked(_replaced(one, self._aliases)) for one in texts]
        return self._second(known[0] if isinstance(text, str) else known, **options)

    @cached_property
    def _second(self) -> Any:
        """The tokenizer with other names for its control tokens, and the same ids."""
        from tokenizers import Tokenizer

        why = "the tokenizer is not one of the library tokenizers"
        if getattr(self.tokenizer, "is_fast", False):
            backend = self.tokenizer.backend_tokenizer
            second = copy.deepcopy(self.tokenizer)
            second._tokenizer = Tokenizer.from_str(json.dumps(_renamed(json.loads(backend.to_str()), self._aliases)))
            same = [second._tokenizer.token_to_id(self._aliases[t]) == backend.token_to_id(t) for t in self._aliases]
            if all(same):
                return second
            why = "the tokenizer gives tokens other numbers when they are renamed"
        raise UserError(
            "a control token that somebody typed cannot be read as text",
            where="student.chat.control_tokens",
            why=why,
            fix="take it out of the prompts, or use as_written",
        )


def control_tokens(tokenizer: Any, written: str, placeholders: Iterable[str | None] = ()) -> set[str]:
    """Tokens that are not text: the special ones, those that the template has `written`, and `placeholders` of
    pictures. Blanks are text, though some tokenizers add tokens for them."""
    added = tokenizer.added_tokens_decoder.values()
    names = {str(token) for token in added if token.special or str(token) in written}
    named = {token for token in placeholders if token and token in {str(one) for one in added}}
    return {name for name in names | named if name.strip()}


def _replaced(text: str, names: dict[str, str]) -> str:
    pattern = "|".join(map(re.escape, names))  # longest first, as they are listed
    return re.sub(pattern, lambda match: names[match[0]], text) if names else text


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _renamed(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The file of a tokenizer with other names for some tokens; nothing merges to one of them."""
    model = values["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif vocabulary:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        parts = ((pair, "".join(pair.split(" ") if isinstance(pair, str) else pair)) for pair in model["merges"])
        model["merges"] = [pair for pair, whole in parts if whole not in names]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    for token in values["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    return values | {"post_processor": None}
