"""The text encoder of the embedded world: a one-layer BERT with frozen random weights and a word-level
tokenizer.

Random features are enough for a vocabulary of 25 words, as long as word order is visible (absolute
positions): no weights to train or ship, they are rebuilt from a fixed seed. Words outside the vocabulary are
read as [UNK], with one warning that names them.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import torch
from torch import Tensor

from vidalign.text.encoder import TextEncoder
from vidalign.worlds.video.captions import VOCABULARY

PAD, UNK = "[PAD]", "[UNK]"
SEED = 1234


class WorldTextEncoder(TextEncoder):
    """`TextEncoder` that tells the user about words the world does not know."""

    def encode(self, prompts: list[str]) -> Tensor:
        unknown = sorted({w for p in prompts for w in p.lower().split()} - set(VOCABULARY) - self._told)
        if unknown:
            self._told.update(unknown)
            warnings.warn(
                f"words outside the world's vocabulary are read as {UNK}: {', '.join(unknown)}", stacklevel=2
            )
        return super().encode(prompts)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._told: set[str] = set()


def world_tokenizer() -> Any:
    """Lower-case, split at white space, one token a word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((PAD, UNK, *VOCABULARY))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK)


def world_encoder(length: int = 16, dim: int = 64) -> WorldTextEncoder:
    """Features `[B, length, dim]`; the same on every machine."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(VOCABULARY) + 2,
        hidden_size=dim,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=2 * dim,
        max_position_embeddings=length,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = BertModel(config, add_pooling_layer=False)
    identity = repr(("world", length, dim, SEED, VOCABULARY))
    return WorldTextEncoder(
        model, world_tokenizer(), length, hashlib.sha256(identity.encode()).hexdigest()[:16]
    )
