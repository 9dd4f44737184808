"""The text encoder of the embedded world: a one-layer BERT with frozen random weights and a word-level
tokenizer.

Random features are enough for a vocabulary of 25 words, as long as word order is visible (absolute positions). There
are no weights to train or ship; they are rebuilt from a fixed seed. Words outside the vocabulary are read as [UNK],
with one warning that names them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vidalign.text.base import TextPlugin
from vidalign.worlds.video.captions import VOCABULARY

if TYPE_CHECKING:
    from vidalign.text.encoder import TextEncoder

PAD, UNK = "[PAD]", "[UNK]"
SEED = 1234
WORDS = re.compile(r"\w+|[^\w\s]+")
"""What `tokenizers.pre_tokenizers.Whitespace` splits a text into."""


class WorldText(TextPlugin):
    """Features `[B, length, dim]` of captions, the same on every machine; warns about words outside its vocabulary."""

    name = "world"
    vocabulary: ClassVar[tuple[str, ...]] = VOCABULARY
    on_device = False

    @dataclass
    class Config:
        length: int = 16
        """Words to which prompts are padded or cut."""
        dim: int = 64
        """Width of the features."""

    config: Config

    @classmethod
    def unknown_words(cls, prompts: Sequence[str]) -> list[str]:
        words = (word for prompt in prompts for word in WORDS.findall(prompt.lower()))
        return list(dict.fromkeys(word for word in words if word not in cls.vocabulary))

    def identity(self) -> str:
        return repr((self.name, self.config.length, self.config.dim, SEED, self.vocabulary))

    def build(self) -> TextEncoder:
        import torch
        from transformers import BertConfig, BertModel

        from vidalign.text.encoder import TextEncoder

        length, dim = self.config.length, self.config.dim
        settings = BertConfig(
            vocab_size=len(self.vocabulary) + 2,
            hidden_size=dim,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=2 * dim,
            max_position_embeddings=length,
            pad_token_id=0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = BertModel(settings, add_pooling_layer=False)
        return TextEncoder(model, world_tokenizer(self.vocabulary), length)


def world_tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> Any:
    """Lower-case, one token a word or a mark of punctuation."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: i for i, word in enumerate((PAD, UNK, *vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK)
