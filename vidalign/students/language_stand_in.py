"""A stand-in for a language student with a tiny network: what an objective calls is counted without its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from vidalign.students.language import LanguageStudent
from vidalign.students.language_checkpoint import chat_of
from vidalign.students.language_config import LanguageSpec

WIDTH, TOKENS = 8, 4
"""Hidden size of the stand-in, and the longest response that it samples: a response counts once, however long."""
CONTEXT = 2**20
"""Prompts of any length are counted."""


class TinyModel(LlamaForCausalLM):  # type: ignore[misc]  # transformers is not typed
    """Reads token ids alone: pictures come in like any input and change nothing."""

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Inputs of every processor are accepted."""


def stand_in(spec: LanguageSpec) -> LanguageStudent:
    """A student with the tokenizer, the chat and the sampling of `spec`."""
    chat = chat_of(spec)
    tokenizer = chat.tokenizer
    model = TinyModel(
        LlamaConfig(
            vocab_size=max(len(tokenizer), 1 + max(tokenizer.get_vocab().values())),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=CONTEXT,
        )
    )
    small = replace(
        spec,
        chat=replace(spec.chat, max_prompt_length=None),
        sampling=replace(spec.sampling, max_new_tokens=TOKENS),
    )
    return LanguageStudent(small, model, tokenizer, chat.processor)
