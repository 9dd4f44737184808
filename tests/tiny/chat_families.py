"""Tokenizers and chat templates with the shapes of public model families, and tiny models that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

CORPUS = [
    "Solve the equation step by step and write the answer.",
    "What is the sum of two numbers? Let us think. x = 4",
    "The quick brown fox jumps over the lazy dog 0123456789 + - = * / ( ) { } [ ] < > | _",
] * 20
BEGUN = "{% if add_generation_prompt %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    + BEGUN
    + "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}" + BEGUN + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}" + BEGUN + "<start_of_turn>model\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
ROLES = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    + BEGUN
    + "<|assistant|>\n{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + BEGUN + "assistant:{% endif %}"


class Family(NamedTuple):
    """Special tokens, those that begin and end a text and pad, the template, the token that ends a turn."""

    specials: list[str]
    begin: str | None
    end: str
    pad: str | None
    template: str
    turn_end: str
    pieces: str = "bytes"
    """bytes: byte-level BPE; spaces: BPE of SentencePiece, a space is a mark; unigram: its other model."""
    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""


FAMILIES = {
    "qwen": Family(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        None,
        "<|im_end|>",
        "<|endoftext|>",
        CHATML,
        "<|im_end|>",
        plain=("<think>", "</think>"),
    ),
    "llama": Family(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        None,
        HEADERS,
        "<|eot_id|>",
    ),
    "gemma": Family(
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<eos>",
        "<pad>",
        TURNS,
        "<end_of_turn>",
        "spaces",
        ("\n\n",),
    ),
    "mistral": Family(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", None, BRACKETS, "</s>", "spaces"),
    "phi": Family(
        ["<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"],
        "<s>",
        "<|endoftext|>",
        "<|endoftext|>",
        ROLES,
        "<|end|>",
    ),
    "gpt2": Family(["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>", None, PLAIN, "<|endoftext|>"),
    "unigram": Family(
        ["<pad>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        None,
        "</s>",
        "<pad>",
        ROLES,
        "<|end|>",
        "unigram",
    ),
}


def tokenizer(name: str, template: bool = True) -> PreTrainedTokenizerFast:
    """The tokenizer of a family, trained on a few sentences."""
    family = FAMILIES[name]
    made = PreTrainedTokenizerFast(
        tokenizer_object=_trained(family),
        bos_token=family.begin,
        eos_token=family.end,
        pad_token=family.pad,
        unk_token="<unk>" if "<unk>" in family.specials else None,
        additional_special_tokens=family.specials,
    )
    made.add_tokens(list(family.plain))
    if template:
        made.chat_template = family.template
    return made


def _trained(family: Family) -> Tokenizer:
    if family.pieces == "bytes":
        tok = Tokenizer(models.BPE())
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tok.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=340, special_tokens=family.specials, initial_alphabet=alphabet, show_progress=False
        )
    elif family.pieces == "spaces":
        tok = Tokenizer(models.BPE(unk_token="<unk>" if "<unk>" in family.specials else None))
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tok.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(
            vocab_size=200, special_tokens=family.specials, initial_alphabet=["\n"], show_progress=False
        )
    else:
        tok = Tokenizer(models.Unigram())
        tok.normalizer = normalizers.NFKC()
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tok.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=family.specials, unk_token="<unk>", show_progress=False
        )
    tok.train_from_iterator(CORPUS, trainer)
    return tok


TEXT: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen": dict(model_type="qwen3", head_dim=8, tie_word_embeddings=True, **TEXT),
    "llama": dict(model_type="llama", tie_word_embeddings=False, **TEXT),
    "gemma": dict(model_type="gemma", head_dim=8, tie_word_embeddings=True, **TEXT),
    "mistral": dict(model_type="mistral", sliding_window=None, **TEXT),
    "phi": dict(model_type="phi3", **TEXT),
    "gpt2": dict(model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "unigram": dict(model_type="llama", **TEXT),
}


def save(name: str, folder: Path, seed: int = 0, template: bool = True, **changes: Any) -> Path:
    """A folder of transformers with a random model of the family; its own settings end at `Family.end` alone."""
    tok = tokenizer(name, template)
    ids = {"eos_token_id": tok.eos_token_id, "bos_token_id": tok.bos_token_id, "pad_token_id": tok.pad_token_id}
    values = {**ARCHITECTURES[name], "vocab_size": len(tok), **ids, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
