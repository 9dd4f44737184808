"""A stand-in for a language student with a tiny network: what an objective calls is counted without its weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from transformers import LlamaConfig, LlamaForCausalLM

from vidalign.students.language import LanguageStudent
from vidalign.students.language_checkpoint import tokenizer_and_processor
from vidalign.students.language_config import LanguageSpec

if TYPE_CHECKING:
    from vidalign.recipe.schema import StudentConfig

WIDTH, TOKENS = 8, 4
"""Hidden size of the stand-in, and the longest response that it samples: a response counts once, however long."""


class TinyModel(LlamaForCausalLM):  # type: ignore[misc]  # transformers is not typed
    """Reads token ids alone: pictures come in like any input and change nothing."""

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Inputs of every processor are welcome."""


def stand_in(spec: LanguageSpec, config: StudentConfig) -> LanguageStudent:
    """A student with the tokenizer of `spec`, and the chat and sampling that a recipe names."""
    tokenizer, processor = tokenizer_and_processor(
        spec.tokenizer, SimpleNamespace(vision_config=spec.config.get("vision_config"))
    )
    model = TinyModel(
        LlamaConfig(
            vocab_size=max(len(tokenizer), 1 + max(tokenizer.get_vocab().values())),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    sampling = config.sampling or spec.sampling
    small = replace(spec, chat=config.chat or spec.chat, sampling=replace(sampling, max_new_tokens=TOKENS))
    return LanguageStudent(small, model, tokenizer, processor)
