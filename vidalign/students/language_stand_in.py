"""Stand-ins for a language student: a tiny network whose calls are counted, and the real one without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vidalign.students.chat import TokenBatch, lengthen
from vidalign.students.language import LanguageStudent
from vidalign.students.language_checkpoint import chat_of, new_model, tokenizer_and_processor
from vidalign.students.language_config import LanguageSpec, Sampling

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


class Unloaded(LanguageStudent):
    """One on the meta device, where nothing can be sampled: every response is as long as it may be."""

    def generate(
        self, prompts: TokenBatch, generators: Sequence[torch.Generator] | None, sampling: Sampling | None = None
    ) -> TokenBatch:
        """A batch on the CPU of the right shape; the passes of the first and the last token are made."""
        rows, longest = len(prompts.ids), (sampling or self.spec.sampling).max_new_tokens
        past = self.model(
            input_ids=prompts.ids,
            attention_mask=prompts.mask.long(),
            use_cache=True,
            logits_to_keep=1,
            **prompts.inputs,
        ).past_key_values
        for layer in past.layers:
            if layer.keys is not None:
                room = (rows, layer.keys.shape[1], longest - 1, layer.keys.shape[3])
                layer.keys, layer.values = (torch.cat([x, x.new_empty(room)], 2) for x in (layer.keys, layer.values))
        mask = torch.ones(rows, prompts.ids.shape[1] + longest, dtype=torch.int64, device=self.device)
        self.model(input_ids=prompts.ids[:, :1], attention_mask=mask, past_key_values=past, use_cache=True)
        sampled = torch.zeros(rows, longest, dtype=torch.int64)
        response, logprobs = torch.ones(rows, longest, dtype=torch.bool), torch.zeros(rows, longest)
        ids = torch.cat([prompts.ids.cpu(), sampled], 1)
        whole = torch.cat([prompts.mask.cpu(), response], 1)
        return TokenBatch(ids, whole, response, lengthen(prompts.inputs, ids.shape), logprobs)


def unloaded(spec: LanguageSpec) -> LanguageStudent:
    """The student of `spec` with weights on the meta device, and its own tokenizer."""
    with torch.device("meta"):
        model = new_model(spec.config)
    return Unloaded(spec, model, *tokenizer_and_processor(spec.tokenizer, model.config))
