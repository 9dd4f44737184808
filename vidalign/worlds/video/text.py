"""The text encoder of the embedded world: a one-layer BERT with frozen random weights and a word-level
tokenizer.

Random features are enough for a vocabulary of 25 words, as long as word order is visible (absolute positions). There
are no weights to train or ship; they are rebuilt from a fixed seed. Words outside the vocabulary are read as [UNK],
with one warning that names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidalign.text.base import TextPlugin
from vidalign.worlds.video.captions import VOCABULARY

if TYPE_CHECKING:
    from vidalign.text.encoder import TextEncoder

PAD, UNK = "[PAD]", "[UNK]"
SEED = 1234


class WorldText(TextPlugin):
    """Features `[B, length, dim]` of captions, the same on every machine; warns about words outside its vocabulary."""

    name = "world"
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
        words = (word for prompt in prompts for word in prompt.lower().split())
        return list(dict.fromkeys(word for word in words if word not in VOCABULARY))

    def identity(self) -> str:
        return repr(("world", self.config.length, self.config.dim, SEED, VOCABULARY))

    def build(self) -> TextEncoder:
        import torch
        from transformers import BertConfig, BertModel

        from vidalign.text.encoder import TextEncoder

        length, dim = self.config.length, self.config.dim
        settings = BertConfig(
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
            model = BertModel(settings, add_pooling_layer=False)
        return TextEncoder(model, world_tokenizer(), length)


def world_tokenizer() -> Any:
    """Lower-case, split at white space, one token a word."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((PAD, UNK, *VOCABULARY))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNK)
